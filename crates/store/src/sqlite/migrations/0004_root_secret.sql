-- What is signed for others to bring back must hold after a restart: its keys come from this one secret.
CREATE TABLE root_secret (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    secret BLOB NOT NULL
) STRICT;
