//! Statements about checkpoints. An expired one is as good as gone, though its row may still stand.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::{Map, Value};
use tinsmith_types::ids::{ModelId, TenantId};

use crate::{
    BlobId, CheckpointFilter, CheckpointKind, CheckpointRecord, Error, NewCheckpoint, Result,
    UsageKind,
    sessions::DEFAULT_PROJECT,
    sqlite::{
        Tx, json, maybe_time, named,
        runs::{owner, run_not_found},
        signed, text, time, unsigned,
    },
};

/// Whether a name was free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Saved {
    Saved,
    Taken,
}

/// A checkpoint's name within its run.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) model: ModelId,
    pub(crate) kind: CheckpointKind,
    pub(crate) name: String,
}

impl Name {
    fn not_found(&self) -> Error {
        Error::NotFound { what: format!("checkpoint `{}` of {}", self.name, self.model) }
    }
}

impl NewCheckpoint {
    fn name(&self) -> Name {
        Name { model: self.model_id.clone(), kind: self.kind, name: self.name.clone() }
    }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

impl Tx<'_> {
    pub(crate) fn save_checkpoint(&self, tenant: &TenantId, new: &NewCheckpoint) -> Result<Saved> {
        if owner(self.conn, &new.model_id)?.is_none_or(|owner| owner.tenant != *tenant) {
            return Err(run_not_found(&new.model_id));
        }
        self.check_blob(&new.blob)?;
        let kind = text(&new.kind)?;
        let key = (&new.model_id.0, &kind, &new.name);
        let select = "SELECT expires_at FROM checkpoints
             WHERE model_id = ?1 AND kind = ?2 AND name = ?3";
        let expires_at: Option<Option<i64>> =
            self.conn.prepare_cached(select)?.query_row(key, |row| row.get(0)).optional()?;
        let now = self.now.as_microsecond();
        if let Some(expires_at) = expires_at {
            if !new.overwrite && expires_at.is_none_or(|at| at > now) {
                return Ok(Saved::Taken);
            }
            self.accrue_storage_of(&new.name())?;
            let delete = "DELETE FROM checkpoints WHERE model_id = ?1 AND kind = ?2 AND name = ?3";
            self.conn.prepare_cached(delete)?.execute(key)?;
        }
        self.conn
            .prepare_cached(
                "INSERT INTO checkpoints (tenant, model_id, kind, name, blob, size_bytes,
                    created_at, expires_at, user_metadata)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute((
                &tenant.0,
                &new.model_id.0,
                &kind,
                &new.name,
                &new.blob.0,
                signed(new.size_bytes),
                now,
                new.expires_at.map(Timestamp::as_microsecond),
                text(&new.user_metadata)?,
            ))?;
        self.add_usage(&new.model_id, UsageKind::Checkpoint, 1)?;
        let more = object([("size_bytes", new.size_bytes.into())]);
        self.audit_checkpoint((tenant, tenant), "checkpoint_create", &new.name(), more)?;
        Ok(Saved::Saved)
    }

    pub(crate) fn delete_checkpoint(&self, tenant: &TenantId, name: &Name) -> Result<()> {
        self.owned(tenant, name)?;
        self.accrue_storage_of(name)?;
        self.audit_checkpoint((tenant, tenant), "checkpoint_delete", name, Map::new())?;
        let delete = "DELETE FROM checkpoints WHERE model_id = ?1 AND kind = ?2 AND name = ?3";
        let key = (&name.model.0, text(&name.kind)?, &name.name);
        self.conn.prepare_cached(delete)?.execute(key)?;
        Ok(())
    }

    pub(crate) fn set_public(&self, tenant: &TenantId, name: &Name, public: bool) -> Result<()> {
        self.owned(tenant, name)?;
        let update = "UPDATE checkpoints SET public = ?4
             WHERE model_id = ?1 AND kind = ?2 AND name = ?3";
        let key = (&name.model.0, text(&name.kind)?, &name.name, public);
        self.conn.prepare_cached(update)?.execute(key)?;
        let event = if public { "checkpoint_publish" } else { "checkpoint_unpublish" };
        self.audit_checkpoint((tenant, tenant), event, name, Map::new())
    }

    pub(crate) fn set_expiry(
        &self,
        tenant: &TenantId,
        name: &Name,
        expires_at: Option<Timestamp>,
    ) -> Result<()> {
        self.owned(tenant, name)?;
        let update = "UPDATE checkpoints SET expires_at = ?4
             WHERE model_id = ?1 AND kind = ?2 AND name = ?3";
        let micros = expires_at.map(Timestamp::as_microsecond);
        let key = (&name.model.0, text(&name.kind)?, &name.name, micros);
        self.conn.prepare_cached(update)?.execute(key)?;
        let at = expires_at.map_or(Value::Null, |at| at.to_string().into());
        let more = object([("expires_at", at)]);
        self.audit_checkpoint((tenant, tenant), "checkpoint_ttl_set", name, more)
    }

    pub(crate) fn drop_expired_checkpoints(&self) -> Result<()> {
        let now = self.now.as_microsecond();
        let expired: Vec<CheckpointRecord> = {
            let select = "SELECT * FROM checkpoints WHERE expires_at <= ?1";
            let mut select = self.conn.prepare_cached(select)?;
            select.query_map([now], record)?.collect::<rusqlite::Result<_>>()?
        };
        for gone in expired {
            let name = Name { model: gone.model_id, kind: gone.kind, name: gone.name };
            let more = Map::new();
            self.audit_checkpoint((&gone.tenant, &gone.tenant), "checkpoint_expire", &name, more)?;
        }
        let delete = "DELETE FROM checkpoints WHERE expires_at <= ?1";
        self.conn.prepare_cached(delete)?.execute([now])?;
        Ok(())
    }

    fn owned(&self, tenant: &TenantId, name: &Name) -> Result<()> {
        let record = checkpoint(self.conn, tenant, name, self.now)?;
        if record.tenant == *tenant { Ok(()) } else { Err(name.not_found()) }
    }
}

/// A checkpoint of the tenant's own, or a public one.
pub(crate) fn checkpoint(
    conn: &Connection,
    tenant: &TenantId,
    name: &Name,
    now: Timestamp,
) -> Result<CheckpointRecord> {
    let mut select = conn.prepare_cached(
        "SELECT * FROM checkpoints WHERE model_id = ?1 AND kind = ?2 AND name = ?3
            AND (tenant = ?4 OR public = 1) AND (expires_at IS NULL OR expires_at > ?5)",
    )?;
    let key = (&name.model.0, text(&name.kind)?, &name.name, &tenant.0, now.as_microsecond());
    select.query_row(key, record).optional()?.ok_or_else(|| name.not_found())
}

/// Whether a checkpoint names the blob.
pub(crate) fn names(conn: &Connection, blob: &BlobId, now: Timestamp) -> Result<bool> {
    let mut select = conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM checkpoints
            WHERE blob = ?1 AND (expires_at IS NULL OR expires_at > ?2))",
    )?;
    Ok(select.query_row((&blob.0, now.as_microsecond()), |row| row.get(0))?)
}

pub(crate) fn checkpoints(
    conn: &Connection,
    tenant: &TenantId,
    filter: &CheckpointFilter,
    (limit, offset): (u32, u32),
    now: Timestamp,
) -> Result<(Vec<CheckpointRecord>, u64)> {
    let CheckpointFilter { model_id, kind, without, project_id } = filter;
    let (kind, without) =
        (kind.as_ref().map(text).transpose()?, without.as_ref().map(text).transpose()?);
    let model_id = model_id.as_ref().map(ModelId::as_str);
    let now = now.as_microsecond();
    let wanted = (&tenant.0, now, model_id, kind, without, project_id, DEFAULT_PROJECT);
    let select = format!(
        "SELECT * FROM checkpoints WHERE {FILTER} ORDER BY number DESC LIMIT {limit} OFFSET {offset}"
    );
    let mut select = conn.prepare(&select)?;
    let page = select.query_map(wanted.clone(), record)?.collect::<rusqlite::Result<_>>()?;
    let mut count =
        conn.prepare_cached(&format!("SELECT count(*) FROM checkpoints WHERE {FILTER}"))?;
    Ok((page, unsigned(count.query_row(wanted, |row| row.get(0))?)))
}

/// Of a [`CheckpointFilter`]: parameters 3 to 6 may be null.
const FILTER: &str = "tenant = ?1 AND (expires_at IS NULL OR expires_at > ?2)
    AND (?3 IS NULL OR model_id = ?3) AND (?4 IS NULL OR kind = ?4)
    AND (?5 IS NULL OR kind <> ?5) AND (?6 IS NULL OR ?6 = (SELECT coalesce(project_id, ?7)
        FROM runs JOIN sessions ON sessions.id = session_id WHERE runs.id = model_id))";

fn record(row: &Row<'_>) -> rusqlite::Result<CheckpointRecord> {
    Ok(CheckpointRecord {
        tenant: TenantId(row.get("tenant")?),
        model_id: ModelId(row.get("model_id")?),
        kind: named(row, "kind")?,
        name: row.get("name")?,
        blob: BlobId(row.get("blob")?),
        size_bytes: unsigned(row.get("size_bytes")?),
        created_at: time(row, "created_at")?,
        expires_at: maybe_time(row, "expires_at")?,
        public: row.get("public")?,
        user_metadata: json(row, "user_metadata")?,
    })
}
