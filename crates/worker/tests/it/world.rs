//! A data directory, the node that works on it now, and a client that remembers what it sent.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use tinsmith_backend_cpu::{CpuBackend, Kernels};
use tinsmith_engine::LoraSpec;
use tinsmith_store::{
    Category, CheckpointKind, Config as StoreConfig, Failure, LoraRecord, NewRequest, NewRun,
    NewSample, NewSession, Outcome, RequestKind, Result, Retrieved, RunRecord, Store, Submitted,
    SystemClock,
};
use tinsmith_types::{
    ids::{ModelId, RequestId, SamplingSessionId, SeqId, SessionId, TenantId},
    model_input::{Chunk, ModelInput},
    proto::{self, Tensor, pack::pack_i32},
    queued::QueuedRequest,
};
use tinsmith_worker::{Config, Handle, Model, Stats};

use crate::model::{self, ACTIVATION_BYTES_MAX, SplitMix64, VOCAB};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const DIGEST: &str = "00";

/// What a client asks of a run.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create,
    /// Creates the run from a checkpoint. `SESSION` in a path stands for the world's session.
    CreateFrom(String, bool),
    ForwardBackward(u64),
    Forward(u64),
    Step,
    Save(&'static str),
    SaveSampler(&'static str),
    /// Files for others, encrypted to these.
    Export(&'static str, Option<&'static [&'static str]>),
    /// A sampling session with this number.
    Sampler(i64),
    /// A sampling session with this number, which moves with those after it.
    InFlight(i64),
    Load(String, bool),
    /// Fails before it reaches the worker.
    Refused,
    /// A token beyond the vocabulary, which the engine refuses.
    Broken,
    /// A learning rate that no step can have.
    BrokenStep,
}

/// See the module.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
    /// Of the nodes to be started.
    pub(crate) activation_bytes_max: usize,
    /// Of the nodes to be started.
    pub(crate) kernels: Kernels,
    runs_bytes_max: usize,
    pub(crate) tenant: TenantId,
    pub(crate) session: SessionId,
    /// Of the worker that was stopped last.
    pub(crate) stats: Stats,
    kernel_set: String,
    node: Option<Node>,
}

struct Node {
    store: Store,
    worker: Handle,
}

/// A worker that snapshots when it is stopped or has no room, and never else.
pub(crate) fn config() -> Config {
    Config {
        claim_max: 8,
        claimed_bytes_max: 4096,
        in_flight_per_run_max: 3,
        training_turn: Duration::from_millis(25),
        resident_runs_max: 8,
        resident_samplers_max: 4,
        snapshot_after_work: Duration::MAX,
        snapshot_after_bytes: u64::MAX,
        snapshot_after_replay: Duration::MAX,
        snapshot_after_rest: Duration::MAX,
        custom_loss_limits: tinsmith_graph::Limits {
            nodes_max: 100,
            arguments_max: 1000,
            elements_max: 10_000,
            bytes_max: 1 << 20,
            steps_max: 100_000,
        },
        stop_timeout: Duration::from_secs(10),
    }
}

/// A worker that snapshots before every request, and lets samples work between all parts of training.
pub(crate) fn always() -> Config {
    Config {
        training_turn: Duration::ZERO,
        snapshot_after_work: Duration::ZERO,
        snapshot_after_replay: Duration::ZERO,
        snapshot_after_rest: Duration::ZERO,
        ..config()
    }
}

/// Every combination of seldom and frequent snapshots, of work and of replays.
pub(crate) fn configs() -> [Config; 3] {
    [config(), always(), Config { snapshot_after_work: Duration::MAX, ..always() }]
}

impl World {
    /// A new directory with a session, and a node that works on it.
    pub(crate) async fn new(config: Config) -> Self {
        Self::within(config, 1 << 30).await
    }

    /// As [`World::new`], with memory for so many runs.
    pub(crate) async fn with_room_for(runs: usize, config: Config) -> Self {
        let spec =
            LoraSpec { rank: 2, seed: 0, train_attn: true, train_mlp: true, train_unembed: true };
        let engine = model::engine(false, Kernels::f32(), ACTIVATION_BYTES_MAX, 1);
        Self::within(config, runs * engine.run_bytes(&spec)).await
    }

    async fn within(config: Config, runs_bytes_max: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let tenant = TenantId::from("a");
        let new = NewSession {
            tags: Vec::new(),
            user_metadata: serde_json::json!({}),
            sdk_version: "0".to_owned(),
            project_id: None,
            display_name: None,
        };
        let session = store.create_session(&tenant, new, None).await.unwrap().id;
        let engine = model::engine(false, Kernels::f32(), ACTIVATION_BYTES_MAX, runs_bytes_max);
        let kernel_set = engine.kernel_set().to_owned();
        let model = Model { digest: DIGEST.to_owned(), engine };
        let worker = start(&config, &store, model);
        Self {
            dir,
            config,
            activation_bytes_max: ACTIVATION_BYTES_MAX,
            kernels: Kernels::f32(),
            runs_bytes_max,
            tenant,
            session,
            stats: Stats::default(),
            kernel_set,
            node: Some(Node { store, worker }),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.node.as_ref().unwrap().store
    }

    /// Ends the node where it stands: nothing reaches the disk any more.
    pub(crate) async fn kill(&mut self) {
        let Node { store, worker } = self.node.take().unwrap();
        store.close();
        tokio::time::timeout(PATIENCE, worker.ended()).await.unwrap();
    }

    /// Ends the node as it wants to be ended.
    pub(crate) async fn stop(&mut self) {
        let Node { store, worker } = self.node.take().unwrap();
        tokio::time::timeout(PATIENCE, worker.stop()).await.unwrap();
        self.stats = worker.stats();
        store.close();
    }

    pub(crate) async fn start(&mut self) {
        self.start_with(DIGEST, false).await;
    }

    /// Starts a node whose model says to have this digest; with `other`, one bit of it is another.
    pub(crate) async fn start_with(&mut self, digest: &str, other: bool) {
        let store = open(&self.dir).await;
        let engine =
            model::engine(other, self.kernels, self.activation_bytes_max, self.runs_bytes_max);
        let model = Model { digest: digest.to_owned(), engine };
        let worker = start(&self.config, &store, model);
        self.node = Some(Node { store, worker });
    }

    pub(crate) fn run_id(&self, run: i64) -> ModelId {
        ModelId::of(&self.session, run)
    }

    /// The path of a checkpoint of this world.
    pub(crate) fn path(&self, run: i64, kind: &str, name: &str) -> String {
        format!("tinker://{}/{kind}/{name}", self.run_id(run))
    }

    /// Sends what a server would write down.
    pub(crate) async fn submit(&self, run: i64, seq: usize, op: &Op) -> Result<Submitted> {
        let seq = i64::try_from(seq).unwrap();
        let (kind, request) = request(&self.session, &self.run_id(run), seq, op);
        let creates = matches!(op, Op::Create | Op::CreateFrom(..)).then(|| self.new_run(run));
        let failure = || Failure { category: Category::User, message: "refused".to_owned() };
        let new = NewRequest {
            model_id: self.run_id(run),
            seq_id: Some(SeqId(seq)),
            kind,
            body: request.encode(),
            digest: blake3::hash(&request.digest_input()).into(),
            creates,
            refused: matches!(op, Op::Refused).then(failure),
        };
        self.store().submit(&self.tenant, new).await
    }

    fn new_run(&self, run: i64) -> NewRun {
        NewRun {
            session_id: self.session.clone(),
            base_model: "tiny".to_owned(),
            base_digest: DIGEST.to_owned(),
            lora: LoraRecord {
                rank: 2,
                seed: run.cast_unsigned() % 10,
                train_attn: true,
                train_mlp: true,
                train_unembed: true,
            },
            optimizer_config: serde_json::json!({ "type": "adamw" }),
            user_metadata: serde_json::Value::Null,
            kernel_set: self.kernel_set.clone(),
        }
    }

    /// The outcome of a request, in words that do not depend on the world.
    pub(crate) async fn outcome(&self, id: &RequestId) -> Outcome {
        let retrieved = self.store().retrieve(&self.tenant, id, PATIENCE).await.unwrap();
        let Retrieved::Finished { outcome, .. } = retrieved else { panic!("{id}: {retrieved:?}") };
        match outcome {
            Outcome::Done(bytes) => Outcome::Done(match str::from_utf8(&bytes) {
                Ok(text) => Bytes::from(text.replace(self.session.as_str(), "SESSION")),
                Err(_) => bytes,
            }),
            Outcome::Failed(failure) => Outcome::Failed(failure),
        }
    }

    /// Sends everything, in order, then waits for everything.
    pub(crate) async fn play(&self, run: i64, first: usize, ops: &[Op]) -> Vec<Outcome> {
        let mut ids = Vec::new();
        for (offset, op) in ops.iter().enumerate() {
            ids.push(self.submit(run, first + offset, op).await.unwrap().request_id);
        }
        let mut outcomes = Vec::new();
        for id in ids {
            outcomes.push(self.outcome(&id).await);
        }
        outcomes
    }

    /// The files of a checkpoint.
    pub(crate) async fn files(
        &self,
        run: i64,
        kind: CheckpointKind,
        name: &str,
    ) -> BTreeMap<String, Bytes> {
        let id = self.run_id(run);
        let found = self.store().checkpoint(&self.tenant, &id, kind, name).await;
        let blob = found.unwrap().blob;
        self.store().blob(&blob).await.unwrap().1
    }

    /// Weights and optimizer of a checkpoint to train on from.
    pub(crate) async fn weights(&self, run: i64, name: &str) -> BTreeMap<String, Bytes> {
        self.files(run, CheckpointKind::Weights, name).await
    }

    pub(crate) async fn record(&self, run: i64) -> RunRecord {
        self.store().run(&self.tenant, &self.run_id(run)).await.unwrap()
    }

    /// Draws from a sampler.
    pub(crate) async fn sample(&self, number: i64, seq: i64) -> Outcome {
        let id = self.submit_sample(number, seq, (2, 6)).await;
        self.outcome(&id).await
    }

    /// Asks a sampler for so many samples of so many tokens.
    pub(crate) async fn submit_sample(
        &self,
        number: i64,
        seq: i64,
        (samples, tokens_max): (usize, usize),
    ) -> RequestId {
        let sampler = SamplingSessionId::of(&self.session, number);
        let tokens = vec![1, 2, 3];
        let prompt = ModelInput { chunks: vec![Chunk::EncodedText { tokens }] };
        let body = serde_json::json!({
            "prompt": prompt, "num_samples": samples, "prompt_logprobs": true,
            "record_stability_info": true,
            "sampling_params": { "max_tokens": tokens_max, "seed": 5, "stop": [] },
        });
        let body = Bytes::from(body.to_string());
        let request = QueuedRequest::decode("sample", &body).unwrap();
        let new = NewSample {
            sampling_session_id: sampler,
            seq_id: Some(SeqId(seq)),
            body: request.encode(),
            digest: blake3::hash(&request.digest_input()).into(),
            refused: None,
        };
        self.store().submit_sample(&self.tenant, new).await.unwrap().request_id
    }
}

/// Waits until the node before has let go of the directory.
async fn open(dir: &TempDir) -> Store {
    let config = || StoreConfig {
        data_dir: Some(dir.path().to_owned()),
        inline_body_bytes_max: 512,
        spool_segment_bytes_max: 1 << 20,
        group_requests_max: 16,
        write_queue_max: 64,
        samples_max: 64,
        sample_bytes_max: 1 << 20,
        feed_page_max: 16,
        recorded_bytes_max: 1 << 20,
        cache_bytes_max: 1 << 20,
        claim_bytes_max: 1 << 20,
        pending_requests_per_run_max: 100,
        gap_timeout: Duration::from_secs(600),
        result_retention: Duration::from_secs(36_000),
        sample_retention: Duration::from_secs(600),
        session_expiry: Duration::from_secs(86_400),
        audit_retention: Duration::from_secs(86_400),
        audit_entries_max: 1000,
        usage_retention: Duration::from_secs(86_400),
        sample_spans_max: 1000,
        blob_grace: Duration::from_secs(3600),
        allow_network_fs: true,
    };
    let opened = async {
        loop {
            match Store::open(config(), SystemClock::new()) {
                Ok(store) => return store,
                Err(tinsmith_store::Error::Refused { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.unwrap()
}

fn start(config: &Config, store: &Store, model: Model<CpuBackend>) -> Handle {
    let (config, store) = (config.clone(), store.clone());
    tinsmith_worker::start(config, store, SystemClock::new(), vec![model]).unwrap()
}

fn request(
    session: &SessionId,
    model: &ModelId,
    seq: i64,
    op: &Op,
) -> (RequestKind, QueuedRequest) {
    let json = |kind: RequestKind, value: serde_json::Value| {
        let body = Bytes::from(value.to_string());
        (kind, QueuedRequest::decode(kind.name(), &body).unwrap())
    };
    let named = |path: &Option<&str>, number: Option<i64>| {
        serde_json::json!({
            "model_id": model, "seq_id": seq, "path": path, "sampling_session_seq_id": number,
        })
    };
    let step = |rate: f64| {
        let adam = serde_json::json!({ "learning_rate": rate });
        serde_json::json!({ "model_id": model, "seq_id": seq, "adam_params": adam })
    };
    match op {
        Op::Create => {
            let body = serde_json::json!({
                "session_id": session, "model_seq_id": 0, "base_model": "tiny",
            });
            json(RequestKind::CreateModel, body)
        }
        Op::CreateFrom(path, optimizer) => {
            let path = path.replace("SESSION", session.as_str());
            let body = serde_json::json!({
                "session_id": session, "model_seq_id": 0, "path": path, "optimizer": optimizer,
            });
            json(RequestKind::LoadWeights, body)
        }
        Op::Load(path, optimizer) => {
            let path = path.replace("SESSION", session.as_str());
            let body = serde_json::json!({
                "model_id": model, "seq_id": seq, "path": path, "optimizer": optimizer,
            });
            json(RequestKind::LoadWeights, body)
        }
        Op::ForwardBackward(seed) => batch(model, seq, *seed, RequestKind::ForwardBackward),
        Op::Refused => batch(model, seq, 0, RequestKind::ForwardBackward),
        Op::Broken => batch(model, seq, u64::MAX, RequestKind::ForwardBackward),
        Op::Forward(seed) => batch(model, seq, *seed, RequestKind::Forward),
        Op::Step => json(RequestKind::OptimStep, step(0.01)),
        Op::BrokenStep => json(RequestKind::OptimStep, step(-1.0)),
        Op::Save(name) => json(RequestKind::SaveWeights, named(&Some(name), None)),
        Op::SaveSampler(name) => json(RequestKind::SaveWeightsForSampler, named(&Some(name), None)),
        Op::InFlight(number) => {
            let mut body = named(&None, Some(*number));
            body["kind"] = "inflight".into();
            json(RequestKind::SaveWeightsForSampler, body)
        }
        Op::Export(name, recipients) => {
            let mut body = named(&Some(name), None);
            body["age_encryption_recipients"] = serde_json::json!(recipients);
            json(RequestKind::SaveWeightsExternal, body)
        }
        Op::Sampler(number) => {
            json(RequestKind::SaveWeightsForSampler, named(&None, Some(*number)))
        }
    }
}

/// Two or three datums; the greatest seed gives a token that does not exist.
fn batch(model: &ModelId, seq: i64, seed: u64, kind: RequestKind) -> (RequestKind, QueuedRequest) {
    let mut random = SplitMix64(seed);
    let mut datum = || {
        let length = 2 + random.below(6);
        let mut token = || i32::try_from(random.below(VOCAB)).unwrap();
        let tokens: Vec<i32> = (0..length).map(|_| token()).collect();
        let bad = (seed == u64::MAX).then_some(1_000_000);
        let targets: Vec<i64> =
            (0..length).map(|_| bad.unwrap_or_else(|| i64::from(token()))).collect();
        let shape = vec![i64::try_from(length).unwrap()];
        let text = proto::EncodedTextChunk { tokens: pack_i32(&tokens) };
        let weights = Tensor::dense_f32(&vec![0.5; length], shape.clone());
        proto::Datum {
            model_input: vec![proto::Chunk { chunk: Some(proto::chunk::Chunk::EncodedText(text)) }],
            loss_fn_inputs: BTreeMap::from([
                ("target_tokens".to_owned(), Tensor::dense_i64(&targets, shape)),
                ("weights".to_owned(), weights),
            ]),
            ..Default::default()
        }
    };
    let request = proto::ForwardBackwardRequest {
        model_id: model.0.clone(),
        seq_id: i32::try_from(seq).unwrap(),
        data: vec![datum(), datum()],
        loss_fn: "cross_entropy".to_owned(),
        forward_only: kind == RequestKind::Forward,
        ..Default::default()
    };
    (kind, QueuedRequest::from_proto(request))
}

/// The number of requests that an optimizer step says to have failed before it.
pub(crate) fn failed_metric(outcome: &Outcome) -> u64 {
    let Outcome::Done(bytes) = outcome else { panic!("{outcome:?}") };
    let result: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    let failed = result["metrics"]["failed_requests:sum"].as_f64().unwrap();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    let failed = failed as u64;
    failed
}

pub(crate) fn failure(outcome: &Outcome) -> &Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        Outcome::Done(bytes) => panic!("done: {bytes:?}"),
    }
}

pub(crate) fn assert_done(outcomes: &[Outcome]) {
    for outcome in outcomes {
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    }
}
