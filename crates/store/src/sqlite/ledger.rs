//! Statements about what was used. Every quantity is added to its hour's row.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use tinsmith_types::ids::{ModelId, SamplingSessionId, TenantId};

use crate::{
    Result, StorageRow, UsageKind, UsageRow,
    sessions::DEFAULT_PROJECT,
    sqlite::{Tx, checkpoints::Name, json, named, signed, text, time, unsigned},
};

/// Microseconds of an hour.
pub(crate) const HOUR_MICROS: i64 = 3_600_000_000;
/// Seconds of an hour.
const HOUR_SECONDS: i64 = 3600;
/// Hours of storage that one look at the clock adds, at most: what a server was stopped for longer is not
/// counted.
const STORAGE_HOURS_MAX: i64 = 14 * 24;

const ADD: &str = "INSERT INTO usage (tenant, hour, session_id, base_model, kind, quantity)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
     ON CONFLICT DO UPDATE SET quantity = quantity + excluded.quantity";

/// The hour of a time, by its beginning in microseconds.
pub(crate) fn hour(at: Timestamp) -> i64 {
    at.as_microsecond().div_euclid(HOUR_MICROS) * HOUR_MICROS
}

impl Tx<'_> {
    /// Counts what a run used now.
    pub(crate) fn add_usage(&self, model: &ModelId, kind: UsageKind, quantity: u64) -> Result<()> {
        if quantity == 0 {
            return Ok(());
        }
        let add = "INSERT INTO usage (tenant, hour, session_id, base_model, kind, quantity)
             SELECT tenant, ?2, session_id, base_model, ?3, ?4 FROM runs WHERE id = ?1
             ON CONFLICT DO UPDATE SET quantity = quantity + excluded.quantity";
        let row = (&model.0, hour(self.now), text(&kind)?, signed(quantity));
        self.conn.prepare_cached(add)?.execute(row)?;
        Ok(())
    }

    /// Counts the storage of all checkpoints up to now.
    pub(crate) fn accrue_storage(&self) -> Result<()> {
        let now = self.now.as_second();
        let from = self.accrued_until()?.unwrap_or(now).max(now - STORAGE_HOURS_MAX * HOUR_SECONDS);
        self.accrue(from, now, None)?;
        let clock = "INSERT OR REPLACE INTO storage_clock VALUES (1, ?1)";
        self.conn.prepare_cached(clock)?.execute([now])?;
        Ok(())
    }

    /// Counts the storage of a checkpoint that is about to go.
    pub(crate) fn accrue_storage_of(&self, name: &Name) -> Result<()> {
        let now = self.now.as_second();
        let from = self.accrued_until()?.unwrap_or(now).max(now - STORAGE_HOURS_MAX * HOUR_SECONDS);
        self.accrue(from, now, Some(name))
    }

    /// Lets go of what is older than `before`, in microseconds.
    pub(crate) fn drop_usage(&self, before: i64) -> Result<()> {
        self.conn.execute("DELETE FROM usage WHERE hour < ?1", [before])?;
        Ok(())
    }

    fn accrued_until(&self) -> Result<Option<i64>> {
        let select = "SELECT accrued_until FROM storage_clock";
        Ok(self.conn.prepare_cached(select)?.query_row([], |row| row.get(0)).optional()?)
    }

    /// Adds byte-seconds from one time to another, both in seconds, hour by hour.
    fn accrue(&self, mut from: i64, until: i64, only: Option<&Name>) -> Result<()> {
        let mut add = self.conn.prepare_cached(
            "INSERT INTO usage (tenant, hour, session_id, base_model, kind, quantity)
             SELECT checkpoints.tenant, ?1, session_id, base_model, ?4,
                sum(size_bytes * (min(?3, coalesce(expires_at / 1000000, ?3))
                    - max(?2, checkpoints.created_at / 1000000))) AS byte_seconds
             FROM checkpoints JOIN runs ON runs.id = model_id
             WHERE checkpoints.created_at / 1000000 < ?3
                AND (expires_at IS NULL OR expires_at / 1000000 > ?2)
                AND (?5 IS NULL OR (model_id = ?5 AND checkpoints.kind = ?6 AND name = ?7))
             GROUP BY checkpoints.tenant, session_id, base_model HAVING byte_seconds > 0
             ON CONFLICT DO UPDATE SET quantity = quantity + excluded.quantity",
        )?;
        let storage = text(&UsageKind::Storage)?;
        let kind = only.map(|name| text(&name.kind)).transpose()?;
        while from < until {
            let hour = from.div_euclid(HOUR_SECONDS);
            let end = until.min((hour + 1) * HOUR_SECONDS);
            let name = only.map(|name| (name.model.as_str(), name.name.as_str()));
            add.execute((
                hour * HOUR_MICROS,
                from,
                end,
                &storage,
                name.map(|(model, _)| model),
                &kind,
                name.map(|(_, name)| name),
            ))?;
            from = end;
        }
        Ok(())
    }
}

/// Counts what a sampler used in an hour.
pub(crate) fn add_sampled(
    conn: &Connection,
    (tenant, sampler, hour): (&TenantId, &SamplingSessionId, i64),
    kind: UsageKind,
    quantity: u64,
) -> Result<()> {
    if quantity == 0 {
        return Ok(());
    }
    let select = "SELECT session_id, base_model FROM sampling_sessions WHERE id = ?1";
    let origin: Option<(String, String)> = conn
        .prepare_cached(select)?
        .query_row([&sampler.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    // What is used through a sampler that is gone counts all the same.
    let (session, base_model) = origin.unwrap_or_default();
    let row = (&tenant.0, hour, session, base_model, text(&kind)?, signed(quantity));
    conn.prepare_cached(ADD)?.execute(row)?;
    Ok(())
}

/// What was used from one hour to another, by hour and then by descending quantity; at most `limit` rows.
pub(crate) fn usage(
    conn: &Connection,
    tenant: &TenantId,
    (from, until): (Timestamp, Timestamp),
    limit: u32,
) -> Result<Vec<UsageRow>> {
    let mut select = conn.prepare_cached(
        "SELECT hour, session_id, base_model, kind, quantity, sessions.id AS known,
            coalesce(project_id, ?5) AS project, coalesce(user_metadata, 'null') AS user_metadata
         FROM usage LEFT JOIN sessions ON sessions.id = session_id
         WHERE usage.tenant = ?1 AND hour >= ?2 AND hour < ?3
         ORDER BY hour, kind = 'storage', quantity DESC, session_id, base_model LIMIT ?4",
    )?;
    let (from, until) = (from.as_microsecond(), until.as_microsecond());
    let rows = select.query_map((&tenant.0, from, until, limit, DEFAULT_PROJECT), |row| {
        let named_by = |name: String| (!name.is_empty()).then_some(name);
        Ok(UsageRow {
            hour: time(row, "hour")?,
            session_id: named_by(row.get("session_id")?).map(Into::into),
            base_model: named_by(row.get("base_model")?),
            project_id: row
                .get::<_, Option<String>>("known")?
                .map(|_| row.get("project"))
                .transpose()?,
            user_metadata: json(row, "user_metadata")?,
            kind: named(row, "kind")?,
            quantity: unsigned(row.get("quantity")?),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The checkpoints that are kept now, by project.
pub(crate) fn storage(
    conn: &Connection,
    tenant: &TenantId,
    project: Option<&str>,
    now: Timestamp,
) -> Result<Vec<StorageRow>> {
    let mut select = conn.prepare_cached(
        "SELECT coalesce(project_id, ?4) AS project, count(*) AS checkpoints,
            sum(size_bytes) AS size_bytes
         FROM checkpoints JOIN runs ON runs.id = model_id JOIN sessions ON sessions.id = session_id
         WHERE checkpoints.tenant = ?1 AND (?2 IS NULL OR coalesce(project_id, ?4) = ?2)
            AND (expires_at IS NULL OR expires_at > ?3)
         GROUP BY project ORDER BY project",
    )?;
    let row = (&tenant.0, project, now.as_microsecond(), DEFAULT_PROJECT);
    let rows = select.query_map(row, |row| {
        Ok(StorageRow {
            project_id: row.get("project")?,
            checkpoints: unsigned(row.get("checkpoints")?),
            size_bytes: unsigned(row.get("size_bytes")?),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
