-- Losses that clients sent as graphs. Requests that use one hold a copy of it.
CREATE TABLE custom_losses (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    body BLOB NOT NULL,
    digest BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX custom_losses_by_session ON custom_losses (session_id);
