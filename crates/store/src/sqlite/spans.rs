//! Statements about when operations waited and ran.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use tinsmith_types::ids::{RequestId, SessionId, TenantId};

use crate::{
    RequestKind, Result, Span,
    spans::SampleSpan,
    sqlite::{Tx, maybe_time, named, time},
};

impl Tx<'_> {
    /// Lets go of samples beyond the newest `spans_max`, and of those before `before`, in microseconds.
    pub(crate) fn drop_spans(&self, before: i64, spans_max: i64) -> Result<()> {
        // In the order of their ends, or nearly so.
        let old = "DELETE FROM sample_spans WHERE number <= coalesce(
             (SELECT number FROM sample_spans WHERE finished_at >= ?1 ORDER BY number LIMIT 1) - 1,
             (SELECT max(number) FROM sample_spans))";
        self.conn.execute(old, [before])?;
        let beyond =
            "DELETE FROM sample_spans WHERE number <= (SELECT max(number) FROM sample_spans) - ?1";
        self.conn.execute(beyond, [spans_max])?;
        Ok(())
    }
}

/// Writes a sample that has ended.
pub(crate) fn insert(
    conn: &Connection,
    span: &SampleSpan,
    now: (Timestamp, Duration),
) -> Result<()> {
    let micros = |time: Duration| SampleSpan::at(now, time).as_microsecond();
    conn.prepare_cached(
        "INSERT INTO sample_spans (tenant, sampler_id, session_id, request_id, created_at, started_at,
            finished_at, failed)
         VALUES (?1, ?2, (SELECT session_id FROM sampling_sessions WHERE id = ?2), ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute((
        &span.tenant.0,
        &span.sampler.0,
        &span.request_id.0,
        micros(span.created),
        span.started.map(micros),
        micros(span.finished.unwrap_or(now.1)),
        span.failed,
    ))?;
    Ok(())
}

/// The newest `limit` requests of the session's runs and the newest `limit` samples of its samplers.
pub(crate) fn of_session(
    conn: &Connection,
    tenant: &TenantId,
    id: &SessionId,
    limit: u32,
) -> Result<(Vec<Span>, bool)> {
    let mut select = conn.prepare_cached(
        "SELECT model_id AS target, requests.id AS request_id, kind, seq_id, requests.created_at,
            started_at, finished_at, state = 2 AS failed
         FROM runs JOIN requests ON model_id = runs.id
         WHERE session_id = ?1 AND runs.tenant = ?2 ORDER BY requests.number DESC LIMIT ?3",
    )?;
    let wanted = limit.saturating_add(1);
    let rows = select.query_map((&id.0, &tenant.0, wanted), |row| {
        Ok(Span {
            target: row.get("target")?,
            request_id: RequestId(row.get("request_id")?),
            kind: named(row, "kind")?,
            seq_id: Some(row.get("seq_id")?),
            created_at: time(row, "created_at")?,
            started_at: maybe_time(row, "started_at")?,
            finished_at: maybe_time(row, "finished_at")?,
            failed: row.get("failed")?,
        })
    })?;
    let mut found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut cut = found.len() > most;
    found.truncate(most);

    let mut select = conn.prepare_cached(
        "SELECT sampler_id, request_id, created_at, started_at, finished_at, failed
         FROM sample_spans WHERE session_id = ?1 AND tenant = ?2 ORDER BY number DESC LIMIT ?3",
    )?;
    let rows = select.query_map((&id.0, &tenant.0, wanted), |row| {
        Ok(Span {
            target: row.get("sampler_id")?,
            request_id: RequestId(row.get("request_id")?),
            kind: RequestKind::Sample,
            seq_id: None,
            created_at: time(row, "created_at")?,
            started_at: maybe_time(row, "started_at")?,
            finished_at: maybe_time(row, "finished_at")?,
            failed: row.get("failed")?,
        })
    })?;
    let mut samples = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    cut |= samples.len() > most;
    samples.truncate(most);
    found.append(&mut samples);
    Ok((found, cut))
}
