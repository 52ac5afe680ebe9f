//! What an engine takes up, known before anything is loaded.

use tinsmith_backend::{Backend, StepKind};
use tinsmith_model::{
    config::DecoderConfig,
    memory::{StepShape, WeightBytes, adapter_bytes, cache_bytes, pairs_bytes, step_bytes},
};

use crate::{Config, LoraSpec};

/// The most bytes that an engine of some limits takes up, by what they are for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// Embedding and unembedding.
    pub embeddings: usize,
    /// All other weights, packed for both directions.
    pub layers: usize,
    /// Keys and values of sampled sequences.
    pub cache: usize,
    /// A training micro-batch: activations, and what its ops hold for themselves.
    pub training_step: usize,
    /// The rows of a sampling step.
    pub sampling_step: usize,
    /// Resident runs: adapter, gradient with its copy, and moments.
    pub runs: usize,
    /// Adapters of resident samplers.
    pub samplers: usize,
}

impl Plan {
    /// The plan of a model on a backend.
    pub fn new<B: Backend>(backend: &B, decoder: &DecoderConfig, config: &Config) -> Self {
        let weights = WeightBytes::of(backend, decoder);
        Self {
            embeddings: weights.embeddings,
            layers: weights.layers,
            cache: cache_bytes(backend, decoder, config.kv_blocks),
            training_step: config.activation_bytes_max,
            sampling_step: sampling_step_bytes(backend, decoder, config),
            runs: config.runs_bytes_max,
            samplers: config.samplers_bytes_max,
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.parts().iter().map(|(_, bytes)| bytes).fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// What is taken from the start: weights, keys and values.
    pub fn at_once(&self) -> usize {
        self.embeddings.saturating_add(self.layers).saturating_add(self.cache)
    }

    /// Its parts with their names, in the order in which they are read.
    pub fn parts(&self) -> [(&'static str, usize); 7] {
        let Self { embeddings, layers, cache, training_step, sampling_step, runs, samplers } =
            *self;
        [
            ("embeddings", embeddings),
            ("layers", layers),
            ("keys and values", cache),
            ("training step", training_step),
            ("sampling step", sampling_step),
            ("training runs", runs),
            ("samplers", samplers),
        ]
    }
}

/// Bytes of a run of this spec: its adapter, gradient, the gradient's copy, and both moments.
pub fn run_bytes<B: Backend>(backend: &B, decoder: &DecoderConfig, spec: &LoraSpec) -> usize {
    adapter_bytes(backend, decoder, spec) + 4 * pairs_bytes(backend, decoder, spec)
}

/// Bytes of a sampler with an adapter of this spec.
pub fn sampler_bytes<B: Backend>(backend: &B, decoder: &DecoderConfig, spec: &LoraSpec) -> usize {
    adapter_bytes(backend, decoder, spec)
}

/// Bytes of a training micro-batch that is one datum of `tokens` tokens, with an adapter of rank `rank`,
/// and that keeps the state of every layer.
pub fn training_step_bytes<B: Backend>(
    backend: &B,
    decoder: &DecoderConfig,
    tokens: usize,
    rank: usize,
) -> usize {
    step_bytes(backend, decoder, &StepShape::datum(tokens, rank, false))
}

/// Tokens of the longest datum whose step fits, computing layers again if need be; at most [`Config::train_context_max`].
pub fn longest_datum<B: Backend>(
    backend: &B,
    decoder: &DecoderConfig,
    config: &Config,
    rank: usize,
) -> usize {
    let (mut fits, mut too_long) = (0, config.train_context_max + 1);
    while too_long - fits > 1 {
        let middle = fits.midpoint(too_long);
        let step = StepShape::datum(middle, rank, true);
        if step_bytes(backend, decoder, &step) <= config.activation_bytes_max {
            fits = middle;
        } else {
            too_long = middle;
        }
    }
    fits
}

/// Bytes of the largest sampling step.
pub fn sampling_step_bytes<B: Backend>(
    backend: &B,
    decoder: &DecoderConfig,
    config: &Config,
) -> usize {
    let step = StepShape {
        tokens: config.prefill_tokens_max + config.max_num_seqs,
        sequences: config.max_num_seqs,
        longest: config.max_model_len,
        rank: config.rank_max,
        kind: StepKind::Infer,
        recompute: false,
    };
    step_bytes(backend, decoder, &step)
}
