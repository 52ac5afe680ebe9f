-- The `tinker://` path that a run's only checkpoint was copied from: such a run was never trained and never is.
ALTER TABLE runs ADD COLUMN copied_from TEXT;
