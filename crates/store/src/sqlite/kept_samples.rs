//! Statements about kept samples and their samplers.

use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};
use tinsmith_types::ids::{ModelId, RequestId, SamplingSessionId, TenantId};

use crate::{
    Error, KeptSample, KeptSampler, Outcome, Result,
    sqlite::{Tx, found, json, text, unsigned},
};

impl Tx<'_> {
    pub(crate) fn keep_sample(
        &self,
        tenant: &TenantId,
        sampler: &KeptSampler,
        body: &Bytes,
    ) -> Result<RequestId> {
        let id = &sampler.sampler;
        let saved_by = sampler.saved_by.as_ref();
        let made = "SELECT EXISTS (SELECT 1 FROM sampling_sessions WHERE id = ?1 AND tenant = ?2)
             OR EXISTS (SELECT 1 FROM requests WHERE id = ?3 AND tenant = ?2)";
        let values = (&id.0, &tenant.0, saved_by.map(|(_, request)| &request.0));
        let made: bool = self.conn.prepare_cached(made)?.query_row(values, |row| row.get(0))?;
        if !made {
            return Err(Error::NotFound { what: format!("sampling session {id}") });
        }
        self.make_room(body.len())?;
        let insert = "INSERT OR IGNORE INTO kept_samplers VALUES (?1, ?2, ?3, ?4, ?5)";
        self.conn.prepare_cached(insert)?.execute((
            &id.0,
            &tenant.0,
            &sampler.source,
            saved_by.map(|(model, _)| &model.0),
            saved_by.map(|(_, request)| &request.0),
        ))?;
        let sample = RequestId(format!("kept-{}", uuid::Uuid::new_v4().simple()));
        let insert = "INSERT INTO kept_samples (id, tenant, sampler, body, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5)";
        let values = (&sample.0, &tenant.0, &id.0, &body[..], self.now.as_microsecond());
        self.conn.prepare_cached(insert)?.execute(values)?;
        Ok(sample)
    }

    pub(crate) fn finish_kept_sample(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        outcome: &Outcome,
    ) -> Result<()> {
        let (result, failure) = match outcome {
            Outcome::Done(result) => (Some(&result[..]), None),
            Outcome::Failed(failure) => (None, Some(text(failure)?)),
        };
        let update =
            "UPDATE kept_samples SET finished_at = ?3, result = ?4, failure = ?5, body = x''
             WHERE id = ?1 AND tenant = ?2 AND finished_at IS NULL";
        let now = self.now.as_microsecond();
        self.conn.prepare_cached(update)?.execute((&id.0, &tenant.0, now, result, failure))?;
        Ok(())
    }

    pub(crate) fn drop_kept_samples(&self, finished: Duration, all: Duration) -> Result<()> {
        let before = |age: Duration| {
            let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
            self.now.as_microsecond().saturating_sub(micros)
        };
        let delete = "DELETE FROM kept_samples WHERE finished_at <= ?1 OR created_at <= ?2";
        self.conn.execute(delete, (before(finished), before(all)))?;
        // Those of base models cost nothing; the newest of a run may serve again.
        let idle = "SELECT sampler FROM kept_samplers
             WHERE (source LIKE 'checkpoint %' OR (save_request IS NOT NULL
                AND save_request IS NOT (SELECT id FROM requests
                    WHERE requests.model_id = kept_samplers.model_id
                    ORDER BY seq_id DESC LIMIT 1)))
                AND NOT EXISTS (SELECT 1 FROM kept_samples
                    WHERE kept_samples.sampler = kept_samplers.sampler AND finished_at IS NULL)";
        self.conn.execute(&format!("DELETE FROM sampling_sessions WHERE id IN ({idle})"), [])?;
        self.conn.execute(&format!("DELETE FROM kept_samplers WHERE sampler IN ({idle})"), [])?;
        Ok(())
    }

    /// Lets the oldest that have ended go until another fits, within the limits of samples in memory.
    fn make_room(&self, bytes: usize) -> Result<()> {
        let config = &self.shared.config;
        let held = "SELECT count(*), coalesce(sum(length(body) + coalesce(length(result), 0)), 0)
             FROM kept_samples";
        let oldest = "DELETE FROM kept_samples WHERE number IN (SELECT number FROM kept_samples
             WHERE finished_at IS NOT NULL ORDER BY finished_at LIMIT 100)";
        loop {
            let (count, held) = self
                .conn
                .prepare_cached(held)?
                .query_row([], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))?;
            let fits = |held: u64, max: usize| usize::try_from(held).is_ok_and(|held| held <= max);
            if fits(count + 1, config.samples_max)
                && fits(held.saturating_add(bytes as u64), config.sample_bytes_max)
            {
                return Ok(());
            }
            if self.conn.prepare_cached(oldest)?.execute([])? == 0 {
                return Err(Error::Full);
            }
        }
    }
}

pub(crate) fn sample(conn: &Connection, tenant: &TenantId, id: &RequestId) -> Result<KeptSample> {
    let mut select = conn.prepare_cached(
        "SELECT body, finished_at, result, failure, kept_samples.sampler AS sampler, source,
            model_id, save_request
         FROM kept_samples LEFT JOIN kept_samplers USING (sampler)
         WHERE id = ?1 AND kept_samples.tenant = ?2",
    )?;
    let row = select.query_row((&id.0, &tenant.0), |row| {
        let result: Option<Vec<u8>> = row.get("result")?;
        let outcome = match (row.get::<_, Option<i64>>("finished_at")?, result) {
            (None, _) => None,
            (Some(_), Some(result)) => Some(Outcome::Done(result.into())),
            (Some(_), None) => Some(Outcome::Failed(json(row, "failure")?)),
        };
        let body: Vec<u8> = row.get("body")?;
        Ok(KeptSample { sampler: kept_sampler(row)?, body: body.into(), outcome })
    });
    found(row, || format!("request {id}"))
}

pub(crate) fn sampler(
    conn: &Connection,
    tenant: &TenantId,
    source: &str,
) -> Result<Option<KeptSampler>> {
    let mut select = conn.prepare_cached(
        "SELECT sampler, source, model_id, save_request FROM kept_samplers
         WHERE tenant = ?1 AND source = ?2 AND (save_request IS NULL OR (save_request =
            (SELECT id FROM requests WHERE requests.model_id = kept_samplers.model_id
                ORDER BY seq_id DESC LIMIT 1)
            AND EXISTS (SELECT 1 FROM requests WHERE id = save_request AND state < 2)))
         LIMIT 1",
    )?;
    Ok(select.query_row((&tenant.0, source), kept_sampler).optional()?)
}

fn kept_sampler(row: &Row<'_>) -> rusqlite::Result<KeptSampler> {
    let model: Option<String> = row.get("model_id")?;
    let request: Option<String> = row.get("save_request")?;
    Ok(KeptSampler {
        sampler: SamplingSessionId(row.get("sampler")?),
        source: row.get::<_, Option<String>>("source")?.unwrap_or_default(),
        saved_by: model.map(ModelId).zip(request.map(RequestId)),
    })
}
