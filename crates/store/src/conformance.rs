//! What every store must do, through its public methods only. A second implementation runs all of it.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tinsmith_types::ids::{ModelId, RequestId, SeqId, SessionId, TenantId};

use crate::{
    Category, Claimed, Completion, Config, Effect, Failure, LoraRecord, Manifest, ManualClock,
    NewRequest, NewRun, NewSession, Outcome, RequestKind, Result, Retrieved, Store, Submitted,
    Target,
};

mod audit;
mod checkpoints;
mod custom_losses;
mod faults;
mod feeds;
mod journal;
mod lasting;
mod ledger;
mod recordings;
mod requests;
mod samples;
mod schedules;
mod search;
mod sessions;

/// A store with small limits, its clock, and a session of tenant `a`.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) tenant: TenantId,
    pub(crate) session: SessionId,
}

/// Limits small enough to be reached.
pub(crate) fn config(data_dir: Option<&Path>) -> Config {
    Config {
        data_dir: data_dir.map(Path::to_owned),
        inline_body_bytes_max: 64,
        spool_segment_bytes_max: 4096,
        group_requests_max: 16,
        write_queue_max: 64,
        samples_max: 8,
        sample_bytes_max: 4096,
        feed_page_max: 4,
        recorded_bytes_max: 4096,
        cache_bytes_max: 2048,
        claim_bytes_max: 8192,
        pending_requests_per_run_max: 20,
        gap_timeout: Duration::from_secs(600),
        result_retention: Duration::from_secs(36_000),
        sample_retention: Duration::from_secs(600),
        session_expiry: Duration::from_secs(86_400),
        audit_retention: Duration::from_secs(86_400 * 30),
        audit_entries_max: 10,
        usage_retention: Duration::from_secs(86_400 * 30),
        sample_spans_max: 10,
        blob_grace: Duration::from_secs(3600),
        allow_network_fs: true,
    }
}

impl Fixture {
    pub(crate) async fn new(data_dir: Option<&Path>) -> Self {
        let clock = ManualClock::new();
        let store = Store::open(config(data_dir), clock.clone()).unwrap();
        let tenant = TenantId::from("a");
        let session = store.create_session(&tenant, new_session(), None).await.unwrap().id;
        Self { store, clock, tenant, session }
    }

    /// Ends this start and begins the next one in the same directory.
    pub(crate) fn reopen(self, data_dir: &Path) -> Self {
        let Self { store, clock, tenant, session } = self;
        drop(store);
        let store = Store::open(config(Some(data_dir)), clock.clone()).unwrap();
        Self { store, clock, tenant, session }
    }

    pub(crate) fn model(&self, number: u32) -> ModelId {
        ModelId(format!("{}:train:{number}", self.session))
    }

    pub(crate) async fn create_run(&self, number: u32) -> ModelId {
        let model = self.model(number);
        let mut new = request(&model, 0, b"create");
        new.kind = RequestKind::CreateModel;
        new.creates = Some(new_run(&self.session));
        self.store.submit(&self.tenant, new).await.unwrap();
        model
    }

    pub(crate) async fn submit(&self, model: &ModelId, seq: i64) -> Result<Submitted> {
        let body = format!("body {seq}");
        self.store.submit(&self.tenant, request(model, seq, body.as_bytes())).await
    }

    /// Claims everything at hand; the sequence ids.
    pub(crate) async fn claim_seqs(&self) -> Vec<i64> {
        seqs(&self.store.claim(100, Duration::ZERO).await.unwrap())
    }

    pub(crate) async fn retrieve(&self, id: &RequestId) -> Result<Retrieved> {
        self.store.retrieve(&self.tenant, id, Duration::ZERO).await
    }
}

pub(crate) fn new_session() -> NewSession {
    NewSession {
        tags: vec!["x".to_owned()],
        user_metadata: serde_json::json!({}),
        sdk_version: "0.38.0".to_owned(),
        project_id: None,
        display_name: None,
    }
}

pub(crate) fn lora() -> LoraRecord {
    LoraRecord { rank: 8, seed: u64::MAX, train_attn: true, train_mlp: true, train_unembed: false }
}

pub(crate) fn new_run(session: &SessionId) -> NewRun {
    NewRun {
        session_id: session.clone(),
        base_model: "nano".to_owned(),
        base_digest: "00".to_owned(),
        lora: lora(),
        optimizer_config: serde_json::json!({ "type": "adamw" }),
        user_metadata: serde_json::Value::Null,
        kernel_set: "f32.1".to_owned(),
    }
}

pub(crate) fn request(model: &ModelId, seq: i64, body: &[u8]) -> NewRequest {
    NewRequest {
        model_id: model.clone(),
        seq_id: Some(SeqId(seq)),
        kind: RequestKind::ForwardBackward,
        body: Bytes::copy_from_slice(body),
        digest: *blake3::hash(body).as_bytes(),
        creates: None,
        refused: None,
    }
}

pub(crate) fn done(id: &RequestId, result: &str) -> Completion {
    Completion {
        request_id: id.clone(),
        outcome: Outcome::Done(Bytes::copy_from_slice(result.as_bytes())),
        digest: Some(*blake3::hash(result.as_bytes()).as_bytes()),
        effect: Effect::None,
    }
}

pub(crate) fn failure(message: &str) -> Failure {
    Failure { category: Category::User, message: message.to_owned() }
}

pub(crate) fn manifest(model: &ModelId, applied: i64) -> Manifest {
    Manifest {
        format: 1,
        base_model: "nano".to_owned(),
        base_digest: "00".to_owned(),
        lora: lora(),
        alpha: 32,
        kernel_set: "f32.1".to_owned(),
        model_id: model.clone(),
        applied_seq: SeqId(applied),
        optimizer: true,
        optimizer_config: serde_json::json!({ "type": "adamw" }),
        files: std::collections::BTreeMap::new(),
    }
}

pub(crate) fn seqs(claimed: &[Claimed]) -> Vec<i64> {
    let seq = |claimed: &Claimed| match &claimed.target {
        Target::Run(_, seq) => seq.0,
        Target::Sampler(_, seq) => seq.map_or(-1, |seq| seq.0),
    };
    claimed.iter().map(seq).collect()
}
