//! Statements about losses that clients sent.

use rusqlite::Connection;
use tinsmith_types::ids::{LossId, SessionId, TenantId};

use crate::{
    CustomLossRecord, NewCustomLoss, Result,
    sqlite::{Tx, found, sessions, unsigned},
};

impl Tx<'_> {
    /// False where the session has as many as it may.
    pub(crate) fn create_custom_loss(
        &self,
        tenant: &TenantId,
        new: &NewCustomLoss,
        session_max: u64,
    ) -> Result<bool> {
        sessions::session(self.conn, tenant, &new.session_id)?;
        let made_by = (tenant, &new.digest);
        if self.repeats("custom_losses", &new.id.0, made_by, "custom loss")? {
            return Ok(true);
        }
        let count = "SELECT count(*) FROM custom_losses WHERE session_id = ?1";
        let count: i64 =
            self.conn.prepare_cached(count)?.query_row([&new.session_id.0], |row| row.get(0))?;
        if unsigned(count) >= session_max {
            return Ok(false);
        }
        self.conn
            .prepare_cached(
                "INSERT INTO custom_losses (id, tenant, session_id, body, digest, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((
                &new.id.0,
                &tenant.0,
                &new.session_id.0,
                &new.body[..],
                new.digest,
                self.now.as_microsecond(),
            ))?;
        Ok(true)
    }

    /// Drops the losses of sessions that ended and were last heard of before `before`, in microseconds: requests
    /// that use one hold a copy of it.
    pub(crate) fn drop_custom_losses(&self, before: i64) -> Result<()> {
        self.conn.execute(
            "DELETE FROM custom_losses WHERE EXISTS
                (SELECT 1 FROM sessions WHERE sessions.id = session_id
                    AND finished IS NOT NULL AND last_heartbeat_at <= ?1)",
            [before],
        )?;
        Ok(())
    }
}

pub(crate) fn custom_loss(
    conn: &Connection,
    tenant: &TenantId,
    id: &LossId,
) -> Result<CustomLossRecord> {
    let select = "SELECT session_id, body FROM custom_losses WHERE id = ?1 AND tenant = ?2";
    let mut select = conn.prepare_cached(select)?;
    let row = select.query_row((&id.0, &tenant.0), |row| {
        Ok(CustomLossRecord {
            session_id: SessionId(row.get(0)?),
            body: row.get::<_, Vec<u8>>(1)?.into(),
        })
    });
    found(row, || format!("custom loss {id}"))
}
