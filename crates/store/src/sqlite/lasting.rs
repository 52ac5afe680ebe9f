//! Statements about lasting sessions and removed runs.

use rusqlite::{Connection, OptionalExtension};
use tinsmith_types::ids::{ModelId, SessionId, TenantId};

use crate::{
    NewSession, Result,
    sqlite::{Tx, runs},
};

impl Tx<'_> {
    pub(crate) fn lasting_number(&self, tenant: &TenantId) -> Result<(SessionId, i64)> {
        let known = session(self.conn, tenant)?;
        let (id, number) = match known {
            Some((id, number)) if !self.has_finished(&id)? => (id, number),
            Some((_, number)) => (self.new_session(tenant)?, number),
            None => (self.new_session(tenant)?, 0),
        };
        let put = "INSERT OR REPLACE INTO lasting_sessions VALUES (?1, ?2, ?3)";
        self.conn.prepare_cached(put)?.execute((&tenant.0, &id.0, number + 1))?;
        Ok((id, number))
    }

    pub(crate) fn remove_run(&self, tenant: &TenantId, id: &ModelId) -> Result<bool> {
        runs::run(self.conn, tenant, id)?;
        let insert = "INSERT OR IGNORE INTO removed_runs VALUES (?1, ?2, ?3)";
        let values = (&id.0, &tenant.0, self.now.as_microsecond());
        Ok(self.conn.prepare_cached(insert)?.execute(values)? > 0)
    }

    fn new_session(&self, tenant: &TenantId) -> Result<SessionId> {
        let new = NewSession {
            tags: vec!["lasting".to_owned()],
            user_metadata: serde_json::json!({}),
            sdk_version: String::new(),
            project_id: None,
            display_name: Some("clients that open no session".to_owned()),
        };
        Ok(self.create_session(tenant, &new, None)?.id)
    }

    fn has_finished(&self, id: &SessionId) -> Result<bool> {
        let select = "SELECT finished IS NOT NULL FROM sessions WHERE id = ?1";
        Ok(self.conn.prepare_cached(select)?.query_row([&id.0], |row| row.get(0))?)
    }
}

/// A tenant's lasting session and its next number.
pub(crate) fn session(conn: &Connection, tenant: &TenantId) -> Result<Option<(SessionId, i64)>> {
    let select = "SELECT session_id, next_number FROM lasting_sessions WHERE tenant = ?1";
    let mut select = conn.prepare_cached(select)?;
    let row = select.query_row([&tenant.0], |row| Ok((SessionId(row.get(0)?), row.get(1)?)));
    Ok(row.optional()?)
}

/// All of them.
pub(crate) fn sessions(conn: &Connection) -> Result<Vec<SessionId>> {
    let mut select = conn.prepare("SELECT session_id FROM lasting_sessions")?;
    let rows = select.query_map([], |row| row.get(0).map(SessionId))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn is_removed(conn: &Connection, tenant: &TenantId, id: &ModelId) -> Result<bool> {
    let select = "SELECT EXISTS (SELECT 1 FROM removed_runs WHERE model_id = ?1 AND tenant = ?2)";
    Ok(conn.prepare_cached(select)?.query_row((&id.0, &tenant.0), |row| row.get(0))?)
}
