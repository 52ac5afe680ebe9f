//! How many requests a second become durable, and what a poll costs, on the disk of the temporary
//! directory.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

use std::{path::Path, time::Duration};

use divan::{Bencher, counter::ItemsCount};
use tinsmith_store::{
    Config, LoraRecord, NewRequest, NewRun, NewSession, RequestKind, Store, SystemClock,
};
use tinsmith_types::ids::{ModelId, RequestId, SeqId, TenantId};
use tokio::{runtime::Runtime, task::JoinSet};

fn main() {
    divan::main();
}

/// Clients that each wait for their acknowledgement; `body` bytes a request.
#[divan::bench(args = [(1, 1_000), (8, 1_000), (64, 1_000), (512, 1_000), (64, 200_000)], sample_count = 20)]
fn submit(bencher: Bencher<'_, '_>, (clients, body): (i64, usize)) {
    let bench = Bench::new();
    let mut next = 1;
    bencher.counter(ItemsCount::new(clients.unsigned_abs())).bench_local(|| {
        bench.submit(next, clients, body);
        next += clients;
    });
}

/// A poll of a request that has not finished, without waiting.
#[divan::bench]
fn poll_pending(bencher: Bencher<'_, '_>) {
    let bench = Bench::new();
    let id = bench.submit(1, 1, 100).remove(0);
    let poll = || bench.runtime.block_on(bench.store.retrieve(&bench.tenant, &id, Duration::ZERO));
    bencher.bench_local(poll);
}

struct Bench {
    runtime: Runtime,
    store: Store,
    tenant: TenantId,
    model: ModelId,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path()), SystemClock::new()).unwrap();
        let runtime = Runtime::new().unwrap();
        let tenant = TenantId::from("a");
        let model = runtime.block_on(create_run(&store, &tenant));
        Self { runtime, store, tenant, model, _dir: dir }
    }

    fn submit(&self, first: i64, count: i64, body: usize) -> Vec<RequestId> {
        self.runtime.block_on(async {
            let mut submissions = JoinSet::new();
            for seq in first..first + count {
                let (store, tenant) = (self.store.clone(), self.tenant.clone());
                let new = request(&self.model, seq, body);
                submissions.spawn(async move { store.submit(&tenant, new).await });
            }
            let submitted = submissions.join_all().await.into_iter();
            submitted.map(|submitted| submitted.unwrap().request_id).collect()
        })
    }
}

async fn create_run(store: &Store, tenant: &TenantId) -> ModelId {
    let session = NewSession {
        tags: Vec::new(),
        user_metadata: serde_json::json!({}),
        sdk_version: "0.38.0".to_owned(),
        project_id: None,
        display_name: None,
    };
    let session_id = store.create_session(tenant, session, None).await.unwrap().id;
    let model = ModelId(format!("{session_id}:train:0"));
    let mut new = request(&model, 0, 100);
    let lora =
        LoraRecord { rank: 8, seed: 1, train_attn: true, train_mlp: true, train_unembed: true };
    new.creates = Some(NewRun {
        session_id,
        base_model: "nano".to_owned(),
        base_digest: "00".to_owned(),
        lora,
        optimizer_config: serde_json::json!({ "type": "adamw" }),
        user_metadata: serde_json::Value::Null,
        kernel_set: "f32.1".to_owned(),
    });
    store.submit(tenant, new).await.unwrap();
    model
}

fn request(model: &ModelId, seq: i64, body: usize) -> NewRequest {
    NewRequest {
        model_id: model.clone(),
        seq_id: Some(SeqId(seq)),
        kind: RequestKind::ForwardBackward,
        body: vec![1; body].into(),
        digest: [0; 32],
        creates: None,
        refused: None,
    }
}

fn config(dir: &Path) -> Config {
    Config {
        data_dir: Some(dir.to_owned()),
        inline_body_bytes_max: 65_536,
        spool_segment_bytes_max: 268_435_456,
        group_requests_max: 64,
        write_queue_max: 1024,
        samples_max: 20_000,
        sample_bytes_max: 536_870_912,
        feed_page_max: 512,
        recorded_bytes_max: 1 << 20,
        cache_bytes_max: 268_435_456,
        claim_bytes_max: 67_108_864,
        pending_requests_per_run_max: 10_000_000,
        gap_timeout: Duration::from_secs(600),
        result_retention: Duration::from_secs(86_400),
        sample_retention: Duration::from_secs(3600),
        session_expiry: Duration::from_secs(86_400),
        audit_retention: Duration::from_secs(86_400),
        audit_entries_max: 1000,
        usage_retention: Duration::from_secs(86_400),
        sample_spans_max: 1000,
        blob_grace: Duration::from_secs(3600),
        allow_network_fs: false,
    }
}
