//! Statements about runs and their snapshots.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::json;
use tinsmith_types::ids::{ModelId, SeqId, SessionId, TenantId};

use crate::{
    BlobId, CheckpointRecord, Error, NewCheckpoint, NewCopy, NewImport, NewRun, Result, RunRecord,
    SnapshotRecord,
    sessions::DEFAULT_PROJECT,
    sqlite::{
        self, Tx,
        checkpoints::{self, Name},
        found, sessions, text, time, unsigned,
    },
};

impl Tx<'_> {
    pub(crate) fn insert_run(&self, tenant: &TenantId, id: &ModelId, new: &NewRun) -> Result<()> {
        sessions::session(self.conn, tenant, &new.session_id)?;
        self.conn
            .prepare_cached(
                "INSERT INTO runs (id, tenant, session_id, base_model, base_digest, lora,
                    optimizer_config, user_metadata, kernel_set, created_at, last_request_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10)",
            )?
            .execute((
                &id.0,
                &tenant.0,
                &new.session_id.0,
                &new.base_model,
                &new.base_digest,
                text(&new.lora)?,
                new.optimizer_config.to_string(),
                new.user_metadata.to_string(),
                &new.kernel_set,
                self.now.as_microsecond(),
            ))?;
        let details = json!({
            "actor": tenant,
            "model_id": id,
            "session_id": new.session_id,
            "base_model": new.base_model,
        });
        self.audit(tenant, "training_run_create", &details)
    }

    pub(crate) fn import(&self, tenant: &TenantId, new: &NewImport) -> Result<RunRecord> {
        let session_id = &new.run.session_id;
        let id = ModelId::of(session_id, 0);
        self.insert_run(tenant, &id, &new.run)?;
        // Nothing was requested of it, and nothing has to be replayed.
        let update = "UPDATE runs SET ready = 1 WHERE id = ?1";
        self.conn.prepare_cached(update)?.execute([&id.0])?;
        for &kind in &new.kinds {
            self.save_checkpoint(
                tenant,
                &NewCheckpoint {
                    model_id: id.clone(),
                    kind,
                    name: new.name.clone(),
                    blob: new.blob.clone(),
                    size_bytes: new.size_bytes,
                    expires_at: None,
                    user_metadata: BTreeMap::new(),
                    overwrite: false,
                },
            )?;
        }
        self.finish_session(tenant, session_id, ("success", None), None)?;
        run(self.conn, tenant, &id)
    }

    /// The copy, made now or by an earlier call with the same source.
    pub(crate) fn copy(&self, tenant: &TenantId, new: &NewCopy) -> Result<CheckpointRecord> {
        let NewCheckpoint { model_id: id, kind, name, .. } = &new.checkpoint;
        let name = Name { model: id.clone(), kind: *kind, name: name.clone() };
        if let Some(owner) = owner(self.conn, id)? {
            if owner.tenant == *tenant && owner.copied_from.as_ref() == Some(&new.source) {
                return checkpoints::checkpoint(self.conn, tenant, &name, self.now);
            }
            return Err(Error::Conflict { what: format!("run {id}") });
        }
        self.insert_run(tenant, id, &new.run)?;
        let update = "UPDATE runs SET ready = 1, copied_from = ?2 WHERE id = ?1";
        self.conn.prepare_cached(update)?.execute((&id.0, &new.source))?;
        self.save_checkpoint(tenant, &new.checkpoint)?;
        if new.ends_session {
            self.finish_session(tenant, &new.run.session_id, ("success", None), None)?;
        }
        checkpoints::checkpoint(self.conn, tenant, &name, self.now)
    }

    pub(crate) fn mark_run(
        &self,
        tenant: &TenantId,
        id: &ModelId,
        corrupted: Option<&str>,
        note: Option<&str>,
    ) -> Result<()> {
        let update =
            "UPDATE runs SET corrupted = coalesce(?3, corrupted), note = coalesce(?4, note)
             WHERE id = ?1 AND tenant = ?2";
        let rows =
            self.conn.prepare_cached(update)?.execute((&id.0, &tenant.0, corrupted, note))?;
        if rows == 0 { Err(run_not_found(id)) } else { Ok(()) }
    }

    /// Replaces the run's snapshot and lets go of the bodies that it makes needless.
    pub(crate) fn put_snapshot(&self, id: &ModelId, new: &SnapshotRecord) -> Result<()> {
        let exists = "SELECT 1 FROM runs WHERE id = ?1";
        found(self.conn.prepare_cached(exists)?.query_row([&id.0], |_| Ok(())), || {
            format!("run {id}")
        })?;
        self.check_blob(&new.blob)?;
        let before = snapshot(self.conn, id)?.map_or(-1, |old| old.applied_seq.0);
        let pending = "SELECT EXISTS (SELECT 1 FROM requests
             WHERE model_id = ?1 AND seq_id <= ?2 AND seq_id > ?3 AND state = 0)";
        let range = (&id.0, new.applied_seq.0, before);
        let pending: bool =
            self.conn.prepare_cached(pending)?.query_row(range, |row| row.get(0))?;
        if before > new.applied_seq.0 || pending {
            // Its effect would be lost, or come twice after a restart.
            return Err(Error::Conflict {
                what: format!("snapshot of {id} at {}", new.applied_seq),
            });
        }
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO snapshots VALUES (?1, ?2, ?3)")?
            .execute((&id.0, new.applied_seq.0, &new.blob.0))?;
        self.conn
            .prepare_cached(
                "UPDATE requests SET body = NULL, body_segment = NULL, body_offset = NULL,
                    body_length = NULL, body_blake3 = NULL
                 WHERE model_id = ?1 AND seq_id <= ?2 AND seq_id > ?3
                    AND (body IS NOT NULL OR body_segment IS NOT NULL)",
            )?
            .execute(range)?;
        Ok(())
    }
}

/// What admission needs to know of a run.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) tenant: TenantId,
    pub(crate) session_id: SessionId,
    pub(crate) next_seq: i64,
    pub(crate) copied_from: Option<String>,
}

pub(crate) fn owner(conn: &Connection, id: &ModelId) -> Result<Option<Owner>> {
    let mut select = conn.prepare_cached(
        "SELECT tenant, session_id, next_seq, copied_from FROM runs WHERE id = ?1",
    )?;
    let row = select.query_row([&id.0], |row| {
        Ok(Owner {
            tenant: TenantId(row.get(0)?),
            session_id: SessionId(row.get(1)?),
            next_seq: row.get(2)?,
            copied_from: row.get(3)?,
        })
    });
    Ok(row.optional()?)
}

pub(crate) fn run(conn: &Connection, tenant: &TenantId, id: &ModelId) -> Result<RunRecord> {
    let mut select = conn.prepare_cached("SELECT * FROM runs WHERE id = ?1 AND tenant = ?2")?;
    found(select.query_row((&id.0, &tenant.0), record), || format!("run {id}"))
}

pub(crate) fn runs(
    conn: &Connection,
    tenant: &TenantId,
    project: Option<&str>,
    (limit, offset): (u32, u32),
) -> Result<(Vec<RunRecord>, u64)> {
    let mut select = conn.prepare_cached(
        "SELECT * FROM runs WHERE tenant = ?1 AND (?2 IS NULL OR ?2 =
            (SELECT coalesce(project_id, ?3) FROM sessions WHERE sessions.id = session_id))
         ORDER BY number DESC LIMIT ?4 OFFSET ?5",
    )?;
    let page = select.query_map((&tenant.0, project, DEFAULT_PROJECT, limit, offset), record)?;
    let page = page.collect::<rusqlite::Result<_>>()?;
    let mut count = conn.prepare_cached(
        "SELECT count(*) FROM runs WHERE tenant = ?1 AND (?2 IS NULL OR ?2 =
            (SELECT coalesce(project_id, ?3) FROM sessions WHERE sessions.id = session_id))",
    )?;
    let count = count.query_row((&tenant.0, project, DEFAULT_PROJECT), |row| row.get(0))?;
    Ok((page, unsigned(count)))
}

pub(crate) fn snapshot(conn: &Connection, id: &ModelId) -> Result<Option<SnapshotRecord>> {
    let mut select =
        conn.prepare_cached("SELECT applied_seq, blob FROM snapshots WHERE model_id = ?1")?;
    let row = select.query_row([&id.0], |row| {
        Ok(SnapshotRecord { applied_seq: SeqId(row.get(0)?), blob: BlobId(row.get(1)?) })
    });
    Ok(row.optional()?)
}

/// Every run, with the id below which nothing is awaited.
pub(crate) fn next_seqs(conn: &Connection) -> Result<Vec<(ModelId, SeqId)>> {
    let mut select = conn.prepare("SELECT id, next_seq FROM runs")?;
    let rows = select.query_map([], |row| Ok((ModelId(row.get(0)?), SeqId(row.get(1)?))))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn run_not_found(id: &ModelId) -> Error {
    Error::NotFound { what: format!("run {id}") }
}

fn record(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    Ok(RunRecord {
        tenant: TenantId(row.get("tenant")?),
        id: ModelId(row.get("id")?),
        session_id: SessionId(row.get("session_id")?),
        base_model: row.get("base_model")?,
        base_digest: row.get("base_digest")?,
        lora: sqlite::json(row, "lora")?,
        optimizer_config: sqlite::json(row, "optimizer_config")?,
        user_metadata: sqlite::json(row, "user_metadata")?,
        kernel_set: row.get("kernel_set")?,
        created_at: time(row, "created_at")?,
        last_request_at: time(row, "last_request_at")?,
        ready: row.get("ready")?,
        corrupted: row.get("corrupted")?,
        note: row.get("note")?,
        copied_from: row.get("copied_from")?,
    })
}
