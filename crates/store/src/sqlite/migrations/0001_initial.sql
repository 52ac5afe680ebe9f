-- Times are microseconds since the Unix epoch. Ids are as they travel. JSON stands in TEXT.

-- Each opening of this data directory. Ids of samples name their start and are signed with its secret.
CREATE TABLE starts (
    id TEXT PRIMARY KEY,
    secret BLOB NOT NULL,
    started_at INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    tags TEXT NOT NULL,
    user_metadata TEXT NOT NULL,
    sdk_version TEXT NOT NULL,
    project_id TEXT,
    display_name TEXT,
    created_at INTEGER NOT NULL,
    last_heartbeat_at INTEGER NOT NULL,
    finished TEXT
) STRICT;
CREATE INDEX sessions_by_tenant ON sessions (tenant, number);
CREATE INDEX sessions_unfinished ON sessions (number) WHERE finished IS NULL;

CREATE TABLE session_keys (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    digest BLOB NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    base_model TEXT NOT NULL,
    base_digest TEXT NOT NULL,
    lora TEXT NOT NULL,
    optimizer_config TEXT NOT NULL,
    user_metadata TEXT NOT NULL,
    kernel_set TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_request_at INTEGER NOT NULL,
    ready INTEGER NOT NULL DEFAULT 0,
    corrupted TEXT,
    note TEXT,
    -- Every id below has arrived or will not be waited for. May lag; never leads.
    next_seq INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_by_tenant ON runs (tenant, number);
CREATE INDEX runs_by_session ON runs (session_id);

-- `state`: 0 pending, 1 done, 2 failed. A body stands in the row or in a spool segment, or was dropped
-- because a snapshot holds its effect; a result likewise, until its retention ends.
CREATE TABLE requests (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    model_id TEXT NOT NULL REFERENCES runs (id),
    seq_id INTEGER NOT NULL,
    kind TEXT NOT NULL,
    digest BLOB NOT NULL,
    state INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    result_kept INTEGER NOT NULL DEFAULT 0,
    result_digest BLOB,
    failure TEXT,
    body BLOB,
    body_segment INTEGER,
    body_offset INTEGER,
    body_length INTEGER,
    body_blake3 BLOB,
    result BLOB,
    result_segment INTEGER,
    result_offset INTEGER,
    result_length INTEGER,
    result_blake3 BLOB,
    UNIQUE (model_id, seq_id)
) STRICT;
CREATE INDEX requests_pending ON requests (number) WHERE state = 0;
CREATE INDEX requests_kept ON requests (finished_at) WHERE result_kept = 1;
CREATE INDEX requests_body_segment ON requests (body_segment) WHERE body_segment IS NOT NULL;
CREATE INDEX requests_result_segment ON requests (result_segment) WHERE result_segment IS NOT NULL;

CREATE TABLE snapshots (
    model_id TEXT PRIMARY KEY REFERENCES runs (id),
    applied_seq INTEGER NOT NULL,
    blob TEXT NOT NULL
) STRICT;
CREATE INDEX snapshots_blob ON snapshots (blob);

CREATE TABLE checkpoints (
    number INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    model_id TEXT NOT NULL REFERENCES runs (id),
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    blob TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    public INTEGER NOT NULL DEFAULT 0,
    user_metadata TEXT NOT NULL,
    UNIQUE (model_id, kind, name)
) STRICT;
CREATE INDEX checkpoints_by_tenant ON checkpoints (tenant, number);
CREATE INDEX checkpoints_blob ON checkpoints (blob);
CREATE INDEX checkpoints_expiring ON checkpoints (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE sampling_sessions (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    base_model TEXT NOT NULL,
    base_digest TEXT NOT NULL,
    model_path TEXT,
    blob TEXT,
    digest BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX sampling_sessions_by_session ON sampling_sessions (session_id);
CREATE INDEX sampling_sessions_blob ON sampling_sessions (blob) WHERE blob IS NOT NULL;
