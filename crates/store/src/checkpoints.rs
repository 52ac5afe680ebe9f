//! Blobs, the checkpoints that name them, and the samplers that use them.

use std::{collections::BTreeMap, fs::File, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use tinsmith_types::ids::{ModelId, SamplingSessionId, TenantId};

use crate::{
    BlobId, CheckpointFilter, CheckpointKind, CheckpointRecord, Error, Manifest,
    NewSamplingSession, Result, SamplerOrigin, SamplingSessionRecord, Store,
    sqlite::{
        checkpoints::{self, Name},
        samplers,
    },
};

impl Store {
    /// Publishes a directory of files with a manifest that lists them; returns its name and the bytes
    /// of its files. The same content gives the same name. It is durable when this returns, and stays
    /// for the grace period unless a checkpoint, a snapshot or a sampler comes to name it.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be written, or a file's name is not a plain one.
    pub async fn stage(
        &self,
        manifest: Manifest,
        files: Vec<(String, Bytes)>,
    ) -> Result<(BlobId, u64)> {
        if self.shared().stopped() {
            return Err(Error::Fatal);
        }
        let shared = self.inner.shared.clone();
        let stage = move || shared.blobs.stage(manifest, &files, shared.clock.monotonic());
        tokio::task::spawn_blocking(stage).await.map_err(|_| Error::Fatal)?
    }

    /// A published directory, every hash verified.
    ///
    /// # Errors
    /// [`Error::Corrupted`] with the file whose content is not what was written.
    pub async fn blob(&self, id: &BlobId) -> Result<(Manifest, BTreeMap<String, Bytes>)> {
        let (shared, id) = (self.inner.shared.clone(), id.clone());
        let read = move || shared.blobs.read(&id);
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Fatal)?
    }

    /// The list of a published directory's files, verified; not the files themselves.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Corrupted`] where the list is not what was written.
    pub async fn manifest(&self, id: &BlobId) -> Result<Manifest> {
        let (shared, id) = (self.inner.shared.clone(), id.clone());
        let read = move || shared.blobs.manifest(&id);
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Fatal)?
    }

    /// Opens one file that a directory's manifest lists; its content is not verified. It can be read to its
    /// end even if the directory is deleted meanwhile.
    pub async fn open_file(&self, id: &BlobId, name: &str) -> Result<File> {
        let (shared, id, name) = (self.inner.shared.clone(), id.clone(), name.to_owned());
        let open = move || shared.blobs.open_file(&id, &name);
        tokio::task::spawn_blocking(open).await.map_err(|_| Error::Fatal)?
    }

    /// Whether a checkpoint of anybody that has not expired names the directory.
    pub async fn is_checkpoint(&self, id: &BlobId) -> Result<bool> {
        let (id, now) = (id.clone(), self.shared().clock.now());
        self.read(move |conn| checkpoints::names(conn, &id, now)).await
    }

    /// A checkpoint of the tenant's own, or a public one of anybody.
    pub async fn checkpoint(
        &self,
        tenant: &TenantId,
        model: &ModelId,
        kind: CheckpointKind,
        name: &str,
    ) -> Result<CheckpointRecord> {
        let (tenant, name) = (tenant.clone(), named(model, kind, name));
        let now = self.shared().clock.now();
        self.read(move |conn| checkpoints::checkpoint(conn, &tenant, &name, now)).await
    }

    /// A page of the tenant's checkpoints, newest first, and how many there are.
    pub async fn checkpoints(
        &self,
        tenant: &TenantId,
        filter: &CheckpointFilter,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<CheckpointRecord>, u64)> {
        let (tenant, filter) = (tenant.clone(), filter.clone());
        let now = self.shared().clock.now();
        self.read(move |conn| {
            checkpoints::checkpoints(conn, &tenant, &filter, (limit, offset), now)
        })
        .await
    }

    /// Removes a checkpoint's name; its blob goes when nothing else names it.
    pub async fn delete_checkpoint(
        &self,
        tenant: &TenantId,
        model: &ModelId,
        kind: CheckpointKind,
        name: &str,
    ) -> Result<()> {
        let (tenant, name) = (tenant.clone(), named(model, kind, name));
        self.write(move |tx| tx.delete_checkpoint(&tenant, &name), |_, ()| {}).await
    }

    /// Lets every tenant read a checkpoint, or no longer.
    pub async fn set_checkpoint_public(
        &self,
        tenant: &TenantId,
        model: &ModelId,
        kind: CheckpointKind,
        name: &str,
        public: bool,
    ) -> Result<()> {
        let (tenant, name) = (tenant.clone(), named(model, kind, name));
        self.write(move |tx| tx.set_public(&tenant, &name, public), |_, ()| {}).await
    }

    /// Sets when a checkpoint expires, or that it does not.
    pub async fn set_checkpoint_ttl(
        &self,
        tenant: &TenantId,
        model: &ModelId,
        kind: CheckpointKind,
        name: &str,
        expires_at: Option<Timestamp>,
    ) -> Result<()> {
        let (tenant, name) = (tenant.clone(), named(model, kind, name));
        self.write(move |tx| tx.set_expiry(&tenant, &name, expires_at), |_, ()| {}).await
    }

    /// Makes a sampler durable. The same id and digest find the first one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for its session or blob; [`Error::Conflict`] for another digest.
    pub async fn create_sampling_session(
        &self,
        tenant: &TenantId,
        new: NewSamplingSession,
    ) -> Result<SamplingSessionRecord> {
        let tenant = tenant.clone();
        self.write(move |tx| tx.create_sampling_session(&tenant, &new), |_, _| {}).await
    }

    /// A sampler.
    pub async fn sampling_session(
        &self,
        tenant: &TenantId,
        id: &SamplingSessionId,
    ) -> Result<SamplingSessionRecord> {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.read(move |conn| samplers::sampling_session(conn, &tenant, &id)).await
    }

    /// What a sampler is made of, which never changes: asked for often, read once.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the sampler.
    pub async fn sampler_origin(
        &self,
        tenant: &TenantId,
        id: &SamplingSessionId,
    ) -> Result<Arc<SamplerOrigin>> {
        let shared = self.shared();
        if let Some(origin) = shared.index().samples.origin(tenant, id) {
            return Ok(origin);
        }
        let SamplingSessionRecord { tenant, session_id, base_model, base_digest, .. } =
            self.sampling_session(tenant, id).await?;
        shared.sessions.heard(&session_id, shared.clock.now());
        let origin = Arc::new(SamplerOrigin { tenant, session_id, base_model, base_digest });
        shared.index().samples.note_origin(id, Arc::clone(&origin));
        Ok(origin)
    }
}

fn named(model: &ModelId, kind: CheckpointKind, name: &str) -> Name {
    Name { model: model.clone(), kind, name: name.to_owned() }
}
