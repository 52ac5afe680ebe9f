-- Clients of a sampler beside the one that opened it: the number of the last.
ALTER TABLE sampling_sessions ADD COLUMN clones INTEGER NOT NULL DEFAULT 0;

-- Samples live in memory only. These are the blocks of 256 numbers in which a start may have left some without
-- an end; a later start tells their client, who waits for all samples at once.
CREATE TABLE sample_blocks (
    sampling_session_id TEXT NOT NULL,
    start_id TEXT NOT NULL,
    block INTEGER NOT NULL,
    PRIMARY KEY (sampling_session_id, start_id, block)
) STRICT, WITHOUT ROWID;
