//! Statements about sampling sessions.

use rusqlite::{Connection, Row};
use serde_json::json;
use tinsmith_types::{
    futures::SAMPLES_PER_CLONE,
    ids::{ModelId, SamplingSessionId, SessionId, TenantId},
    path::{self, CheckpointPath},
};

use crate::{
    BlobId, CheckpointKind, NewSamplingSession, Result, SamplingSessionRecord,
    feeds::{BLOCK, FeedId, LostBlock},
    sqlite::{Tx, checkpoints::Name, found, runs, sessions, signed, time},
};

impl Tx<'_> {
    pub(crate) fn create_sampling_session(
        &self,
        tenant: &TenantId,
        new: &NewSamplingSession,
    ) -> Result<SamplingSessionRecord> {
        sessions::session(self.conn, tenant, &new.session_id)?;
        let made_by = (tenant, &new.digest);
        if self.repeats("sampling_sessions", &new.id.0, made_by, "sampling session")? {
            return sampling_session(self.conn, tenant, &new.id);
        }
        if let Some(blob) = &new.blob {
            self.check_blob(blob)?;
        }
        if let (Some(run), Some(blob)) = (&new.follows, &new.blob) {
            let upsert = "INSERT INTO moving_weights (model_id, tenant, blob) VALUES (?1, ?2, ?3)
                ON CONFLICT (model_id) DO UPDATE SET blob = excluded.blob";
            self.conn.prepare_cached(upsert)?.execute((&run.0, &tenant.0, &blob.0))?;
        }
        let own_blob = new.blob.as_ref().filter(|_| new.follows.is_none());
        self.conn
            .prepare_cached(
                "INSERT INTO sampling_sessions (id, tenant, session_id, base_model, base_digest,
                    model_path, blob, digest, created_at, follows)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute((
                &new.id.0,
                &tenant.0,
                &new.session_id.0,
                &new.base_model,
                &new.base_digest,
                &new.model_path,
                own_blob.map(|blob| &blob.0),
                new.digest,
                self.now.as_microsecond(),
                new.follows.as_ref().map(|run| &run.0),
            ))?;
        let details = json!({
            "actor": tenant,
            "sampling_session_id": new.id,
            "base_model": new.base_model,
            "model_path": new.model_path,
        });
        self.audit(tenant, "sampler_create", &details)?;
        if let Some(path) = &new.model_path {
            self.audit_sampling(tenant, path)?;
        }
        sampling_session(self.conn, tenant, &new.id)
    }

    /// Notes that a checkpoint is sampled from.
    fn audit_sampling(&self, tenant: &TenantId, path: &str) -> Result<()> {
        let Ok(path) = path.parse::<CheckpointPath>() else { return Ok(()) };
        let kind = match path.kind {
            path::CheckpointKind::Weights => CheckpointKind::Weights,
            path::CheckpointKind::SamplerWeights => CheckpointKind::SamplerWeights,
            path::CheckpointKind::ExternalWeights => CheckpointKind::ExternalWeights,
        };
        let owner =
            runs::owner(self.conn, &path.run)?.map_or_else(|| tenant.clone(), |run| run.tenant);
        let name = Name { model: path.run, kind, name: path.name };
        self.audit_read((&owner, tenant), &name, "sample")
    }

    /// The next number of a client.
    pub(crate) fn join_sampler(&self, tenant: &TenantId, id: &SamplingSessionId) -> Result<i64> {
        let update =
            "UPDATE sampling_sessions SET clones = clones + 1 WHERE id = ?1 AND tenant = ?2
            RETURNING clones";
        let mut update = self.conn.prepare_cached(update)?;
        let joined = update.query_row((&id.0, &tenant.0), |row| row.get(0));
        found(joined, || format!("sampling session {id}"))
    }

    /// Writes down that samples of this start may have numbers of this block.
    pub(crate) fn note_sample_block(&self, id: &SamplingSessionId, block: i64) -> Result<()> {
        let insert = "INSERT OR IGNORE INTO sample_blocks (sampling_session_id, start_id, block)
            VALUES (?1, ?2, ?3)";
        let start = &self.shared.starts.current;
        self.conn.prepare_cached(insert)?.execute((&id.0, start, block))?;
        Ok(())
    }

    /// Drops the blocks of samples that nobody waits for, and those of samplers that are gone.
    pub(crate) fn drop_sample_blocks(&self) -> Result<()> {
        // Taken here, on the writer's thread: who submits to such a block from now on writes it down again,
        // behind this.
        let idle = self.shared.index().samples.take_idle_blocks();
        let delete = "DELETE FROM sample_blocks
            WHERE sampling_session_id = ?1 AND start_id = ?2 AND block = ?3";
        let mut delete = self.conn.prepare_cached(delete)?;
        for (id, block) in idle {
            delete.execute((&id.0, &self.shared.starts.current, block))?;
        }
        self.conn.execute(
            "DELETE FROM sample_blocks WHERE NOT EXISTS
                (SELECT 1 FROM sampling_sessions WHERE id = sampling_session_id)",
            [],
        )?;
        Ok(())
    }

    /// A client has been told of everything that it lost with earlier starts.
    pub(crate) fn forget_lost(&self, feed: &FeedId) -> Result<()> {
        let delete = "DELETE FROM sample_blocks
            WHERE sampling_session_id = ?1 AND start_id <> ?2 AND block BETWEEN ?3 AND ?4";
        let (first, last) = blocks(feed);
        self.conn.prepare_cached(delete)?.execute((
            &feed.sampler.0,
            &self.shared.starts.current,
            first,
            last,
        ))?;
        Ok(())
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
        self.conn.execute(
            "DELETE FROM moving_weights WHERE NOT EXISTS
                (SELECT 1 FROM sampling_sessions WHERE follows = model_id)",
            [],
        )?;
        Ok(())
    }
}

/// At most `max` blocks in which starts other than `current` may have left samples of a client without an end.
pub(crate) fn lost_blocks(
    conn: &Connection,
    feed: &FeedId,
    current: &str,
    max: usize,
) -> Result<Vec<LostBlock>> {
    let mut select = conn.prepare_cached(
        "SELECT start_id, block FROM sample_blocks
         WHERE sampling_session_id = ?1 AND start_id <> ?2 AND block BETWEEN ?3 AND ?4
         ORDER BY block DESC LIMIT ?5",
    )?;
    let (first, last) = blocks(feed);
    let rows = select
        .query_map((&feed.sampler.0, current, first, last, signed(max as u64)), |row| {
            Ok(LostBlock { start: row.get(0)?, block: row.get(1)? })
        })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The first and the last block of a client; no block belongs to two.
fn blocks(feed: &FeedId) -> (i64, i64) {
    const _: () = assert!(SAMPLES_PER_CLONE % BLOCK == 0);
    let per_clone = SAMPLES_PER_CLONE / BLOCK;
    let first = feed.clone.saturating_mul(per_clone);
    (first, first.saturating_add(per_clone - 1))
}

pub(crate) fn sampling_session(
    conn: &Connection,
    tenant: &TenantId,
    id: &SamplingSessionId,
) -> Result<SamplingSessionRecord> {
    let select = "SELECT sampling_sessions.*, coalesce(moving_weights.blob, sampling_sessions.blob) AS newest
        FROM sampling_sessions LEFT JOIN moving_weights ON model_id = follows
        WHERE id = ?1 AND sampling_sessions.tenant = ?2";
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
        blob: row.get::<_, Option<String>>("newest")?.map(BlobId),
        follows: row.get::<_, Option<String>>("follows")?.map(ModelId),
        created_at: time(row, "created_at")?,
    })
}
