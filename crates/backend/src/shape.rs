//! Plain descriptions that ops take: no device, no data of a step.

use std::ops::Range;

/// How numbers lie in a model file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A matrix as it lies in a model file: little-endian, row-major, not necessarily aligned.
#[derive(Clone, Copy, Debug)]
pub struct RawMatrix<'a> {
    /// `rows * cols * dtype.size()` bytes.
    pub bytes: &'a [u8],
    /// How the numbers lie.
    pub dtype: Dtype,
    /// Outputs of a linear op; 1 for a vector.
    pub rows: usize,
    /// Inputs of a linear op; the length of a vector.
    pub cols: usize,
}

/// Inverse frequencies of the rotary embedding.
///
/// Pairs are `(i, i + head_dim / 2)`, as transformers lays them. The angle is
/// `f32(position) * inverse_frequencies[i]`, rounded to f32.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[head_dim / 2]`.
    pub inverse_frequencies: Vec<f32>,
    /// Factor on both sine and cosine (1 unless a scaling method asks for it).
    pub amplitude: f32,
}

/// The constants of one attention op.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` reads `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `w`, at least 1: the query at position `p` sees the keys at `p + 1 - w ..= p` alone. `None`: all
    /// up to `p`.
    pub window: Option<usize>,
    /// `c`, if scores are `c · tanh(scale · q·k / c)`, before the mask and the softmax.
    pub softcap: Option<f32>,
}

impl AttentionShape {
    /// Positions of the keys that the query at `position` sees.
    pub fn visible(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        end - self.window.unwrap_or(end).min(end)..end
    }
}

/// One sequence's part of a step, with the blocks that hold its keys and values.
#[derive(Clone, Debug)]
pub struct PagedSequence<'a> {
    /// Its rows in the step.
    pub rows: Range<usize>,
    /// Position in the sequence of the first of them.
    pub position: usize,
    /// Block `i` holds positions `i * ATTENTION_TILE ..`.
    pub blocks: &'a [u32],
}

/// The non-linearity of a gated MLP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / π) (x + 0.044715 x³)))`: torch's `gelu` with its tanh approximation.
    GeluTanh,
}

/// How one token is drawn.
///
/// Let `l` be the logits of a row. At temperature 0 the token is the first of the greatest logits and
/// its logprob that of `log_softmax(l)`. Else, `p = softmax(l / temperature)`; the candidates are the
/// `top_k` greatest (ties: lower id first), then the smallest head of them, in descending order, whose
/// sum of p reaches `top_p` of their total; the token is the first candidate, in vocabulary order, at
/// which the cumulative sum of p exceeds `uniform` times the candidates' total. The logprob is `log p`,
/// before top-k and top-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 0 is greedy.
    pub temperature: f32,
    /// `None`: off; else at least 1.
    pub top_k: Option<usize>,
    /// 1: off.
    pub top_p: f32,
    /// In `[0, 1)`, from the counter-based generator.
    pub uniform: f64,
}

/// One thing to be read off the logits of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    /// The row.
    pub row: usize,
    /// What of it.
    pub query: Query,
}

/// What is read off a row's logits `l`.
///
/// All logprobs of a row are taken with one normalizer for each temperature, so that equal things have
/// equal bits, whichever query asks for them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Query {
    /// The logprob of this token, of `log_softmax(l)`.
    Token(u32),
    /// The likeliest tokens, the likeliest first (ties: lower id first), of
    /// `log_softmax(l / temperature)`; the temperature 0 leaves the logits as they are.
    Top {
        /// How many; at most as many as the vocabulary has.
        count: usize,
        /// What the logits are divided by.
        temperature: f32,
    },
    /// A drawn token.
    Draw(Draw),
}

impl Query {
    /// Tokens that it is answered with.
    pub fn answers(&self) -> usize {
        match self {
            Self::Token(_) | Self::Draw(_) => 1,
            Self::Top { count, .. } => *count,
        }
    }
}

/// A token that was drawn, listed or asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// Natural log of its probability; see [`Query`] and [`Draw`].
    pub logprob: f32,
}

/// One `AdamW` step (Loshchilov & Hutter 2019, as torch computes it).
///
/// `p *= 1 - learning_rate * weight_decay; m = lerp(m, g, 1 - beta1); v = beta2 v + (1 - beta2) g²;`
/// `p -= learning_rate / bias1 * m / (sqrt(v) / sqrt(bias2) + eps)`.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Factor on the gradient (the global clip).
    pub gradient_scale: f32,
}

/// Something whose memory is planned before it is made; see [`Backend::bytes`](crate::Backend::bytes).
#[derive(Clone, Copy, Debug)]
pub enum Footprint {
    /// A packed matrix.
    Weight {
        /// Rows of the matrix.
        outputs: usize,
        /// Columns of the matrix.
        inputs: usize,
        /// Whether gradients flow back through it.
        trained: bool,
    },
    /// A frozen vector of so many features.
    Vector(usize),
    /// An activation buffer.
    Rows {
        /// Its rows.
        rows: usize,
        /// Numbers in each.
        features: usize,
    },
    /// One adapter's matrices at one site, ready for use.
    Lora(PairShape),
    /// A gradient, or a moment of the optimizer, of one site.
    Pair(PairShape),
    /// Keys and values of all layers.
    Cache {
        /// Blocks of [`ATTENTION_TILE`](crate::ATTENTION_TILE) tokens.
        blocks: usize,
        /// Layers of the decoder.
        layers: usize,
        /// Of every layer.
        shape: AttentionShape,
    },
    /// What the backend's own ops hold during a step, on all threads together.
    Scratch(ScratchShape),
}

/// The shapes of an adapter's A `[rank, inputs]` and B `[outputs, rank]`.
#[derive(Clone, Copy, Debug)]
pub struct PairShape {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Columns of A.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
}

/// What decides how much memory ops hold for themselves.
#[derive(Clone, Copy, Debug)]
pub struct ScratchShape {
    /// Rows of the step.
    pub rows: usize,
    /// Sequences that share them.
    pub sequences: usize,
    /// Tokens of its longest sequence, counted from position 0.
    pub longest: usize,
    /// Highest rank of its adapters; 0 without any.
    pub rank: usize,
    /// Most features that any matrix but the unembedding takes or gives.
    pub widest: usize,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Of every layer.
    pub attention: AttentionShape,
    /// Different rotary tables.
    pub ropes: usize,
    /// What the step is for.
    pub kind: StepKind,
}

/// What a step is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StepKind {
    /// Whole sequences, logprobs alone.
    Forward,
    /// Whole sequences, with gradients.
    ForwardBackward,
    /// Rows over the cache, drawn from.
    Infer,
}
