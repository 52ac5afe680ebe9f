//! Statements that find sessions.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use tinsmith_types::ids::{ModelId, SessionId, TenantId};

use crate::{
    FoundSession, Result, SearchPage, SessionRecord, SessionSearch, SessionStatus,
    sessions::EXPIRED,
    sqlite::{sessions::record, unsigned},
};

/// Sessions that are looked at for one page.
const ROWS_MAX: usize = 100_000;

/// A page, newest first, and where the next one begins.
pub(crate) fn search(
    conn: &Connection,
    tenant: &TenantId,
    search: &SessionSearch,
    now: Timestamp,
) -> Result<SearchPage> {
    let mut select = conn.prepare_cached(
        "SELECT * FROM sessions WHERE tenant = ?1 AND (created_at, id) < (?2, ?3)
         ORDER BY created_at DESC, id DESC",
    )?;
    let (before, id) = match &search.after {
        Some((at, id)) => (at.as_microsecond(), id.as_str()),
        None => (i64::MAX, ""),
    };
    let mut rows = select.query((&tenant.0, before, id))?;
    let mut sessions: Vec<FoundSession> = Vec::new();
    let mut last = None;
    let mut looked_at = 0;
    while let Some(row) = rows.next()? {
        let record = record(row)?;
        let place = (record.created_at, record.id.clone());
        looked_at += 1;
        if search.passes(&record) {
            let status = status(conn, &record)?;
            if search.wants(&status) {
                if sessions.len() == search.limit {
                    // It shows that there is a next page, and begins it.
                    return Ok(SearchPage { sessions, next: last });
                }
                let (checkpoints, checkpoint_bytes) = checkpoints(conn, &record.id, now)?;
                sessions.push(FoundSession { record, status, checkpoints, checkpoint_bytes });
            }
        }
        last = Some(place);
        if looked_at == ROWS_MAX {
            return Ok(SearchPage { sessions, next: last });
        }
    }
    Ok(SearchPage { sessions, next: None })
}

/// What its client said of its end comes first, as it is the client's.
fn status(conn: &Connection, record: &SessionRecord) -> Result<SessionStatus> {
    if let Some(reason) = record.finished.as_ref().filter(|reason| *reason != EXPIRED) {
        let detail = record.finish_detail.clone();
        return Ok(SessionStatus::ClientFinished { reason: reason.clone(), detail });
    }
    let mut select = conn.prepare_cached(
        "SELECT id, corrupted FROM runs WHERE session_id = ?1 AND corrupted IS NOT NULL LIMIT 1",
    )?;
    let corrupted = select.query_row([&record.id.0], |row| Ok((ModelId(row.get(0)?), row.get(1)?)));
    if let Some((model_id, message)) = corrupted.optional()? {
        return Ok(SessionStatus::Failed { model_id, message });
    }
    Ok(if record.finished.is_some() { SessionStatus::Cancelled } else { SessionStatus::Active })
}

fn checkpoints(conn: &Connection, id: &SessionId, now: Timestamp) -> Result<(u64, u64)> {
    let mut select = conn.prepare_cached(
        "SELECT count(*), coalesce(sum(size_bytes), 0)
         FROM runs JOIN checkpoints ON model_id = runs.id
         WHERE session_id = ?1 AND (expires_at IS NULL OR expires_at > ?2)",
    )?;
    let row = select.query_row((&id.0, now.as_microsecond()), |row| {
        Ok((unsigned(row.get(0)?), unsigned(row.get(1)?)))
    });
    Ok(row?)
}
