-- What was drawn for samples that asked to be remembered: training refers to it. Token ids and logprobs are
-- little-endian words of 32 bits.
CREATE TABLE recorded_samples (
    number INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    prompt BLOB NOT NULL,
    -- Bytes of this one and of all before it, dropped ones too: the newest so many bytes are kept.
    end_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX recorded_samples_by_session ON recorded_samples (session_id);
CREATE INDEX recorded_samples_by_end ON recorded_samples (end_bytes);

CREATE TABLE recorded_sequences (
    id TEXT PRIMARY KEY,
    sample INTEGER NOT NULL REFERENCES recorded_samples (number) ON DELETE CASCADE,
    tokens BLOB NOT NULL,
    logprobs BLOB NOT NULL
) STRICT;
CREATE INDEX recorded_sequences_by_sample ON recorded_sequences (sample);
