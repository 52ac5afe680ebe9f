//! Statements about sampling sessions.

use rusqlite::{Connection, OptionalExtension, Row};
use tinsmith_types::ids::{SamplingSessionId, SessionId, TenantId};

use crate::{
    BlobId, Digest, Error, NewSamplingSession, Result, SamplingSessionRecord,
    sqlite::{Tx, found, sessions, time},
};

impl Tx<'_> {
    pub(crate) fn create_sampling_session(
        &self,
        tenant: &TenantId,
        new: &NewSamplingSession,
    ) -> Result<SamplingSessionRecord> {
        sessions::session(self.conn, tenant, &new.session_id)?;
        let select = "SELECT tenant, digest FROM sampling_sessions WHERE id = ?1";
        let first = self
            .conn
            .prepare_cached(select)?
            .query_row([&new.id.0], |row| Ok((TenantId(row.get(0)?), row.get::<_, Digest>(1)?)));
        match first.optional()? {
            None => {}
            Some((owner, digest)) if owner == *tenant && digest == new.digest => {
                return sampling_session(self.conn, tenant, &new.id);
            }
            Some(_) => {
                return Err(Error::Conflict { what: format!("sampling session {}", new.id) });
            }
        }
        if let Some(blob) = &new.blob {
            self.check_blob(blob)?;
        }
        self.conn
            .prepare_cached(
                "INSERT INTO sampling_sessions (id, tenant, session_id, base_model, base_digest,
                    model_path, blob, digest, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute((
                &new.id.0,
                &tenant.0,
                &new.session_id.0,
                &new.base_model,
                &new.base_digest,
                &new.model_path,
                new.blob.as_ref().map(|blob| &blob.0),
                new.digest,
                self.now.as_microsecond(),
            ))?;
        sampling_session(self.conn, tenant, &new.id)
    }

    /// Drops the samplers of sessions that ended and were last heard of before `before`, in
    /// microseconds: nobody can sample from them any more.
    pub(crate) fn drop_samplers(&self, before: i64) -> Result<()> {
        self.conn.execute(
            "DELETE FROM sampling_sessions WHERE EXISTS
                (SELECT 1 FROM sessions WHERE sessions.id = session_id
                    AND finished IS NOT NULL AND last_heartbeat_at <= ?1)",
            [before],
        )?;
        Ok(())
    }
}

pub(crate) fn sampling_session(
    conn: &Connection,
    tenant: &TenantId,
    id: &SamplingSessionId,
) -> Result<SamplingSessionRecord> {
    let select = "SELECT * FROM sampling_sessions WHERE id = ?1 AND tenant = ?2";
    let mut select = conn.prepare_cached(select)?;
    found(select.query_row((&id.0, &tenant.0), record), || format!("sampling session {id}"))
}

fn record(row: &Row<'_>) -> rusqlite::Result<SamplingSessionRecord> {
    Ok(SamplingSessionRecord {
        tenant: TenantId(row.get("tenant")?),
        id: SamplingSessionId(row.get("id")?),
        session_id: SessionId(row.get("session_id")?),
        base_model: row.get("base_model")?,
        base_digest: row.get("base_digest")?,
        model_path: row.get("model_path")?,
        blob: row.get::<_, Option<String>>("blob")?.map(BlobId),
        created_at: time(row, "created_at")?,
    })
}
