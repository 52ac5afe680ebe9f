//! Statements about what samples drew, where they asked for it to be remembered.

use rusqlite::{Connection, OptionalExtension};
use tinsmith_types::{
    ids::{RequestId, SequenceId, SessionId, TenantId},
    proto::pack::{pack_f32, pack_i32, unpack_f32, unpack_i32},
};

use crate::{
    Error, RecordedSample, RecordedSequence, Result,
    sqlite::{Tx, signed},
};

impl Tx<'_> {
    /// Writes down what a sample drew, and drops the oldest recordings beyond the limit. Nothing is written
    /// where nobody could refer to it: the session has ended, or the sample was written down before.
    pub(crate) fn record_sample(&self, id: &RequestId, sample: &RecordedSample) -> Result<()> {
        let newest = "SELECT coalesce(max(end_bytes), 0) FROM recorded_samples";
        let newest: i64 = self.conn.prepare_cached(newest)?.query_row([], |row| row.get(0))?;
        let end = newest.saturating_add(signed(sample.bytes()));
        let number = self
            .conn
            .prepare_cached(
                "INSERT INTO recorded_samples (request_id, tenant, session_id, prompt, end_bytes)
                 SELECT ?1, sampling_sessions.tenant, sessions.id, ?3, ?4
                 FROM sampling_sessions JOIN sessions ON sessions.id = session_id
                 WHERE sampling_sessions.id = ?2 AND finished IS NULL
                 ON CONFLICT DO NOTHING RETURNING number",
            )?
            .query_row((&id.0, &sample.sampler.0, &*words(&sample.prompt), end), |row| {
                row.get::<_, i64>(0)
            })
            .optional()?;
        let Some(number) = number else { return Ok(()) };
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO recorded_sequences (id, sample, tokens, logprobs) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for (index, (tokens, logprobs)) in sample.sequences.iter().enumerate() {
            let id = SequenceId::of(id, index).0;
            insert.execute((id, number, &*words(tokens), &*pack_f32(logprobs)))?;
        }
        let kept = signed(self.shared.config.recorded_bytes_max);
        self.conn
            .prepare_cached("DELETE FROM recorded_samples WHERE end_bytes <= ?1")?
            .execute([end.saturating_sub(kept)])?;
        Ok(())
    }

    /// Drops what the samples of a session drew.
    pub(crate) fn drop_recordings(&self, session: &SessionId) -> Result<()> {
        let delete = "DELETE FROM recorded_samples WHERE session_id = ?1";
        self.conn.prepare_cached(delete)?.execute([&session.0])?;
        Ok(())
    }
}

/// What was recorded of a sequence; `None`: nothing, or it is another tenant's.
pub(crate) fn recorded_sequence(
    conn: &Connection,
    tenant: &TenantId,
    id: &SequenceId,
) -> Result<Option<RecordedSequence>> {
    let select = "SELECT prompt, tokens, logprobs FROM recorded_sequences
         JOIN recorded_samples ON number = sample WHERE id = ?1 AND tenant = ?2";
    let row = conn.prepare_cached(select)?.query_row((&id.0, &tenant.0), |row| {
        Ok([row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get(2)?])
    });
    let Some([prompt, tokens, logprobs]) = row.optional()? else { return Ok(None) };
    let damaged = |_| Error::Corrupted { what: format!("recording of sequence {id}") };
    let ids = |bytes: &[u8]| -> Result<Vec<u32>> {
        let signed = unpack_i32(bytes).map_err(damaged)?;
        Ok(signed.into_iter().map(i32::cast_unsigned).collect())
    };
    let logprobs = unpack_f32(&logprobs).map_err(damaged)?;
    Ok(Some(RecordedSequence { prompt: ids(&prompt)?, tokens: ids(&tokens)?, logprobs }))
}

fn words(tokens: &[u32]) -> bytes::Bytes {
    pack_i32(&tokens.iter().copied().map(u32::cast_signed).collect::<Vec<_>>())
}
