//! What is asked of the engine, and what it answers.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use tinsmith_backend::Drawn;

use crate::LossChoice;

/// A training run that is resident in the engine; chosen by the caller.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RunKey(pub u64);

/// A set of weights to sample from that is resident in the engine; chosen by the caller.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SamplerKey(pub u64);

/// Names one piece of submitted work until its output is given; chosen by the caller.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub u64);

/// One piece of work. Work of one run executes in submission order; runs share steps.
#[derive(Clone, Debug)]
pub enum Work {
    /// Scores datums and, unless `forward_only`, adds the gradient of their loss to the run's.
    ForwardBackward {
        /// The run.
        run: RunKey,
        /// The datums, in the order in which their gradients are folded.
        datums: Vec<Datum>,
        /// The loss.
        loss: LossChoice,
        /// Constants of a named loss.
        config: BTreeMap<String, f64>,
        /// Leaves the pending gradient alone.
        forward_only: bool,
    },
    /// One step of the optimizer on the pending gradient, which is zero afterwards.
    OptimStep {
        /// The run.
        run: RunKey,
        /// The constants of this step.
        params: AdamParams,
    },
    /// Draws continuations of a prompt.
    Sample {
        /// Whose weights.
        sampler: SamplerKey,
        /// What to draw.
        job: SampleJob,
    },
}

/// One training example: position `t` of `tokens` predicts the `per_row` candidates of row `t`.
#[derive(Clone, Debug, PartialEq)]
pub struct Datum {
    /// Input tokens, `[n]`, n ≥ 1.
    pub tokens: Vec<u32>,
    /// Scored token ids, `[n * per_row]`, row after row.
    pub targets: Vec<u32>,
    /// Candidates a row.
    pub per_row: usize,
    /// The loss's other inputs by name, each `[n * per_row]`, those of a custom loss of whatever length it
    /// takes. Unknown names are ignored.
    pub values: BTreeMap<String, Vec<f32>>,
    /// What a loss from outside reads, in its own order; losses of the registry do not look at it.
    pub arrays: Vec<Array>,
}

/// An array of any shape, for a loss from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Whether the values are integers; else they are f32.
    pub whole: bool,
    /// Sizes of the dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// The values, row after row.
    pub values: Arc<Vec<f64>>,
}

/// The constants of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamParams {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, as torch's `AdamW`.
    pub weight_decay: f64,
    /// The gradient is scaled down to this norm over all tensors of the adapter; 0 or less is off.
    pub grad_clip_norm: f64,
}

/// What to sample.
#[derive(Clone, Debug)]
pub struct SampleJob {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Independent continuations.
    pub num_samples: usize,
    /// `None`: up to the context window. 0 is for scoring the prompt alone.
    pub max_tokens: Option<usize>,
    /// Fixes every draw. The caller draws one where the user gave none, so that retries agree.
    pub seed: Option<u64>,
    /// 0 is greedy.
    pub temperature: f32,
    /// `None`: off.
    pub top_k: Option<usize>,
    /// 1: off.
    pub top_p: f32,
    /// When to end before `max_tokens`.
    pub stop: Stop,
    /// Also score the prompt's own tokens.
    pub prompt_logprobs: bool,
    /// Of those, and of the likeliest tokens, only these many at the prompt's end; 1 to its length - 1.
    pub prompt_logprobs_last_n: Option<usize>,
    /// Likeliest tokens to list at each prompt position but the first.
    pub topk_prompt_logprobs: usize,
    /// Likeliest tokens to list at each drawn position, of the distribution that the drawn token's own
    /// logprob is of: at the job's temperature, before `top_k` and `top_p`.
    pub topk_sample_logprobs: usize,
    /// Given tokens to score along the prompt.
    pub target_prompt_logprobs: Option<PromptTargets>,
    /// Tokens to draw at each prompt position but the first, at the job's temperature; `top_k` and `top_p`
    /// do not bound them, so that their logprobs are those of the distribution that they are drawn from.
    pub prompt_alt_tokens: usize,
}

/// Tokens to score along a prompt: a matrix `[prompt - 1, columns]`, whose row `i` is scored at position
/// `i + 1`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PromptTargets {
    /// Where each row's cells begin among `ids`, and where the last row's end: `[prompt]`.
    pub rows: Vec<usize>,
    /// Token ids, row after row; `None` asks for nothing.
    pub ids: Vec<Option<u32>>,
    /// Columns of the matrix.
    pub columns: usize,
    /// The column of each cell; `None`: every cell of every row is there.
    pub column_of: Option<Vec<usize>>,
}

impl PromptTargets {
    /// The cells of a row.
    pub fn cells(&self, row: usize) -> Range<usize> {
        self.rows[row]..self.rows[row + 1]
    }
}

/// What ends a sampled sequence before `max_tokens`.
///
/// The token that ends it, or completes the text that ends it, is the last one returned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stop {
    /// The model's own end tokens.
    Default,
    /// These tokens and the model's own; an empty list disables every stop.
    Tokens(Vec<u32>),
    /// These texts, across token borders too, and the model's own end tokens.
    Strings(Vec<String>),
}

/// What a piece of work gave.
#[derive(Clone, Debug)]
pub enum Output {
    /// Of [`Work::ForwardBackward`].
    ForwardBackward {
        /// Of each datum, in the layout of its targets.
        logprobs: Vec<Vec<f32>>,
        /// By `name:reduction`.
        metrics: BTreeMap<String, f64>,
    },
    /// Of [`Work::OptimStep`].
    OptimStep {
        /// By `name:reduction`.
        metrics: BTreeMap<String, f64>,
    },
    /// Of [`Work::Sample`].
    Sample(SampleOutput),
}

/// What sampling gave.
#[derive(Clone, Debug)]
pub struct SampleOutput {
    /// One for each of `num_samples`, in order of sample index.
    pub sequences: Vec<Sequence>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// `[prompt]`, NaN where none is wanted and at the first, if asked for.
    pub prompt_logprobs: Option<Vec<f32>>,
    /// `[prompt * k]`, the likeliest first; where none are wanted, and at the first position, token 0 and
    /// -99999.
    pub topk_prompt_logprobs: Option<Vec<Drawn>>,
    /// What was asked for, with a logprob for each cell, 0 where it asks for nothing.
    pub target_prompt_logprobs: Option<(PromptTargets, Vec<f32>)>,
    /// `[(prompt - 1) * k]`, from position 1 on.
    pub prompt_alt_tokens: Option<Vec<Drawn>>,
    /// Tokens of the prompt that were found in the prefix cache.
    pub prompt_cache_hit_tokens: usize,
}

/// One sampled continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Without the prompt.
    pub tokens: Vec<u32>,
    /// Of each token: of the tempered distribution, plain at temperature 0.
    pub logprobs: Vec<f32>,
    /// `[tokens * k]`, the likeliest first, if asked for.
    pub topk_logprobs: Option<Vec<Drawn>>,
    /// Why it ended.
    pub stop_reason: StopReason,
}

/// Why a sampled sequence ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StopReason {
    /// `max_tokens` or the context window.
    Length,
    /// A stop token or text.
    Stop,
}

/// Why a piece of work gave nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The caller's fault; else ours.
    pub user: bool,
    /// For the caller to read.
    pub message: String,
}

/// Which parts of a run's state files carry beside the adapter.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Parts {
    /// Moments and step count.
    pub optimizer: bool,
    /// The pending gradient.
    pub gradient: bool,
}

/// Counters since the engine began, and gauges of now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Calls of `step` that did something.
    pub steps: u64,
    /// Tokens of training micro-batches.
    pub train_tokens: u64,
    /// Prompt tokens computed, those computed again after a preemption included.
    pub prefill_tokens: u64,
    /// Tokens drawn.
    pub decode_tokens: u64,
    /// Tokens that were tried ahead of their draws.
    pub tried_tokens: u64,
    /// Tried tokens that were drawn indeed.
    pub tried_tokens_kept: u64,
    /// Sequences that gave their blocks back to run again later.
    pub preemptions: u64,
    /// Prompt tokens that were found in the prefix cache.
    pub prefix_hit_tokens: u64,
    /// Blocks of the prefix cache that went to make room.
    pub prefix_evictions: u64,
    /// Blocks that were written to the spill file.
    pub kv_blocks_spilled: u64,
    /// Blocks that were read back from it.
    pub kv_blocks_reloaded: u64,
    /// Times that the spill file failed.
    pub kv_spill_faults: u64,
    /// Sampled sequences that hold blocks.
    pub running: usize,
    /// Sampled sequences that wait for blocks or a place.
    pub waiting: usize,
    /// Training work that was submitted and not finished.
    pub training_queue: usize,
    /// Blocks that sequences hold.
    pub kv_blocks_used: usize,
    /// Blocks beside those that the prefix cache keeps until they are needed.
    pub kv_blocks_cached: usize,
    /// Blocks in the spill file.
    pub kv_spill_blocks: usize,
    /// Blocks in all.
    pub kv_blocks: usize,
    /// Resident runs.
    pub runs: usize,
    /// Planned bytes of the resident runs.
    pub runs_bytes: usize,
    /// Resident samplers.
    pub samplers: usize,
    /// Planned bytes of the resident samplers.
    pub samplers_bytes: usize,
}
