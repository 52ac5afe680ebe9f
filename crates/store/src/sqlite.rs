//! Everything that is SQL: the schema, the writer thread, the readers, and the statements.
//!
//! Statements that write are methods of [`Tx`], those that read are functions of a connection; each
//! table has a file. A new schema version is a new file in `migrations/` and a line in `MIGRATIONS`.

use std::{collections::BTreeSet, io, path::Path};

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, types::Type};
use serde::{Serialize, de::DeserializeOwned};
use tinsmith_types::ids::TenantId;

use crate::{
    BlobId, Digest, Error, Result,
    spool::{self, Place, Spool},
    store::Shared,
};

pub(crate) mod audit;
pub(crate) mod checkpoints;
pub(crate) mod custom_losses;
pub(crate) mod kept_samples;
pub(crate) mod lasting;
pub(crate) mod ledger;
pub(crate) mod readers;
pub(crate) mod recordings;
pub(crate) mod requests;
pub(crate) mod runs;
pub(crate) mod samplers;
pub(crate) mod search;
pub(crate) mod sessions;
pub(crate) mod spans;
pub(crate) mod writer;

/// Older ones can lose a transaction when the log is reset.
const SQLITE_VERSION_MIN: i32 = 3_051_003;
const MIGRATIONS: [&str; 9] = [
    include_str!("sqlite/migrations/0001_initial.sql"),
    include_str!("sqlite/migrations/0002_clones.sql"),
    include_str!("sqlite/migrations/0003_admin.sql"),
    include_str!("sqlite/migrations/0004_root_secret.sql"),
    include_str!("sqlite/migrations/0005_copies.sql"),
    include_str!("sqlite/migrations/0006_recorded_samples.sql"),
    include_str!("sqlite/migrations/0007_custom_losses.sql"),
    include_str!("sqlite/migrations/0008_lasting.sql"),
    include_str!("sqlite/migrations/0009_moving_weights.sql"),
];

/// The transaction of a group, as one of its writes sees it.
#[derive(Debug)]
pub(crate) struct Tx<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) spool: &'a mut Spool,
    pub(crate) shared: &'a Shared,
    pub(crate) now: Timestamp,
}

/// Where a body or result is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stored {
    Inline(Bytes),
    Spooled(Place),
    Dropped,
}

impl Tx<'_> {
    /// Writes large bytes to the spool; small ones are left for the row.
    pub(crate) fn store(&mut self, bytes: &Bytes) -> Result<Stored> {
        if bytes.len() <= self.shared.config.inline_body_bytes_max {
            return Ok(Stored::Inline(bytes.clone()));
        }
        Ok(Stored::Spooled(self.spool.append(bytes)?))
    }

    /// Whether the row of this `id` in `table` is what the same request made before.
    pub(crate) fn repeats(
        &self,
        table: &str,
        id: &str,
        (tenant, digest): (&TenantId, &Digest),
        what: &str,
    ) -> Result<bool> {
        let select = format!("SELECT tenant, digest FROM {table} WHERE id = ?1");
        let first = self
            .conn
            .prepare_cached(&select)?
            .query_row([id], |row| Ok((TenantId(row.get(0)?), row.get::<_, Digest>(1)?)));
        match first.optional()? {
            None => Ok(false),
            Some((owner, first)) if owner == *tenant && first == *digest => Ok(true),
            Some(_) => Err(Error::Conflict { what: format!("{what} {id}") }),
        }
    }

    /// The blob is on disk; nothing may come to name one that is not.
    pub(crate) fn check_blob(&self, blob: &BlobId) -> Result<()> {
        if self.shared.blobs.exists(blob) {
            Ok(())
        } else {
            Err(Error::NotFound { what: format!("blob {blob}") })
        }
    }
}

impl Stored {
    /// Columns: bytes, segment, offset, length, blake3, from `first` on.
    pub(crate) fn from_row(row: &Row<'_>, first: usize) -> rusqlite::Result<Self> {
        if let Some(inline) = row.get::<_, Option<Vec<u8>>>(first)? {
            return Ok(Self::Inline(inline.into()));
        }
        let Some(segment) = row.get::<_, Option<i64>>(first + 1)? else { return Ok(Self::Dropped) };
        Ok(Self::Spooled(Place {
            segment: unsigned(segment),
            offset: unsigned(row.get(first + 2)?),
            length: unsigned(row.get(first + 3)?),
            blake3: row.get(first + 4)?,
        }))
    }

    pub(crate) fn inline(&self) -> Option<&[u8]> {
        match self {
            Self::Inline(bytes) => Some(bytes),
            Self::Spooled(_) | Self::Dropped => None,
        }
    }

    pub(crate) fn place(&self) -> Option<&Place> {
        match self {
            Self::Spooled(place) => Some(place),
            Self::Inline(_) | Self::Dropped => None,
        }
    }

    /// Reads the bytes, from the spool where they are there; `what` names them where they are gone.
    pub(crate) fn load(self, spool_dir: &Path, what: impl FnOnce() -> String) -> Result<Bytes> {
        match self {
            Self::Inline(bytes) => Ok(bytes),
            Self::Spooled(place) => spool::read(spool_dir, &place),
            Self::Dropped => Err(Error::Corrupted { what: what() }),
        }
    }
}

/// Opens the connection that writes, and brings the schema up to date.
pub(crate) fn open_writer(path: &Path, durable: bool) -> Result<Connection> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        let reason = format!("SQLite {} is too old, 3.51.3 is needed", rusqlite::version());
        return Err(Error::Refused { reason });
    }
    let mut conn = Connection::open(path)?;
    conn.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = {}; PRAGMA foreign_keys = ON;
         PRAGMA mmap_size = 0; PRAGMA journal_size_limit = 67108864;",
        if durable { "FULL" } else { "OFF" }
    ))
    .map_err(|error| match error.sqlite_error_code() {
        Some(code @ (ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)) => {
            let reason = format!(
                "{} is damaged ({code:?}); put a copy of it back, or use another directory",
                path.display()
            );
            Error::Refused { reason }
        }
        _ => error.into(),
    })?;
    conn.set_prepared_statement_cache_capacity(64);
    migrate(&mut conn, path)?;
    Ok(conn)
}

/// Opens a connection that only reads.
pub(crate) fn open_reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.execute_batch(
        "PRAGMA query_only = ON; PRAGMA mmap_size = 0; PRAGMA busy_timeout = 5000;",
    )?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

fn migrate(conn: &mut Connection, path: &Path) -> Result<()> {
    let version: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = MIGRATIONS.len();
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    if done > known {
        let reason = format!(
            "{} was written by a newer version (schema {version}, this program knows {known}); \
             use that version or another directory",
            path.display()
        );
        return Err(Error::Refused { reason });
    }
    for (number, migration) in (1..).zip(MIGRATIONS).skip(done) {
        let tx = conn.transaction()?;
        tx.execute_batch(migration)?;
        tx.pragma_update(None, "user_version", number)?;
        tx.commit()?;
    }
    Ok(())
}

/// Notes this start and returns every start's secret, by its id.
pub(crate) fn begin_start(
    conn: &Connection,
    id: &str,
    secret: &[u8; 32],
    now: Timestamp,
) -> Result<Vec<(String, [u8; 32])>> {
    let insert = "INSERT INTO starts (id, secret, started_at) VALUES (?1, ?2, ?3)";
    conn.execute(insert, (id, secret, now.as_microsecond()))?;
    // Storage counts from the first start on.
    let clock = "INSERT OR IGNORE INTO storage_clock VALUES (1, ?1)";
    conn.execute(clock, [now.as_second()])?;
    let mut starts = conn.prepare("SELECT id, secret FROM starts")?;
    let starts = starts.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(starts.collect::<rusqlite::Result<_>>()?)
}

/// The data directory's secret: `fresh` at its first start, then always the same.
pub(crate) fn root_secret(conn: &Connection, fresh: &[u8; 32]) -> Result<[u8; 32]> {
    conn.execute("INSERT OR IGNORE INTO root_secret (id, secret) VALUES (1, ?1)", [fresh])?;
    Ok(conn.query_row("SELECT secret FROM root_secret", [], |row| row.get(0))?)
}

/// Whether a row refers to the blob.
pub(crate) fn is_referenced(conn: &Connection, blob: &BlobId) -> Result<bool> {
    let mut statement = conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM snapshots WHERE blob = ?1)
             OR EXISTS (SELECT 1 FROM checkpoints WHERE blob = ?1)
             OR EXISTS (SELECT 1 FROM sampling_sessions WHERE blob = ?1)
             OR EXISTS (SELECT 1 FROM moving_weights WHERE blob = ?1)",
    )?;
    Ok(statement.query_row([&blob.0], |row| row.get(0))?)
}

/// The spool segments that a row refers to.
pub(crate) fn referenced_segments(conn: &Connection) -> Result<BTreeSet<u64>> {
    let mut statement = conn.prepare_cached(
        "SELECT DISTINCT body_segment FROM requests WHERE body_segment IS NOT NULL
         UNION SELECT DISTINCT result_segment FROM requests WHERE result_segment IS NOT NULL",
    )?;
    let segments = statement.query_map([], |row| row.get(0).map(unsigned))?;
    Ok(segments.collect::<rusqlite::Result<_>>()?)
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let code = error.sqlite_error_code();
        if code == Some(ErrorCode::DiskFull) {
            return Self::Io(io::Error::new(io::ErrorKind::StorageFull, error));
        }
        let broken =
            [ErrorCode::SystemIoFailure, ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
        if code.is_some_and(|code| broken.contains(&code)) {
            tracing::error!(error = %error, "database failed");
            return Self::Fatal;
        }
        Self::Io(io::Error::other(error))
    }
}

/// A row that must be there.
pub(crate) fn found<T>(row: rusqlite::Result<T>, what: impl FnOnce() -> String) -> Result<T> {
    row.optional()?.ok_or_else(|| Error::NotFound { what: what() })
}

/// JSON of a value; a plain enum without its quotes.
pub(crate) fn text(value: &impl Serialize) -> Result<String> {
    let value = serde_json::to_value(value).map_err(io::Error::other)?;
    Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// A column with JSON in it.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(conversion)
}

/// A column with the name of an enum's variant in it.
pub(crate) fn named<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let name: String = row.get(column)?;
    serde_json::from_value(name.into()).map_err(conversion)
}

/// A column with a time in it.
pub(crate) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    Timestamp::from_microsecond(row.get(column)?).map_err(conversion)
}

/// A column with a time or nothing in it.
pub(crate) fn maybe_time(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    let micros: Option<i64> = row.get(column)?;
    micros.map(Timestamp::from_microsecond).transpose().map_err(conversion)
}

fn conversion(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
}

/// What was stored from a `u64`; SQLite has signed integers only.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// For storing; sizes and offsets stay far below the bound.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
