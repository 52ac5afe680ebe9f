-- Samplers that follow a run have no blob of their own, but its newest, whichever of them was made with it.
ALTER TABLE sampling_sessions ADD COLUMN follows TEXT REFERENCES runs (id);
CREATE INDEX sampling_sessions_follows ON sampling_sessions (follows) WHERE follows IS NOT NULL;

CREATE TABLE moving_weights (
    model_id TEXT PRIMARY KEY REFERENCES runs (id),
    tenant TEXT NOT NULL,
    blob TEXT NOT NULL
) STRICT;
CREATE INDEX moving_weights_blob ON moving_weights (blob);
