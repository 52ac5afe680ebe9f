//! Statements about sessions.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::json;
use tinsmith_types::ids::{ModelId, SamplingSessionId, SessionId, TenantId};

use crate::{
    Digest, Error, NewSession, Result, SessionRecord,
    sqlite::{self, Tx, found, text, time, unsigned},
};

/// How long an idempotency key finds its session, in microseconds.
pub(crate) const KEY_LIFE_MICROS: i64 = 600_000_000;

impl Tx<'_> {
    pub(crate) fn create_session(
        &self,
        tenant: &TenantId,
        new: &NewSession,
        key: Option<&str>,
    ) -> Result<SessionRecord> {
        let now = self.now.as_microsecond();
        let digest = digest(new)?;
        if let Some(key) = key
            && let Some((first, id)) = self.find_key(tenant, key)?
        {
            if first != digest {
                return Err(Error::Conflict { what: format!("idempotency key {key}") });
            }
            return session(self.conn, tenant, &id);
        }
        let id = SessionId(uuid::Uuid::new_v4().to_string());
        self.conn
            .prepare_cached(
                "INSERT INTO sessions (id, tenant, tags, user_metadata, sdk_version, project_id,
                    display_name, created_at, last_heartbeat_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
            )?
            .execute((
                &id.0,
                &tenant.0,
                text(&new.tags)?,
                new.user_metadata.to_string(),
                &new.sdk_version,
                &new.project_id,
                &new.display_name,
                now,
            ))?;
        if let Some(key) = key {
            let insert = "INSERT OR REPLACE INTO session_keys VALUES (?1, ?2, ?3, ?4, ?5)";
            self.conn.prepare_cached(insert)?.execute((&tenant.0, key, digest, &id.0, now))?;
        }
        let details = json!({ "actor": tenant, "session_id": id, "project_id": new.project_id });
        self.audit(tenant, "session_create", &details)?;
        session(self.conn, tenant, &id)
    }

    /// Ends a session that has not ended; false where it had.
    pub(crate) fn finish_session(
        &self,
        tenant: &TenantId,
        id: &SessionId,
        (reason, detail): (&str, Option<&str>),
        last_heartbeat_at: Option<Timestamp>,
    ) -> Result<bool> {
        if session(self.conn, tenant, id)?.finished.is_some() {
            return Ok(false);
        }
        let update = "UPDATE sessions SET finished = ?2, finish_detail = ?4,
                last_heartbeat_at = max(last_heartbeat_at, coalesce(?3, 0)) WHERE id = ?1";
        let heartbeat = last_heartbeat_at.map(Timestamp::as_microsecond);
        self.conn.prepare_cached(update)?.execute((&id.0, reason, heartbeat, detail))?;
        let details = json!({ "actor": tenant, "session_id": id, "reason": reason });
        self.audit(tenant, "session_finish", &details)?;
        self.drop_recordings(id)?;
        Ok(true)
    }

    pub(crate) fn assign_project(
        &self,
        tenant: &TenantId,
        id: &SessionId,
        project: &str,
    ) -> Result<()> {
        let before = session(self.conn, tenant, id)?.project_id;
        let update = "UPDATE sessions SET project_id = ?2 WHERE id = ?1";
        self.conn.prepare_cached(update)?.execute((&id.0, project))?;
        let details =
            json!({ "actor": tenant, "session_id": id, "project_id": project, "from": before });
        self.audit(tenant, "project_session_assign", &details)
    }

    pub(crate) fn note_heartbeats(&self, heartbeats: &[(SessionId, Timestamp)]) -> Result<()> {
        let mut update = self.conn.prepare_cached(
            "UPDATE sessions SET last_heartbeat_at = ?2 WHERE id = ?1 AND finished IS NULL",
        )?;
        for (id, at) in heartbeats {
            update.execute((&id.0, at.as_microsecond()))?;
        }
        Ok(())
    }

    pub(crate) fn drop_session_keys(&self) -> Result<()> {
        let before = self.now.as_microsecond() - KEY_LIFE_MICROS;
        self.conn.execute("DELETE FROM session_keys WHERE created_at <= ?1", [before])?;
        Ok(())
    }

    fn find_key(&self, tenant: &TenantId, key: &str) -> Result<Option<(Digest, SessionId)>> {
        let mut select = self.conn.prepare_cached(
            "SELECT digest, session_id FROM session_keys
             WHERE tenant = ?1 AND key = ?2 AND created_at > ?3",
        )?;
        let after = self.now.as_microsecond() - KEY_LIFE_MICROS;
        let row = select
            .query_row((&tenant.0, key, after), |row| Ok((row.get(0)?, SessionId(row.get(1)?))));
        Ok(row.optional()?)
    }
}

pub(crate) fn session(
    conn: &Connection,
    tenant: &TenantId,
    id: &SessionId,
) -> Result<SessionRecord> {
    let mut select = conn.prepare_cached("SELECT * FROM sessions WHERE id = ?1 AND tenant = ?2")?;
    found(select.query_row((&id.0, &tenant.0), record), || format!("session {id}"))
}

pub(crate) fn sessions(
    conn: &Connection,
    tenant: &TenantId,
    limit: u32,
    offset: u32,
) -> Result<(Vec<SessionId>, u64)> {
    let mut select = conn.prepare_cached(
        "SELECT id FROM sessions WHERE tenant = ?1 ORDER BY number DESC LIMIT ?2 OFFSET ?3",
    )?;
    let page = select.query_map((&tenant.0, limit, offset), |row| row.get(0).map(SessionId))?;
    let page = page.collect::<rusqlite::Result<_>>()?;
    let mut count = conn.prepare_cached("SELECT count(*) FROM sessions WHERE tenant = ?1")?;
    Ok((page, unsigned(count.query_row([&tenant.0], |row| row.get(0))?)))
}

pub(crate) fn children(
    conn: &Connection,
    tenant: &TenantId,
    id: &SessionId,
) -> Result<(Vec<ModelId>, Vec<SamplingSessionId>)> {
    session(conn, tenant, id)?;
    let mut runs =
        conn.prepare_cached("SELECT id FROM runs WHERE session_id = ?1 ORDER BY number")?;
    let runs = runs.query_map([&id.0], |row| row.get(0).map(ModelId))?;
    let samplers = "SELECT id FROM sampling_sessions WHERE session_id = ?1 ORDER BY number";
    let mut samplers = conn.prepare_cached(samplers)?;
    let samplers = samplers.query_map([&id.0], |row| row.get(0).map(SamplingSessionId))?;
    Ok((runs.collect::<rusqlite::Result<_>>()?, samplers.collect::<rusqlite::Result<_>>()?))
}

/// Every session that has not ended, with its owner.
pub(crate) fn unfinished(conn: &Connection) -> Result<Vec<(SessionId, TenantId, Timestamp)>> {
    let mut select =
        conn.prepare("SELECT id, tenant, last_heartbeat_at FROM sessions WHERE finished IS NULL")?;
    let rows = select.query_map([], |row| {
        Ok((SessionId(row.get(0)?), TenantId(row.get(1)?), time(row, "last_heartbeat_at")?))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn record(row: &Row<'_>) -> rusqlite::Result<SessionRecord> {
    Ok(SessionRecord {
        id: SessionId(row.get("id")?),
        tags: sqlite::json(row, "tags")?,
        user_metadata: sqlite::json(row, "user_metadata")?,
        sdk_version: row.get("sdk_version")?,
        project_id: row.get("project_id")?,
        display_name: row.get("display_name")?,
        created_at: time(row, "created_at")?,
        last_heartbeat_at: time(row, "last_heartbeat_at")?,
        finished: row.get("finished")?,
        finish_detail: row.get("finish_detail")?,
    })
}

fn digest(new: &NewSession) -> Result<Digest> {
    let NewSession { tags, user_metadata, sdk_version, project_id, display_name } = new;
    let mut tags = tags.clone();
    // The client makes them from a set, in any order.
    tags.sort_unstable();
    let body = text(&(tags, user_metadata, sdk_version, project_id, display_name))?;
    Ok(*blake3::hash(body.as_bytes()).as_bytes())
}
