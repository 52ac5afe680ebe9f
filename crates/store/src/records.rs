//! What the store keeps, as plain values.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tinsmith_types::ids::{
    LossId, ModelId, RequestId, SamplingSessionId, SeqId, SessionId, TenantId,
};

use crate::SampleUsage;

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
    /// Weights in files for other programs.
    SaveWeightsExternal,
    /// Ends the run's place in memory.
    UnloadModel,
    /// Draws tokens; lives in memory only.
    Sample,
}

impl RequestKind {
    /// The kind's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateModel => "create_model",
            Self::LoadWeights => "load_weights",
            Self::Forward => "forward",
            Self::ForwardBackward => "forward_backward",
            Self::OptimStep => "optim_step",
            Self::SaveWeights => "save_weights",
            Self::SaveWeightsForSampler => "save_weights_for_sampler",
            Self::SaveWeightsExternal => "save_weights_external",
            Self::UnloadModel => "unload_model",
            Self::Sample => "sample",
        }
    }

    /// Whether it leaves something in its run's weights, gradients or optimizer.
    pub fn changes_run(self) -> bool {
        match self {
            Self::CreateModel | Self::LoadWeights | Self::ForwardBackward | Self::OptimStep => true,
            Self::Forward
            | Self::SaveWeights
            | Self::SaveWeightsForSampler
            | Self::SaveWeightsExternal
            | Self::UnloadModel
            | Self::Sample => false,
        }
    }
}

/// A client program's connection scope.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord {
    /// Chosen by the store.
    pub id: SessionId,
    /// As given by the client.
    pub tags: Vec<String>,
    /// JSON object.
    pub user_metadata: serde_json::Value,
    /// Version of the client's SDK.
    pub sdk_version: String,
    /// The project that the client named.
    pub project_id: Option<String>,
    /// The name that the client gave it.
    pub display_name: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the client was last heard of.
    pub last_heartbeat_at: Timestamp,
    /// Set once by `finish`: `success`, `errored`, `interrupted`, or `expired`. Terminal.
    pub finished: Option<String>,
    /// More about it, in the client's words.
    pub finish_detail: Option<String>,
}

/// What a new session is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    /// Labels, in any order.
    pub tags: Vec<String>,
    /// JSON object.
    pub user_metadata: serde_json::Value,
    /// Version of the client's SDK.
    pub sdk_version: String,
    /// The project that the client names.
    pub project_id: Option<String>,
    /// A name for people.
    pub display_name: Option<String>,
}

/// The LoRA of a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct LoraRecord {
    /// Rows of `lora_a`; at least 1.
    pub rank: u32,
    /// Drawn at admission where the client gave none.
    pub seed: u64,
    /// Whether the attention projections get LoRA.
    pub train_attn: bool,
    /// Whether the MLP projections get LoRA.
    pub train_mlp: bool,
    /// Whether the unembedding gets LoRA.
    pub train_unembed: bool,
}

/// What a new training run is made of; stored together with its creating request.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRun {
    /// The session that it belongs to.
    pub session_id: SessionId,
    /// The name that the client asked for.
    pub base_model: String,
    /// Digest of the base model's weights, hex.
    pub base_digest: String,
    /// Which adapter is trained.
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
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, `<session>:train:<n>`.
    pub id: ModelId,
    /// The session that made it.
    pub session_id: SessionId,
    /// The name that the client asked for.
    pub base_model: String,
    /// Digest of the base model's weights, hex.
    pub base_digest: String,
    /// Which adapter is trained.
    pub lora: LoraRecord,
    /// JSON object: `{"type":"adamw"}`.
    pub optimizer_config: serde_json::Value,
    /// JSON object or null.
    pub user_metadata: serde_json::Value,
    /// The kernel set that its journal is written with.
    pub kernel_set: String,
    /// When its creating request became durable.
    pub created_at: Timestamp,
    /// When its newest request became durable.
    pub last_request_at: Timestamp,
    /// True once its creating request has completed well.
    pub ready: bool,
    /// Why the run cannot go on, if it cannot.
    pub corrupted: Option<String>,
    /// A remark for its owner, such as a replay on another kernel set.
    pub note: Option<String>,
    /// The path of the checkpoint that its own is a copy of: it was never trained, and cannot be.
    pub copied_from: Option<String>,
}

/// A request to be made durable.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRequest {
    /// The run that it works on.
    pub model_id: ModelId,
    /// Order number in the run; `None` (old clients): the next free one, 0 where it creates the run.
    pub seq_id: Option<SeqId>,
    /// What it asks for.
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
    /// The sampler that it draws from.
    pub sampling_session_id: SamplingSessionId,
    /// Identifies a retry; samples have no order.
    pub seq_id: Option<SeqId>,
    /// Canonical encoding of the decoded request.
    pub body: Bytes,
    /// blake3 of what identifies the request's body.
    pub digest: Digest,
    /// Why the request is refused before it runs.
    pub refused: Option<Failure>,
}

/// What a queued request got.
#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    /// Under which it is retrieved.
    pub request_id: RequestId,
    /// False where a retry found its first submission.
    pub fresh: bool,
}

/// A request that the worker may run now: everything before it in its run was claimed before.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// Whose request it is.
    pub tenant: TenantId,
    /// Under which it is completed.
    pub request_id: RequestId,
    /// What it asks for.
    pub kind: RequestKind,
    /// As submitted.
    pub body: Bytes,
    /// What it works on.
    pub target: Target,
}

/// What a claimed request works on.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Target {
    /// A training run, and the request's place in its order.
    Run(ModelId, SeqId),
    /// A sampler; the id orders nothing.
    Sampler(SamplingSessionId, Option<SeqId>),
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Result in the encoding that belongs to the request's kind.
    Done(Bytes),
    /// It failed and had no effect.
    Failed(Failure),
}

/// Why a request failed, as the client is told.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Failure {
    /// Whose fault it is.
    pub category: Category,
    /// One sentence for the client.
    pub message: String,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// The request was at fault; sending it again will not help.
    User,
    /// The server was at fault.
    Server,
    /// Nobody knows.
    Unknown,
}

/// The end of a request, with what becomes visible in the same transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The claimed request.
    pub request_id: RequestId,
    /// What its waiters get.
    pub outcome: Outcome,
    /// Digest of the canonical result, compared at replay. `None` where nothing is replayed.
    pub digest: Option<Digest>,
    /// What becomes visible with it; nothing where it failed.
    pub effect: Effect,
}

/// What a completed request makes visible.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Nothing but the result.
    None,
    /// The run of this request may be used.
    RunReady,
    /// The run of this request may be used, and stands on this state: nothing before it is replayed.
    Loaded(SnapshotRecord),
    /// A checkpoint's name; the completion fails where it is taken.
    Checkpoint(NewCheckpoint),
    /// A sampler.
    SamplingSession(NewSamplingSession),
    /// So many tokens of its run were trained on: they count in the ledger.
    Trained(u64),
    /// What a sample used; it counts in the ledger. And what it drew, where training may refer to it: that is
    /// durable before the sample ends.
    Sampled(SampleUsage, Option<Box<RecordedSample>>),
}

/// What a sample drew.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedSample {
    /// Where it was drawn.
    pub sampler: SamplingSessionId,
    /// Token ids that all its sequences go on from.
    pub prompt: Vec<u32>,
    /// Of each sequence, in order: its token ids, and the logprob of each as it was drawn.
    pub sequences: Vec<(Vec<u32>, Vec<f32>)>,
}

impl RecordedSample {
    /// Bytes that it takes up.
    pub(crate) fn bytes(&self) -> u64 {
        let drawn = self.sequences.iter().map(|(tokens, _)| 2 * tokens.len() + SEQUENCE_WORDS);
        (size_of::<u32>() * (self.prompt.len() + SEQUENCE_WORDS + drawn.sum::<usize>())) as u64
    }
}

/// What a row takes beside its tokens, about.
const SEQUENCE_WORDS: usize = 64;

/// What was recorded of one sampled sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedSequence {
    /// Token ids that it goes on from.
    pub prompt: Vec<u32>,
    /// Token ids that were drawn.
    pub tokens: Vec<u32>,
    /// Of each drawn token, as the sampler gave it.
    pub logprobs: Vec<f32>,
}

/// What a checkpoint is for. Stable: these names stand in the database and in `tinker://` paths.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// Weights and optimizer, to go on training from.
    Weights,
    /// Weights to sample from.
    SamplerWeights,
    /// Weights in a form for other programs.
    ExternalWeights,
}

/// A name for durable bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct NewCheckpoint {
    /// The run that it was saved from.
    pub model_id: ModelId,
    /// What is inside.
    pub kind: CheckpointKind,
    /// One path segment, unique within run and kind.
    pub name: String,
    /// The staged directory.
    pub blob: BlobId,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// From when on it is hidden; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// As given by the client.
    pub user_metadata: BTreeMap<String, String>,
    /// Replaces a checkpoint of that name; else the completion fails with `NameTaken`.
    pub overwrite: bool,
}

/// A run that was never trained here, with the checkpoints that were brought to it.
#[derive(Clone, Debug, PartialEq)]
pub struct NewImport {
    /// The run, the first of its session.
    pub run: NewRun,
    /// The staged directory.
    pub blob: BlobId,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// What the directory is good for: a checkpoint each.
    pub kinds: Vec<CheckpointKind>,
    /// The checkpoints' name.
    pub name: String,
}

/// A checkpoint under a second name, in a run of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct NewCopy {
    /// The run that is made for it.
    pub run: NewRun,
    /// The path that it is copied from.
    pub source: String,
    /// What the copy is; its `model_id` names the new run, its `blob` is the source's.
    pub checkpoint: NewCheckpoint,
    /// The session was opened for this copy alone, and ends with it.
    pub ends_session: bool,
}

/// Which checkpoints are listed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CheckpointFilter {
    /// Only of this run.
    pub model_id: Option<ModelId>,
    /// Only of this kind.
    pub kind: Option<CheckpointKind>,
    /// Not of this kind.
    pub without: Option<CheckpointKind>,
    /// Only of runs whose session belongs to this project.
    pub project_id: Option<String>,
}

/// A checkpoint that is visible.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointRecord {
    /// Whose it is.
    pub tenant: TenantId,
    /// The run that it was saved from.
    pub model_id: ModelId,
    /// What is inside.
    pub kind: CheckpointKind,
    /// One path segment, unique within run and kind.
    pub name: String,
    /// The published directory.
    pub blob: BlobId,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// When it became visible.
    pub created_at: Timestamp,
    /// From when on it is hidden; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// Whether every tenant may read it.
    pub public: bool,
    /// As given by the client.
    pub user_metadata: BTreeMap<String, String>,
}

/// A sampler to be made durable.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSamplingSession {
    /// Its name, `<session>:sample:<n>`.
    pub id: SamplingSessionId,
    /// The session that it belongs to.
    pub session_id: SessionId,
    /// The name that the client asked for.
    pub base_model: String,
    /// Digest of the base model's weights, hex.
    pub base_digest: String,
    /// The checkpoint that it was made from, if from one.
    pub model_path: Option<String>,
    /// The adapter that it samples with; `None`: the base model alone.
    pub blob: Option<BlobId>,
    /// The run that it follows: its blob becomes that of all samplers which follow this run.
    pub follows: Option<ModelId>,
    /// blake3 of what identifies the request; a retry must have the same.
    pub digest: Digest,
}

/// A client's loss to be made durable.
#[derive(Clone, Debug, PartialEq)]
pub struct NewCustomLoss {
    /// Its name, `<session>:loss:<n>`.
    pub id: LossId,
    /// The session that it belongs to.
    pub session_id: SessionId,
    /// What was sent, in its canonical encoding.
    pub body: Bytes,
    /// blake3 of what a retry must repeat.
    pub digest: Digest,
}

/// A client's loss.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomLossRecord {
    /// The session that it belongs to.
    pub session_id: SessionId,
    /// What was sent, in its canonical encoding.
    pub body: Bytes,
}

/// A sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingSessionRecord {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, `<session>:sample:<n>`.
    pub id: SamplingSessionId,
    /// The session that made it.
    pub session_id: SessionId,
    /// The name that the client asked for.
    pub base_model: String,
    /// Digest of the base model's weights, hex.
    pub base_digest: String,
    /// The checkpoint that it was made from, if from one.
    pub model_path: Option<String>,
    /// The adapter that it samples with now; `None`: the base model alone.
    pub blob: Option<BlobId>,
    /// The run that it follows: later saves of it give the sampler another blob.
    pub follows: Option<ModelId>,
    /// When it was made.
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
    /// The base model's name.
    pub base_model: String,
    /// Digest of the base model's weights, hex.
    pub base_digest: String,
    /// Which adapter is inside.
    pub lora: LoraRecord,
    /// LoRA's scaling is `alpha / rank`.
    pub alpha: u32,
    /// The kernel set that computed it.
    pub kernel_set: String,
    /// The run that it was saved from.
    pub model_id: ModelId,
    /// The last request of that run whose effect is inside.
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
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Hex blake3 of its content.
    pub blake3: String,
}

/// The newest durable state of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotRecord {
    /// Every request up to this one is inside, and none after it.
    pub applied_seq: SeqId,
    /// The published directory.
    pub blob: BlobId,
}

/// One request of a run since its snapshot, in order, for replay.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalEntry {
    /// Its place in the order.
    pub seq_id: SeqId,
    /// Its name.
    pub request_id: RequestId,
    /// What it asks for.
    pub kind: RequestKind,
    /// As submitted where a replay may need it: it was applied, and [`RequestKind::changes_run`].
    /// Empty otherwise.
    pub body: Bytes,
    /// Where it stands.
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
