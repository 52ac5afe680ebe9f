//! What an op is: the trait that every compute backend implements.
//!
//! All activations are rows of f32 features, `[rows, features]`. A step is a ragged batch: the rows of
//! all its sequences stand one after another, without padding. No op may let one sequence's numbers
//! depend on the rows around it: every sum has an order of its own, written at the op, that does not
//! depend on the number of rows, the threads, or how a sequence was cut into steps.

use std::{fmt, ops::Range};

pub mod conformance;
pub mod philox;
pub mod recycle;
pub mod reference;
pub mod shape;

pub use reference::ReferenceBackend;
pub use shape::{
    Activation, AdamW, Ask, AttentionShape, Draw, Drawn, Dtype, Footprint, PagedSequence,
    PairShape, Query, RawMatrix, RopeTable, ScratchShape, StepKind,
};

/// Tokens in one block of the paged key-value cache, and keys in one attention tile.
///
/// Attention visits keys in tiles of this many, counted from the sequence's first token, on every
/// path (training, prefill, decode), so that a sequence gives the same bits on all of them.
pub const ATTENTION_TILE: usize = 32;

/// Features that one inner chain of a linear op sums before it is folded into the outer sum.
pub const LINEAR_BLOCK: usize = 256;

/// Tokens of one datum that one inner chain of a LoRA gradient sums before it is folded.
///
/// Tiles count from the datum's first token.
pub const GRADIENT_TILE: usize = 64;

/// What can go wrong in a backend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device has no room for a buffer of this size.
    #[error("allocate {bytes} bytes on the device")]
    OutOfMemory {
        /// Size of the buffer that was asked for.
        bytes: usize,
    },
    /// The device failed; its state cannot be trusted.
    #[error("run the op on the device: {0}")]
    Device(String),
}

/// What backends answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One segment of a step's rows that goes through one adapter's matrices; the uses of an op do not overlap.
#[derive(Debug)]
pub struct LoraUse<'a, L> {
    /// Rows of the step that the adapter applies to.
    pub rows: Range<usize>,
    /// The adapter's matrices at this site.
    pub lora: &'a L,
    /// `alpha / rank`.
    pub scale: f32,
}

/// One run's rows in a backward step, with the place where its gradient gathers.
#[derive(Debug)]
pub struct LoraGradientUse<'a, L, P> {
    /// Rows of the step that belong to the run.
    pub rows: Range<usize>,
    /// The rows of each datum, in the order in which their gradients are folded; they tile `rows`.
    pub datums: &'a [Range<usize>],
    /// The adapter's matrices at this site.
    pub lora: &'a L,
    /// The run's pending gradient at this site; the step adds to it.
    pub gradient: &'a mut P,
    /// `alpha / rank`.
    pub scale: f32,
}

/// Candidates to score, `per_row` for each row, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// Token ids, `[rows * per_row]`.
    pub ids: &'a [u32],
    /// Candidates a row.
    pub per_row: usize,
}

/// Asked for the coefficient `dloss/dlogprob` of each candidate of a range of rows, as soon as their
/// logprobs are known: `(rows, logprobs [rows * per_row], coefficients [rows * per_row])`.
///
/// Called once for each row, in any grouping.
pub type Coefficients<'a> = dyn FnMut(Range<usize>, &[f32], &mut [f32]) + 'a;

/// What may run while a long step is under way.
pub trait Between: Send {
    /// Whether there is something to run now. Asked after every few tasks of an op, so it has to be cheap.
    fn is_due(&mut self) -> bool;
    /// Runs it, where it needs the device on a [`Backend::sibling`].
    fn run(&mut self);
}

/// Nothing to run.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Between for Nothing {
    fn is_due(&mut self) -> bool {
        false
    }

    fn run(&mut self) {}
}

/// The ops of one device, and the buffers that they work on.
///
/// Dropping a buffer frees it. An op may be asynchronous; the ones that give host data back wait.
/// Shapes are the caller's duty: an op may panic where they do not fit. A backend passes all of
/// [`conformance`].
#[expect(
    clippy::too_many_arguments,
    reason = "an op's buffers, each borrowed its own way, read best side by side"
)]
pub trait Backend: Send + 'static {
    /// Activations, `[rows, features]`, f32.
    type Rows: Send + fmt::Debug;
    /// A frozen matrix `[out, in]`, packed as the kernels want it.
    type Weight: Send + Sync + fmt::Debug;
    /// A frozen vector `[features]`, f32.
    type Vector: Send + Sync + fmt::Debug;
    /// One adapter's matrices at one site, A `[rank, in]` and B `[out, rank]`, ready for use.
    type Lora: Send + fmt::Debug;
    /// Two f32 arrays in the shapes of a `Lora`: a gradient, or a moment of the optimizer.
    type Pair: Send + fmt::Debug;
    /// Keys and values of every layer, in blocks of [`ATTENTION_TILE`] tokens.
    type Cache: Send + fmt::Debug;

    /// The kernel set in use with its version, as checkpoints and journals record it, e.g. `f32.1`.
    fn kernel_set(&self) -> &str;

    /// Bytes that a thing takes up, known before it is made.
    fn bytes(&self, of: Footprint) -> usize;

    /// Another one on the same device, with working memory of its own: its ops may run from within this one's
    /// ([`Backend::yielding`]). What either makes serves both.
    fn sibling(&self) -> Result<Self>
    where
        Self: Sized;
    /// Does `work`, and whatever `between` has to run, between the parts of its ops. No bit of the ops changes.
    ///
    /// A backend whose ops are always short, or that is only measured, may do the work alone.
    fn yielding<R>(&mut self, between: &mut dyn Between, work: impl FnOnce(&mut Self) -> R) -> R
    where
        Self: Sized,
    {
        let _ = between;
        work(self)
    }

    // Buffers.

    /// Packs a matrix of a model file.
    fn weight(&mut self, matrix: &RawMatrix<'_>) -> Result<Self::Weight>;
    /// Takes a vector of a model file (`rows` is 1), each element plus `offset`, rounded to f32.
    fn vector(&mut self, vector: &RawMatrix<'_>, offset: f32) -> Result<Self::Vector>;
    /// An activation buffer with `rows` rows; contents are unspecified.
    fn rows(&mut self, rows: usize, features: usize) -> Result<Self::Rows>;
    /// Changes the number of rows; contents become unspecified; memory is kept for later growth.
    fn resize(&mut self, buffer: &mut Self::Rows, rows: usize) -> Result<()>;
    /// Sets every element to zero.
    fn zero(&mut self, buffer: &mut Self::Rows);
    /// Copies rows to the host, row-major `[rows, features]`.
    fn read_rows(&mut self, buffer: &Self::Rows) -> Vec<f32>;
    /// Fills a buffer from the host, row-major `[rows, features]`.
    fn write_rows(&mut self, buffer: &mut Self::Rows, values: &[f32]);
    /// An adapter site from A `[rank, in]` and B `[out, rank]`, both row-major.
    fn lora(&mut self, a: &[f32], b: &[f32], rank: usize) -> Result<Self::Lora>;
    /// Copies A and B to the host, in the layout of [`Backend::lora`].
    fn read_lora(&mut self, lora: &Self::Lora) -> (Vec<f32>, Vec<f32>);
    /// Zeros in the shapes of `lora`.
    fn pair(&mut self, lora: &Self::Lora) -> Result<Self::Pair>;
    /// Sets every element to zero.
    fn zero_pair(&mut self, pair: &mut Self::Pair);
    /// `to = from`, without allocating.
    fn copy_pair(&mut self, to: &mut Self::Pair, from: &Self::Pair);
    /// Copies both arrays to the host, in the layout of [`Backend::lora`].
    fn read_pair(&mut self, pair: &Self::Pair) -> (Vec<f32>, Vec<f32>);
    /// Fills both arrays from the host, in the layout of [`Backend::lora`].
    fn write_pair(&mut self, pair: &mut Self::Pair, a: &[f32], b: &[f32]);
    /// A cache of `blocks` blocks for `layers` layers of `shape`; contents are zero.
    fn cache(
        &mut self,
        blocks: usize,
        layers: usize,
        shape: &AttentionShape,
    ) -> Result<Self::Cache>;
    /// Copies one block (all layers) onto another.
    fn copy_block(&mut self, cache: &mut Self::Cache, from: u32, to: u32);
    /// Bytes of one block, all layers, as [`Backend::read_block`] gives them.
    fn block_bytes(&self, cache: &Self::Cache) -> usize;
    /// Copies one block (all layers) to the host, in a layout of the backend's own.
    fn read_block(&mut self, cache: &Self::Cache, block: u32, bytes: &mut [u8]);
    /// Fills one block with what [`Backend::read_block`] gave for the same cache, to the bit.
    fn write_block(&mut self, cache: &mut Self::Cache, block: u32, bytes: &[u8]);

    // Ops. Each one's math stands in `reference/<op>.rs`.

    /// `out[i] = scale * table[tokens[i]]`.
    fn embed(&mut self, out: &mut Self::Rows, table: &Self::Weight, tokens: &[u32], scale: f32);
    /// `out[i] = x[indices[i]]`.
    fn gather(&mut self, out: &mut Self::Rows, x: &Self::Rows, indices: &[usize]);
    /// `out += x`.
    fn add(&mut self, out: &mut Self::Rows, x: &Self::Rows);
    /// `out = x / sqrt(mean(x²) + eps) * weight`.
    fn rms_norm(&mut self, out: &mut Self::Rows, x: &Self::Rows, weight: &Self::Vector, eps: f32);
    /// `dx += d(rms_norm)/dx · dy`.
    fn rms_norm_backward(
        &mut self,
        dx: &mut Self::Rows,
        dy: &Self::Rows,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
    );
    /// `out (+)= x Wᵀ + bias + scale · (x Aᵀ) Bᵀ`, the last term for the rows of each use.
    ///
    /// `hidden`, if given, is resized to `[rows, max rank]` and keeps `x Aᵀ` for backward.
    fn linear(
        &mut self,
        out: &mut Self::Rows,
        x: &Self::Rows,
        linear: Linear<'_, Self>,
        hidden: Option<&mut Self::Rows>,
    );
    /// Several linear maps of the same rows, which a backend may read once: as [`Backend::linear`] each.
    fn linears(&mut self, x: &Self::Rows, parts: &mut [LinearPart<'_, Self>]) {
        for part in parts {
            let Linear { weight, bias, uses, add } = part.linear;
            let linear = Linear { weight, bias, uses, add };
            self.linear(part.out, x, linear, part.hidden.as_deref_mut());
        }
    }
    /// The gradients of [`Backend::linears`]: overwrites `dx` (if given) by the sum over the parts, in their
    /// order, and adds to each use's gradient.
    fn linears_backward(
        &mut self,
        mut dx: Option<&mut Self::Rows>,
        x: &Self::Rows,
        parts: &mut [LinearGradientPart<'_, '_, Self>],
    ) {
        if let Some(dx) = dx.as_deref_mut() {
            self.zero(dx);
        }
        for part in parts {
            let LinearGradientPart { dy, weight, hidden, uses } = part;
            self.linear_backward(dx.as_deref_mut(), dy, x, weight, hidden, uses);
        }
    }
    /// The gradient of [`Backend::linear`]: adds to `dx` (if given) and to each use's gradient.
    fn linear_backward(
        &mut self,
        dx: Option<&mut Self::Rows>,
        dy: &Self::Rows,
        x: &Self::Rows,
        weight: &Self::Weight,
        hidden: &Self::Rows,
        uses: &mut [LoraGradientUse<'_, Self::Lora, Self::Pair>],
    );
    /// Rotary embedding of each head of `x`, after an RMS norm of each head if `norm` is given.
    fn rope(&mut self, out: &mut Self::Rows, x: &Self::Rows, rope: Rope<'_, Self>);
    /// `dx = d(rope)/dx · dy`.
    fn rope_backward(
        &mut self,
        dx: &mut Self::Rows,
        dy: &Self::Rows,
        x: &Self::Rows,
        rope: Rope<'_, Self>,
    );
    /// Causal attention of whole sequences; what other rows then hold is unspecified.
    ///
    /// `lse` is resized to `[rows, heads]` and keeps each row's log of the sum of exponentials for
    /// backward.
    fn attention(
        &mut self,
        out: &mut Self::Rows,
        lse: &mut Self::Rows,
        qkv: Qkv<'_, Self>,
        sequences: &[Range<usize>],
        shape: &AttentionShape,
    );
    /// The gradient of [`Backend::attention`]: overwrites `dq`, `dk`, `dv`.
    fn attention_backward(
        &mut self,
        gradients: QkvGradients<'_, Self>,
        forward: AttentionForward<'_, Self>,
        sequences: &[Range<usize>],
        shape: &AttentionShape,
    );
    /// Writes the keys and values of each sequence's rows into its blocks.
    fn cache_write(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        k: &Self::Rows,
        v: &Self::Rows,
        sequences: &[PagedSequence<'_>],
    );
    /// Causal attention of each sequence's rows over the blocks that hold all its tokens so far.
    fn attention_paged(
        &mut self,
        out: &mut Self::Rows,
        q: &Self::Rows,
        cache: &Self::Cache,
        layer: usize,
        sequences: &[PagedSequence<'_>],
        shape: &AttentionShape,
    );
    /// `out = activation(gate) * up`.
    fn gated(
        &mut self,
        out: &mut Self::Rows,
        gate: &Self::Rows,
        up: &Self::Rows,
        activation: Activation,
    );
    /// The gradient of [`Backend::gated`]: overwrites `dgate` and `dup`.
    fn gated_backward(
        &mut self,
        dgate: &mut Self::Rows,
        dup: &mut Self::Rows,
        dout: &Self::Rows,
        gate: &Self::Rows,
        up: &Self::Rows,
        activation: Activation,
    );
    /// `logprobs[i, j] = log_softmax(unembedding(x[i]))[targets[i, j]]`, rows in chunks.
    fn score(
        &mut self,
        logprobs: &mut [f32],
        x: &Self::Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &[LoraUse<'_, Self::Lora>],
        targets: Targets<'_>,
    );
    /// Scores, asks for the coefficients, and differentiates, from one pass over the logits.
    ///
    /// With `c[i, j]` the coefficients, `dlogits[i] = Σ_j c[i, j] (onehot(targets[i, j]) - softmax(i))`,
    /// then through the softcap; overwrites `dx` (if given) and adds to each use's gradient.
    fn score_backward(
        &mut self,
        dx: Option<&mut Self::Rows>,
        x: &Self::Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &mut [LoraGradientUse<'_, Self::Lora, Self::Pair>],
        targets: Targets<'_>,
        coefficients: &mut Coefficients<'_>,
    );
    /// Answers queries about the logits of rows, in ascending order of rows; computes each row's logits
    /// once. Replaces what was in `answers` by [`Query::answers`] tokens a query, in their order.
    fn sample(
        &mut self,
        answers: &mut Vec<Drawn>,
        x: &Self::Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &[LoraUse<'_, Self::Lora>],
        asks: &[Ask],
    );
    /// One `AdamW` step of one site; the gradient is multiplied by `gradient_scale` first.
    fn adamw(
        &mut self,
        lora: &mut Self::Lora,
        gradient: &Self::Pair,
        first: &mut Self::Pair,
        second: &mut Self::Pair,
        step: &AdamW,
    );
    /// The sums of the squares of A's and of B's elements, in f64, in a fixed order.
    fn sum_squares(&mut self, pair: &Self::Pair) -> (f64, f64);
}

/// A frozen matrix with the adapters that apply to it.
#[derive(Debug)]
pub struct Linear<'a, B: Backend + ?Sized> {
    /// `[out, in]`.
    pub weight: &'a B::Weight,
    /// `[out]`.
    pub bias: Option<&'a B::Vector>,
    /// Rows that no use covers go through the frozen matrix alone.
    pub uses: &'a [LoraUse<'a, B::Lora>],
    /// Adds to the output instead of overwriting it.
    pub add: bool,
}

/// One of several linear maps of the same rows.
#[derive(Debug)]
pub struct LinearPart<'a, B: Backend + ?Sized> {
    /// Where it goes.
    pub out: &'a mut B::Rows,
    /// The map.
    pub linear: Linear<'a, B>,
    /// Keeps `x Aᵀ` for backward.
    pub hidden: Option<&'a mut B::Rows>,
}

/// The gradient of one of several linear maps of the same rows.
#[derive(Debug)]
pub struct LinearGradientPart<'a, 'u, B: Backend + ?Sized> {
    /// The gradient of what it gave.
    pub dy: &'a B::Rows,
    /// `[out, in]`.
    pub weight: &'a B::Weight,
    /// What forward kept.
    pub hidden: &'a B::Rows,
    /// The adapters' gradients.
    pub uses: &'a mut [LoraGradientUse<'u, B::Lora, B::Pair>],
}

/// The frozen matrix that gives logits; the adapters that apply to it stand beside it.
#[derive(Debug)]
pub struct Unembedding<'a, B: Backend + ?Sized> {
    /// `[vocabulary, in]`.
    pub weight: &'a B::Weight,
    /// `c`, if logits are `c · tanh(l / c)` of what the matrix and its adapters give.
    pub softcap: Option<f32>,
}

// Not derived: a derive would ask that the backend itself be `Copy`.
impl<B: Backend + ?Sized> Clone for Unembedding<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend + ?Sized> Copy for Unembedding<'_, B> {}

/// How heads are rotated.
#[derive(Debug)]
pub struct Rope<'a, B: Backend + ?Sized> {
    /// RMS norm of each head before the rotation: weight `[head_dim]` and epsilon.
    pub norm: Option<(&'a B::Vector, f32)>,
    /// Inverse frequencies.
    pub table: &'a RopeTable,
    /// Each row's position in its sequence.
    pub positions: &'a [u32],
    /// Features of one head.
    pub head_dim: usize,
}

/// Queries `[rows, heads * head_dim]`, keys and values `[rows, kv_heads * head_dim]`.
#[derive(Debug)]
pub struct Qkv<'a, B: Backend + ?Sized> {
    /// Queries, rotated.
    pub q: &'a B::Rows,
    /// Keys, rotated.
    pub k: &'a B::Rows,
    /// Values.
    pub v: &'a B::Rows,
}

/// Where the gradients of queries, keys and values go.
#[derive(Debug)]
pub struct QkvGradients<'a, B: Backend + ?Sized> {
    /// Overwritten.
    pub dq: &'a mut B::Rows,
    /// Overwritten.
    pub dk: &'a mut B::Rows,
    /// Overwritten.
    pub dv: &'a mut B::Rows,
}

/// What attention saw and gave, and the gradient of what it gave.
#[derive(Debug)]
pub struct AttentionForward<'a, B: Backend + ?Sized> {
    /// Its inputs.
    pub qkv: Qkv<'a, B>,
    /// Its output.
    pub out: &'a B::Rows,
    /// Log of the sum of exponentials, `[rows, heads]`.
    pub lse: &'a B::Rows,
    /// Gradient of its output.
    pub dout: &'a B::Rows,
}
