//! What the store keeps, as plain values.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tinsmith_types::ids::{ModelId, RequestId, SamplingSessionId, SeqId, SessionId, TenantId};

/// blake3 of a canonical encoding.
pub type Digest = [u8; 32];

/// What a queued request asks for. Stable: these names stand in the database.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// Creates a training run (seq id 0 of the run).
    CreateModel,
    /// Creates a run from a checkpoint (seq id 0 of the run), or loads one into it.
    LoadWeights,
    /// Logprobs only; never replayed.
    Forward,
    /// Logprobs and gradients.
    ForwardBackward,
    /// One optimizer step.
    OptimStep,
    /// A training checkpoint: weights and optimizer.
    SaveWeights,
    /// Sampler weights, named or as a new sampling session.
    SaveWeightsForSampler,
    /// Ends the run's place in memory.
    UnloadModel,
    /// Draws tokens; lives in memory only.
    Sample,
}

/// A client program's connection scope.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord {
    pub id: SessionId,
    pub tags: Vec<String>,
    /// JSON object.
    pub user_metadata: serde_json::Value,
    pub sdk_version: String,
    pub project_id: Option<String>,
    pub display_name: Option<String>,
    pub created_at: Timestamp,
    pub last_heartbeat_at: Timestamp,
    /// Set once by `finish`: `success`, `errored`, `interrupted`, or `expired`. Terminal.
    pub finished: Option<String>,
}

/// What a new session is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    pub tags: Vec<String>,
    pub user_metadata: serde_json::Value,
    pub sdk_version: String,
    pub project_id: Option<String>,
    pub display_name: Option<String>,
}

/// The LoRA of a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct LoraRecord {
    pub rank: u32,
    /// Drawn at admission where the client gave none.
    pub seed: u64,
    pub train_attn: bool,
    pub train_mlp: bool,
    pub train_unembed: bool,
}

/// What a new training run is made of; stored together with its creating request.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRun {
    pub session_id: SessionId,
    /// The name that the client asked for.
    pub base_model: String,
    /// Digest of the base model's weights, hex.
    pub base_digest: String,
    pub lora: LoraRecord,
    /// JSON object: `{"type":"adamw"}`.
    pub optimizer_config: serde_json::Value,
    /// JSON object or null.
    pub user_metadata: serde_json::Value,
    /// The kernel set that its journal is written with.
    pub kernel_set: String,
}

/// A training run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    pub tenant: TenantId,
    pub id: ModelId,
    pub session_id: SessionId,
    pub base_model: String,
    pub base_digest: String,
    pub lora: LoraRecord,
    pub optimizer_config: serde_json::Value,
    pub user_metadata: serde_json::Value,
    pub kernel_set: String,
    pub created_at: Timestamp,
    pub last_request_at: Timestamp,
    /// True once its creating request has completed well.
    pub ready: bool,
    /// Why the run cannot go on, if it cannot.
    pub corrupted: Option<String>,
    /// A remark for its owner, such as a replay on another kernel set.
    pub note: Option<String>,
}

/// A request to be made durable.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRequest {
    pub model_id: ModelId,
    /// Order number in the run; `None` (old clients): the next free one.
    pub seq_id: Option<SeqId>,
    pub kind: RequestKind,
    /// Canonical encoding of the decoded request.
    pub body: Bytes,
    /// blake3 of what identifies the request's body; a retry must have the same.
    pub digest: Digest,
    /// Given where the request creates its run.
    pub creates: Option<NewRun>,
    /// Why the request is refused before it runs: it takes its place in the order, already failed.
    pub refused: Option<Failure>,
}

/// A sample to be queued in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSample {
    pub sampling_session_id: SamplingSessionId,
    pub seq_id: Option<SeqId>,
    pub body: Bytes,
    pub digest: Digest,
    pub refused: Option<Failure>,
}

/// What a queued request got.
#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    pub request_id: RequestId,
    /// False where a retry found its first submission.
    pub fresh: bool,
}

/// A request that the worker may run now: everything before it in its run was claimed before.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    pub tenant: TenantId,
    pub request_id: RequestId,
    pub kind: RequestKind,
    pub body: Bytes,
    pub target: Target,
}

/// What a claimed request works on.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Target {
    Run(ModelId, SeqId),
    Sampler(SamplingSessionId, Option<SeqId>),
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Result in the encoding that belongs to the request's kind.
    Done(Bytes),
    Failed(Failure),
}

/// Why a request failed, as the client is told.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Failure {
    pub category: Category,
    pub message: String,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    User,
    Server,
    Unknown,
}

/// The end of a request, with what becomes visible in the same transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub request_id: RequestId,
    pub outcome: Outcome,
    /// Digest of the canonical result, compared at replay. `None` where nothing is replayed.
    pub digest: Option<Digest>,
    pub effect: Effect,
}

/// What a completed request makes visible.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "few are alive at a time")]
pub enum Effect {
    None,
    /// The run of this request may be used.
    RunReady,
    Checkpoint(NewCheckpoint),
    SamplingSession(NewSamplingSession),
}

/// `weights` or `sampler_weights` (or `external_weights`).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    Weights,
    SamplerWeights,
    ExternalWeights,
}

/// A name for durable bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct NewCheckpoint {
    pub model_id: ModelId,
    pub kind: CheckpointKind,
    pub name: String,
    pub blob: BlobId,
    pub size_bytes: u64,
    pub expires_at: Option<Timestamp>,
    pub user_metadata: BTreeMap<String, String>,
    /// Replaces a checkpoint of that name; else the completion fails with `NameTaken`.
    pub overwrite: bool,
}

/// A checkpoint that is visible.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointRecord {
    pub tenant: TenantId,
    pub model_id: ModelId,
    pub kind: CheckpointKind,
    pub name: String,
    pub blob: BlobId,
    pub size_bytes: u64,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub public: bool,
    pub user_metadata: BTreeMap<String, String>,
}

/// A sampler to be made durable.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSamplingSession {
    pub id: SamplingSessionId,
    pub session_id: SessionId,
    pub base_model: String,
    pub base_digest: String,
    /// The checkpoint that it was made from, if from one.
    pub model_path: Option<String>,
    /// The adapter that it samples with; `None`: the base model alone.
    pub blob: Option<BlobId>,
    pub digest: Digest,
}

/// A sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingSessionRecord {
    pub tenant: TenantId,
    pub id: SamplingSessionId,
    pub session_id: SessionId,
    pub base_model: String,
    pub base_digest: String,
    pub model_path: Option<String>,
    pub blob: Option<BlobId>,
    pub created_at: Timestamp,
}

/// Name of a published directory of files: hex blake3 of its manifest.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(transparent)]
pub struct BlobId(pub String);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A directory's list of contents (`manifest.json`), checked when it is read.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Manifest {
    /// 1.
    pub format: u32,
    pub base_model: String,
    pub base_digest: String,
    pub lora: LoraRecord,
    pub alpha: u32,
    pub kernel_set: String,
    /// The run and the last request whose effect is inside.
    pub model_id: ModelId,
    pub applied_seq: SeqId,
    /// Whether Adam's moments and step are inside.
    pub optimizer: bool,
    /// JSON object: `{"type":"adamw"}`.
    pub optimizer_config: serde_json::Value,
    /// Path to size and hex blake3; filled in by `stage`.
    pub files: BTreeMap<String, FileRecord>,
}

/// One file of a directory.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct FileRecord {
    pub size_bytes: u64,
    pub blake3: String,
}

/// The newest durable state of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotRecord {
    pub applied_seq: SeqId,
    pub blob: BlobId,
}

/// One request of a run since its snapshot, in order, for replay.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalEntry {
    pub seq_id: SeqId,
    pub request_id: RequestId,
    pub kind: RequestKind,
    pub body: Bytes,
    pub state: JournalState,
}

/// Where a journaled request stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JournalState {
    /// Acknowledged, no result yet.
    Pending,
    /// Completed well, with the digest of its result.
    Applied(Option<Digest>),
    /// Failed: contributes nothing.
    Failed,
}

/// What a poll finds.
#[derive(Clone, Debug, PartialEq)]
pub enum Retrieved {
    Pending(QueueState),
    Finished {
        kind: RequestKind,
        outcome: Outcome,
    },
    /// A sample of an earlier start.
    Gone,
}

/// Why a request has not run yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum QueueState {
    Active,
    PausedCapacity,
    PausedRateLimit,
}
