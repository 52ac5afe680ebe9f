//! Statements about who did what. Entries are written in the transaction of what they tell.

use jiff::Timestamp;
use rusqlite::Connection;
use serde_json::{Map, Value, json};
use tinsmith_types::ids::TenantId;

use crate::{
    AuditEntry, Result,
    sqlite::{self, Tx, checkpoints::Name, text, time},
};

impl Tx<'_> {
    /// Notes that the tenant's things were worked on; `details` is an object.
    pub(crate) fn audit(&self, tenant: &TenantId, event: &str, details: &Value) -> Result<()> {
        let insert = "INSERT INTO audit (tenant, at, event, details) VALUES (?1, ?2, ?3, ?4)";
        let row = (&tenant.0, self.now.as_microsecond(), event, details.to_string());
        self.conn.prepare_cached(insert)?.execute(row)?;
        Ok(())
    }

    /// The same of a checkpoint, with `more` beside its names.
    pub(crate) fn audit_checkpoint(
        &self,
        (owner, actor): (&TenantId, &TenantId),
        event: &str,
        name: &Name,
        more: Map<String, Value>,
    ) -> Result<()> {
        let kind = text(&name.kind)?;
        let mut details = json!({
            "actor": actor,
            "model_id": name.model,
            "tinker_path": format!("tinker://{}/{kind}/{}", name.model, name.name),
        });
        if let Some(details) = details.as_object_mut() {
            details.extend(more);
        }
        self.audit(owner, event, &details)
    }

    /// The same of a read, for the owner and for the reader.
    pub(crate) fn audit_read(
        &self,
        (owner, reader): (&TenantId, &TenantId),
        name: &Name,
        purpose: &str,
    ) -> Result<()> {
        let more: Map<String, Value> =
            Map::from_iter([("purpose".to_owned(), Value::from(purpose))]);
        self.audit_checkpoint((owner, reader), "checkpoint_read", name, more.clone())?;
        if owner != reader {
            self.audit_checkpoint((reader, reader), "checkpoint_read", name, more)?;
        }
        Ok(())
    }

    /// Lets go of entries before `before`, in microseconds, and of the oldest beyond `entries_max`.
    pub(crate) fn drop_audit(&self, before: i64, entries_max: i64) -> Result<()> {
        self.conn.execute("DELETE FROM audit WHERE at < ?1", [before])?;
        let beyond = "DELETE FROM audit WHERE number <= (SELECT max(number) FROM audit) - ?1";
        self.conn.execute(beyond, [entries_max])?;
        Ok(())
    }
}

/// Entries from `from` to `until`, the newest `limit` of those whose event begins as given; oldest first.
pub(crate) fn entries(
    conn: &Connection,
    tenant: &TenantId,
    (from, until): (Timestamp, Timestamp),
    prefix: &str,
    limit: u32,
) -> Result<Vec<AuditEntry>> {
    let mut select = conn.prepare_cached(
        "SELECT at, event, details FROM audit
         WHERE tenant = ?1 AND at >= ?2 AND at < ?3 AND event GLOB ?4
         ORDER BY at DESC, number DESC LIMIT ?5",
    )?;
    let (from, until) = (from.as_microsecond(), until.as_microsecond());
    let row = (&tenant.0, from, until, format!("{prefix}*"), limit);
    let entries = select.query_map(row, |row| {
        Ok(AuditEntry {
            at: time(row, "at")?,
            event: row.get("event")?,
            details: sqlite::json(row, "details")?,
        })
    })?;
    let mut entries = entries.collect::<rusqlite::Result<Vec<_>>>()?;
    entries.reverse();
    Ok(entries)
}
