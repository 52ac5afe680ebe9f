//! The engine's limits.

/// How much the engine takes on at a time. Nothing in it grows beyond these.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Tokens of a training micro-batch of whole datums (512). A longer datum goes alone.
    pub train_tokens_max: usize,
    /// Tokens of the longest datum. Beyond the model's own context, positions go on as they are.
    pub train_context_max: usize,
    /// Bytes that one micro-batch may need, as planned; bounds the longest datum.
    pub activation_bytes_max: usize,
    /// Pieces of training work that may wait, all runs together (1,024).
    pub training_queue_max: usize,
    /// Prompt tokens computed in one sampling step (512).
    pub prefill_tokens_max: usize,
    /// Sequences that decode together (64).
    pub max_num_seqs: usize,
    /// Rows of a sampling step up to which tokens that stood before are tried ahead (16); 0: never.
    pub speculative_rows_max: usize,
    /// Blocks of the key-value cache, each of `ATTENTION_TILE` (32) tokens, all layers.
    pub kv_blocks: usize,
    /// Bytes of the spill file; 0: preempted sequences are computed again.
    pub kv_spill_bytes: usize,
    /// Spilling is off where a token's work is less than this many floating-point operations for each byte that
    /// is written or read (256): computing it again would be sooner done.
    pub kv_spill_flops_per_byte_min: usize,
    /// Prompt and completion tokens of one sequence.
    pub max_model_len: usize,
    /// Sampled sequences that may wait, all samplers together (4,096).
    pub waiting_sequences_max: usize,
    /// Continuations of one prompt (1,024).
    pub num_samples_max: usize,
    /// Stop texts or stop tokens of one job (64).
    pub stops_max: usize,
    /// Listed, given and alternative tokens in one job's output (8,388,608).
    pub logprobs_max: usize,
    /// Resident training runs (64).
    pub runs_max: usize,
    /// Bytes of all resident training runs.
    pub runs_bytes_max: usize,
    /// Resident samplers (256).
    pub samplers_max: usize,
    /// Bytes of all resident samplers.
    pub samplers_bytes_max: usize,
    /// Highest rank of an adapter.
    pub rank_max: usize,
}
