//! What a model's parts take up on a backend, from its shapes alone: nothing has to be loaded.

use tinsmith_backend::{Backend, Footprint, PairShape, ScratchShape, StepKind};

use crate::{
    config::DecoderConfig,
    files::{Shape, expected_tensors},
    lora::{LoraSpec, Projection, Site},
};

/// Bytes of the frozen weights, packed as training needs them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WeightBytes {
    /// The embedding, and the unembedding where it is another matrix.
    pub embeddings: usize,
    /// Everything else.
    pub layers: usize,
}

impl WeightBytes {
    /// Of a model.
    pub fn of<B: Backend>(b: &B, config: &DecoderConfig) -> Self {
        let mut bytes = Self { embeddings: 0, layers: 0 };
        let name_of = |name: &str| format!("{name}.weight");
        let (embed, unembed) = (name_of(config.names.embed), name_of(config.names.unembed));
        for (name, shape) in expected_tensors(config) {
            let (is_embed, is_unembed) = (name == embed, name == unembed);
            let taken = b.bytes(match shape {
                Shape::Vector(features) => Footprint::Vector(features),
                Shape::Matrix(outputs, inputs) => {
                    // A table that is only looked up has no gradient.
                    let trained = !is_embed || config.tie_embeddings;
                    Footprint::Weight { outputs, inputs, trained }
                }
            });
            if is_embed || is_unembed {
                bytes.embeddings += taken;
            } else {
                bytes.layers += taken;
            }
        }
        bytes
    }
}

/// Bytes of a key-value cache of `blocks` blocks.
pub fn cache_bytes<B: Backend>(b: &B, config: &DecoderConfig, blocks: usize) -> usize {
    let shape = config.attention_shape(0);
    b.bytes(Footprint::Cache { blocks, layers: config.layers, shape })
}

/// Bytes of one adapter.
pub fn adapter_bytes<B: Backend>(b: &B, config: &DecoderConfig, spec: &LoraSpec) -> usize {
    sites(config, spec).map(|shape| b.bytes(Footprint::Lora(shape))).sum()
}

/// Bytes of one set of numbers in the shapes of an adapter: its gradient, or a moment.
pub fn pairs_bytes<B: Backend>(b: &B, config: &DecoderConfig, spec: &LoraSpec) -> usize {
    sites(config, spec).map(|shape| b.bytes(Footprint::Pair(shape))).sum()
}

fn sites(config: &DecoderConfig, spec: &LoraSpec) -> impl Iterator<Item = PairShape> {
    Site::all(config).filter(|&site| spec.trains(site)).map(|site| {
        let (outputs, inputs) = site.shape(config);
        PairShape { rank: spec.rank, inputs, outputs }
    })
}

/// What decides how much memory a step takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StepShape {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens of the longest of them.
    pub longest: usize,
    /// Highest rank of the adapters.
    pub rank: usize,
    /// What the step is for.
    pub kind: StepKind,
    /// Whether backward runs each layer again, from its input, which alone is kept.
    pub recompute: bool,
}

impl StepShape {
    /// One sequence with gradients.
    pub fn datum(tokens: usize, rank: usize, recompute: bool) -> Self {
        let kind = StepKind::ForwardBackward;
        Self { tokens, sequences: 1, longest: tokens, rank, kind, recompute }
    }

    /// What buffers that have served both steps have grown to; `None` where they keep different things.
    pub fn merged(&self, other: &Self) -> Option<Self> {
        let backward = |step: &Self| step.kind == StepKind::ForwardBackward;
        if backward(self) && backward(other) && self.recompute != other.recompute {
            return None;
        }
        let kept = if backward(self) { self } else { other };
        Some(Self {
            tokens: self.tokens.max(other.tokens),
            sequences: self.sequences.max(other.sequences),
            longest: self.longest.max(other.longest),
            rank: self.rank.max(other.rank),
            kind: kept.kind,
            recompute: kept.recompute,
        })
    }
}

/// Planned bytes of a step: its activations, and what the backend's ops hold for themselves.
pub fn step_bytes<B: Backend>(b: &B, config: &DecoderConfig, step: &StepShape) -> usize {
    let rows = step.tokens;
    let of = |features: &[usize]| {
        let each = |&features: &usize| b.bytes(Footprint::Rows { rows, features });
        features.iter().map(each).sum::<usize>()
    };
    let hidden = Projection::ALL.len() * b.bytes(Footprint::Rows { rows, features: step.rank });
    let input = of(&[config.hidden]);
    let layer = of(&layer_features(config)) + if config.post_norms { 2 * input } else { 0 };
    let states = if step.recompute { 1 } else { config.layers };
    let buffers = of(&stream_features(config))
        + match step.kind {
            StepKind::Forward => layer,
            // The rows that are scored or drawn from, before and after the norm.
            StepKind::Infer => layer + of(&[config.hidden; 2]),
            StepKind::ForwardBackward => {
                let kept = config.layers * input + states * (layer + hidden);
                kept + of(&gradient_features(config))
            }
        };
    // Positions, and the numbers of the rows.
    let numbers = rows * (size_of::<u32>() + size_of::<usize>());
    let scratch = Footprint::Scratch(ScratchShape {
        rows,
        sequences: step.sequences,
        longest: step.longest,
        rank: step.rank,
        widest: config.hidden.max(config.q_features()).max(config.ffn),
        vocabulary: config.vocab_size,
        attention: config.attention_shape(0),
        ropes: 1 + usize::from(config.local.is_some()),
        kind: step.kind,
    });
    buffers + numbers + b.bytes(scratch)
}

/// The buffers of the stream: x, normed, q, k, gated.
fn stream_features(config: &DecoderConfig) -> [usize; 5] {
    let (q, kv) = (config.q_features(), config.kv_features());
    [config.hidden, config.hidden, q, kv, config.ffn]
}

/// The buffers of one layer's state, without norms of outputs: q, k, v, attention, lse, middle, gate, up.
fn layer_features(config: &DecoderConfig) -> [usize; 8] {
    let (hidden, q, kv) = (config.hidden, config.q_features(), config.kv_features());
    [q, kv, kv, q, config.heads, hidden, config.ffn, config.ffn]
}

/// The buffers of the gradients: of x, normed, rotated q and k, q, k, v, attention, gated, gate, up.
fn gradient_features(config: &DecoderConfig) -> [usize; 11] {
    let (hidden, q, kv, ffn) =
        (config.hidden, config.q_features(), config.kv_features(), config.ffn);
    [hidden, hidden, q, kv, q, kv, kv, q, ffn, ffn, ffn]
}
