//! Durable state: requests and results, records, checkpoint blobs.
//!
//! [`Store`] is an async handle over its own writer thread. Nothing here knows HTTP or tensors: bodies
//! and results are opaque bytes with a kind. Every method that touches a tenant's thing takes the tenant.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tinsmith_types::ids::{ModelId, RequestId, SamplingSessionId, SeqId, SessionId, TenantId};

pub mod clock;
mod config;
mod error;
pub mod records;

pub use clock::{Clock, ManualClock, SystemClock};
pub use config::Config;
pub use error::{Error, Result};
pub use records::*;

/// A cheap handle; clones share one store.
#[derive(Clone, Debug)]
pub struct Store;

#[expect(
    unused_variables,
    clippy::todo,
    clippy::unused_async,
    clippy::unused_self,
    reason = "the signatures land first"
)]
impl Store {
    /// Opens the data directory, which must not be open elsewhere, and recovers what is in it.
    pub fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Self> {
        todo!()
    }
    /// Names this start; part of the ids of samples.
    pub fn start_id(&self) -> &str {
        todo!()
    }
    /// Whether writes are accepted: false after a fatal error and after `close`.
    pub fn ready(&self) -> bool {
        todo!()
    }
    /// Writes down what is still in memory only and stops the writer.
    pub fn close(&self) {
        todo!()
    }

    /// Makes a session; the same key and body within ten minutes give the same session.
    pub async fn create_session(
        &self,
        tenant: &TenantId,
        new: NewSession,
        idempotency_key: Option<&str>,
    ) -> Result<SessionRecord> {
        todo!()
    }
    /// A session.
    pub async fn session(&self, tenant: &TenantId, id: &SessionId) -> Result<SessionRecord> {
        todo!()
    }
    /// Keeps a session from expiring.
    pub async fn heartbeat(&self, tenant: &TenantId, id: &SessionId) -> Result<()> {
        todo!()
    }
    /// Ends a session; the first reason stays.
    pub async fn finish_session(
        &self,
        tenant: &TenantId,
        id: &SessionId,
        reason: &str,
    ) -> Result<()> {
        todo!()
    }
    /// A page of the tenant's sessions, newest first, and how many there are.
    pub async fn sessions(
        &self,
        tenant: &TenantId,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<SessionId>, u64)> {
        todo!()
    }
    /// The runs and samplers of a session, oldest first.
    pub async fn session_children(
        &self,
        tenant: &TenantId,
        id: &SessionId,
    ) -> Result<(Vec<ModelId>, Vec<SamplingSessionId>)> {
        todo!()
    }

    /// A run.
    pub async fn run(&self, tenant: &TenantId, id: &ModelId) -> Result<RunRecord> {
        todo!()
    }
    /// A page of the tenant's runs, newest first, and how many there are.
    pub async fn runs(
        &self,
        tenant: &TenantId,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<RunRecord>, u64)> {
        todo!()
    }
    /// Sets why a run cannot go on, or a remark; `None` leaves the old one.
    pub async fn mark_run(
        &self,
        tenant: &TenantId,
        id: &ModelId,
        corrupted: Option<String>,
        note: Option<String>,
    ) -> Result<()> {
        todo!()
    }

    /// Makes a training request durable; it is on disk when this returns.
    pub async fn submit(&self, tenant: &TenantId, new: NewRequest) -> Result<Submitted> {
        todo!()
    }
    /// Queues a sample, in memory only.
    pub async fn submit_sample(&self, tenant: &TenantId, new: NewSample) -> Result<Submitted> {
        todo!()
    }
    /// How a request stands, after waiting for its end for at most `wait`.
    pub async fn retrieve(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        wait: Duration,
    ) -> Result<Retrieved> {
        todo!()
    }
    /// Ends a sample that nobody waits for.
    pub async fn cancel_sample(&self, tenant: &TenantId, id: &RequestId) -> Result<()> {
        todo!()
    }

    /// Up to `max` requests whose turn it is, after waiting for the first for at most `wait`.
    pub async fn claim(&self, max: usize, wait: Duration) -> Result<Vec<Claimed>> {
        todo!()
    }
    /// Ends requests, all in one commit, then wakes who waits for them.
    pub async fn complete(&self, completions: Vec<Completion>) -> Vec<Result<()>> {
        todo!()
    }
    /// The newest durable state of a run.
    pub async fn snapshot(&self, model: &ModelId) -> Result<Option<SnapshotRecord>> {
        todo!()
    }
    /// Replaces the newest durable state of a run; the bodies of requests inside it may go.
    pub async fn put_snapshot(&self, model: &ModelId, snapshot: SnapshotRecord) -> Result<()> {
        todo!()
    }
    /// The run's requests after `after`, in order.
    pub async fn journal(&self, model: &ModelId, after: SeqId) -> Result<Vec<JournalEntry>> {
        todo!()
    }

    /// Publishes a directory of files; returns its name and its bytes. It stays for the grace period
    /// unless a row comes to name it.
    pub async fn stage(
        &self,
        manifest: Manifest,
        files: Vec<(String, Bytes)>,
    ) -> Result<(BlobId, u64)> {
        todo!()
    }
    /// A published directory, every hash verified.
    pub async fn blob(&self, id: &BlobId) -> Result<(Manifest, BTreeMap<String, Bytes>)> {
        todo!()
    }

    /// A checkpoint of the tenant's own, or a public one.
    pub async fn checkpoint(
        &self,
        tenant: &TenantId,
        model: &ModelId,
        kind: CheckpointKind,
        name: &str,
    ) -> Result<CheckpointRecord> {
        todo!()
    }
    /// A page of the tenant's checkpoints, of one run or of all, newest first, and how many there are.
    pub async fn checkpoints(
        &self,
        tenant: &TenantId,
        model: Option<&ModelId>,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<CheckpointRecord>, u64)> {
        todo!()
    }
    /// Removes a checkpoint's name.
    pub async fn delete_checkpoint(
        &self,
        tenant: &TenantId,
        model: &ModelId,
        kind: CheckpointKind,
        name: &str,
    ) -> Result<()> {
        todo!()
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
        todo!()
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
        todo!()
    }

    /// Makes a sampler durable; the same id and digest give the same one.
    pub async fn create_sampling_session(
        &self,
        tenant: &TenantId,
        new: NewSamplingSession,
    ) -> Result<SamplingSessionRecord> {
        todo!()
    }
    /// A sampler.
    pub async fn sampling_session(
        &self,
        tenant: &TenantId,
        id: &SamplingSessionId,
    ) -> Result<SamplingSessionRecord> {
        todo!()
    }

    /// Drops what has expired; call it every few seconds to minutes.
    pub async fn sweep(&self) -> Result<()> {
        todo!()
    }
}
