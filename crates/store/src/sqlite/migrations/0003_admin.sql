-- What is known about sessions beside their names, who did what, and what was used.

-- How a session ended, in its client's words.
ALTER TABLE sessions ADD COLUMN finish_detail TEXT;
CREATE INDEX sessions_by_time ON sessions (tenant, created_at, id);

-- When the worker began with it.
ALTER TABLE requests ADD COLUMN started_at INTEGER;

CREATE TABLE audit (
    number INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    at INTEGER NOT NULL,
    event TEXT NOT NULL,
    details TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_tenant ON audit (tenant, at);
CREATE INDEX audit_by_time ON audit (at);

-- Tokens, checkpoints, or byte-seconds of storage, by hour. `hour` is its beginning, in microseconds.
CREATE TABLE usage (
    tenant TEXT NOT NULL,
    hour INTEGER NOT NULL,
    session_id TEXT NOT NULL,
    base_model TEXT NOT NULL,
    kind TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    PRIMARY KEY (tenant, hour, session_id, base_model, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_by_hour ON usage (hour);

-- One row: up to when storage is in the ledger, in seconds.
CREATE TABLE storage_clock (
    number INTEGER PRIMARY KEY CHECK (number = 1),
    accrued_until INTEGER NOT NULL
) STRICT;

-- Samples that have ended, for traces. The samples themselves live in memory only.
CREATE TABLE sample_spans (
    number INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    sampler_id TEXT NOT NULL,
    session_id TEXT,
    request_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER NOT NULL,
    failed INTEGER NOT NULL
) STRICT;
CREATE INDEX sample_spans_by_session ON sample_spans (session_id, number);
