-- For clients that open no session: one of each tenant that never expires, and the next number of a run or
-- sampler in it.
CREATE TABLE lasting_sessions (
    tenant TEXT PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    next_number INTEGER NOT NULL
) STRICT;

-- Runs that were removed by their owner: nothing can be asked of them any more.
CREATE TABLE removed_runs (
    model_id TEXT PRIMARY KEY REFERENCES runs (id),
    tenant TEXT NOT NULL,
    removed_at INTEGER NOT NULL
) STRICT;

-- Samplers that are made for single samples, and go with them. Those of a run are made by one of its requests.
CREATE TABLE kept_samplers (
    sampler TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    source TEXT NOT NULL,
    model_id TEXT,
    save_request TEXT
) STRICT;
CREATE INDEX kept_samplers_by_source ON kept_samplers (tenant, source);

-- Samples whose clients do not send them again after a restart.
CREATE TABLE kept_samples (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    sampler TEXT NOT NULL,
    body BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    result BLOB,
    failure TEXT
) STRICT;
CREATE INDEX kept_samples_unfinished ON kept_samples (sampler) WHERE finished_at IS NULL;
CREATE INDEX kept_samples_finished ON kept_samples (finished_at) WHERE finished_at IS NOT NULL;
