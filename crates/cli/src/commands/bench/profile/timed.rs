//! A backend around another that notes what each op takes: how often it ran, for how long, and its arithmetic.
//!
//! A new op is a method here, which the compiler asks for where the trait has no default; its floating-point
//! operations stand at it.

use std::{ops::Range, time::Duration};

use tinsmith_backend::{
    Activation, AdamW, Ask, AttentionForward, AttentionShape, Backend, Coefficients, Drawn,
    Footprint, Linear, LinearGradientPart, LinearPart, LoraGradientUse, LoraUse, PagedSequence,
    Qkv, QkvGradients, RawMatrix, Result, Rope, Targets, Unembedding,
};

use super::{
    super::now,
    notes::{Notes, Op},
};

/// `B`, timed.
#[derive(Debug)]
pub(super) struct Timed<B> {
    inner: B,
    notes: Notes,
}

/// A buffer whose shape is known.
#[derive(Debug)]
pub(super) struct Rows<R> {
    inner: R,
    rows: usize,
    features: usize,
}

/// A matrix `[outputs, inputs]`.
#[derive(Debug)]
pub(super) struct Weight<W> {
    inner: W,
    outputs: usize,
    inputs: usize,
}

/// An adapter's matrices at one site.
#[derive(Debug)]
pub(super) struct Lora<L> {
    inner: L,
    rank: usize,
}

impl<B: Backend> Timed<B> {
    pub(super) fn new(inner: B, notes: Notes) -> Self {
        Self { inner, notes }
    }

    fn time<T>(&mut self, name: &'static str, run: impl FnOnce(&mut B) -> T) -> T {
        self.time_product(Op { name, shape: None }, 0, run)
    }

    fn time_product<T>(&mut self, op: Op, flops: usize, run: impl FnOnce(&mut B) -> T) -> T {
        let start = now();
        let answer = run(&mut self.inner);
        self.notes.add(op, start.elapsed(), flops);
        answer
    }
}

impl<R> Rows<R> {
    /// The buffer inside, which an op is about to resize to `[rows, max rank]`.
    fn keep<L>(&mut self, rows: usize, uses: &[LoraUse<'_, Lora<L>>]) -> &mut R {
        self.rows = rows;
        self.features = uses.iter().map(|used| used.lora.rank).max().unwrap_or(0);
        &mut self.inner
    }
}

impl<W> Weight<W> {
    /// Floating-point operations of one row through the matrix.
    fn flops(&self) -> usize {
        2 * self.inputs * self.outputs
    }

    /// The same through an adapter's two matrices.
    fn adapter_flops(&self, rank: usize) -> usize {
        2 * rank * (self.inputs + self.outputs)
    }

    fn uses_flops<L>(&self, uses: &[LoraUse<'_, Lora<L>>]) -> usize {
        uses.iter().map(|used| used.rows.len() * self.adapter_flops(used.lora.rank)).sum()
    }

    /// Both gradients of an adapter's matrices, `dy B`, and `A`'s part of the input's gradient.
    fn gradient_flops<L, P>(&self, uses: &[LoraGradientUse<'_, Lora<L>, P>], dx: bool) -> usize {
        let one = |used: &LoraGradientUse<'_, Lora<L>, P>| {
            let (out, input) = (self.outputs, self.inputs);
            let features = out + out + input + if dx { input } else { 0 };
            used.rows.len() * 2 * used.lora.rank * features
        };
        uses.iter().map(one).sum()
    }
}

fn product<W>(name: &'static str, weight: &Weight<W>) -> Op {
    Op { name, shape: Some((weight.inputs, weight.outputs)) }
}

fn bare_uses<'a, L>(uses: &'a [LoraUse<'_, Lora<L>>]) -> Vec<LoraUse<'a, L>> {
    let bare = |used: &'a LoraUse<'_, Lora<L>>| LoraUse {
        rows: used.rows.clone(),
        lora: &used.lora.inner,
        scale: used.scale,
    };
    uses.iter().map(bare).collect()
}

fn bare_gradient_uses<'a, L, P>(
    uses: &'a mut [LoraGradientUse<'_, Lora<L>, P>],
) -> Vec<LoraGradientUse<'a, L, P>> {
    let bare = |used: &'a mut LoraGradientUse<'_, Lora<L>, P>| LoraGradientUse {
        rows: used.rows.clone(),
        datums: used.datums,
        lora: &used.lora.inner,
        gradient: &mut *used.gradient,
        scale: used.scale,
    };
    uses.iter_mut().map(bare).collect()
}

fn bare_qkv<'a, B: Backend>(qkv: &Qkv<'a, Timed<B>>) -> Qkv<'a, B> {
    Qkv { q: &qkv.q.inner, k: &qkv.k.inner, v: &qkv.v.inner }
}

fn bare_rope<'a, B: Backend>(rope: &Rope<'a, Timed<B>>) -> Rope<'a, B> {
    let Rope { norm, table, positions, head_dim } = *rope;
    Rope { norm, table, positions, head_dim }
}

fn bare_unembedding<'a, B: Backend>(unembedding: Unembedding<'a, Timed<B>>) -> Unembedding<'a, B> {
    Unembedding { weight: &unembedding.weight.inner, softcap: unembedding.softcap }
}

/// Pairs of a query and a key that it sees, of all heads, times twice a head's features.
fn pairs_flops(positions: impl Iterator<Item = usize>, shape: &AttentionShape) -> usize {
    let pairs: usize = positions.map(|position| shape.visible(position).len()).sum();
    pairs * shape.heads * shape.head_dim * 2
}

fn sequences_flops(sequences: &[Range<usize>], shape: &AttentionShape) -> usize {
    sequences.iter().map(|rows| pairs_flops(0..rows.len(), shape)).sum()
}

impl<B: Backend> Backend for Timed<B> {
    type Rows = Rows<B::Rows>;
    type Weight = Weight<B::Weight>;
    type Vector = B::Vector;
    type Lora = Lora<B::Lora>;
    type Pair = B::Pair;
    type Cache = B::Cache;

    fn kernel_set(&self) -> &str {
        self.inner.kernel_set()
    }

    fn bytes(&self, of: Footprint) -> usize {
        self.inner.bytes(of)
    }

    fn sibling(&self) -> Result<Self> {
        Ok(Self { inner: self.inner.sibling()?, notes: self.notes.clone() })
    }

    fn weight(&mut self, matrix: &RawMatrix<'_>) -> Result<Self::Weight> {
        let inner = self.inner.weight(matrix)?;
        Ok(Weight { inner, outputs: matrix.rows, inputs: matrix.cols })
    }

    fn vector(&mut self, vector: &RawMatrix<'_>, offset: f32) -> Result<B::Vector> {
        self.inner.vector(vector, offset)
    }

    fn rows(&mut self, rows: usize, features: usize) -> Result<Self::Rows> {
        let inner = self.time("rows", |inner| inner.rows(rows, features))?;
        Ok(Rows { inner, rows, features })
    }

    fn resize(&mut self, buffer: &mut Self::Rows, rows: usize) -> Result<()> {
        buffer.rows = rows;
        self.time("resize", |inner| inner.resize(&mut buffer.inner, rows))
    }

    fn zero(&mut self, buffer: &mut Self::Rows) {
        self.time("zero", |inner| inner.zero(&mut buffer.inner));
    }

    fn read_rows(&mut self, buffer: &Self::Rows) -> Vec<f32> {
        self.time("read_rows", |inner| inner.read_rows(&buffer.inner))
    }

    fn write_rows(&mut self, buffer: &mut Self::Rows, values: &[f32]) {
        self.time("write_rows", |inner| inner.write_rows(&mut buffer.inner, values));
    }

    fn lora(&mut self, a: &[f32], b: &[f32], rank: usize) -> Result<Self::Lora> {
        let inner = self.time("lora", |inner| inner.lora(a, b, rank))?;
        Ok(Lora { inner, rank })
    }

    fn read_lora(&mut self, lora: &Self::Lora) -> (Vec<f32>, Vec<f32>) {
        self.time("read_lora", |inner| inner.read_lora(&lora.inner))
    }

    fn pair(&mut self, lora: &Self::Lora) -> Result<B::Pair> {
        self.time("pair", |inner| inner.pair(&lora.inner))
    }

    fn zero_pair(&mut self, pair: &mut B::Pair) {
        self.time("zero_pair", |inner| inner.zero_pair(pair));
    }

    fn copy_pair(&mut self, to: &mut B::Pair, from: &B::Pair) {
        self.time("copy_pair", |inner| inner.copy_pair(to, from));
    }

    fn read_pair(&mut self, pair: &B::Pair) -> (Vec<f32>, Vec<f32>) {
        self.time("read_pair", |inner| inner.read_pair(pair))
    }

    fn write_pair(&mut self, pair: &mut B::Pair, a: &[f32], b: &[f32]) {
        self.time("write_pair", |inner| inner.write_pair(pair, a, b));
    }

    fn cache(&mut self, blocks: usize, layers: usize, shape: &AttentionShape) -> Result<B::Cache> {
        self.inner.cache(blocks, layers, shape)
    }

    fn copy_block(&mut self, cache: &mut B::Cache, from: u32, to: u32) {
        self.time("copy_block", |inner| inner.copy_block(cache, from, to));
    }

    fn block_bytes(&self, cache: &B::Cache) -> usize {
        self.inner.block_bytes(cache)
    }

    fn read_block(&mut self, cache: &B::Cache, block: u32, bytes: &mut [u8]) {
        self.time("read_block", |inner| inner.read_block(cache, block, bytes));
    }

    fn write_block(&mut self, cache: &mut B::Cache, block: u32, bytes: &[u8]) {
        self.time("write_block", |inner| inner.write_block(cache, block, bytes));
    }

    fn embed(&mut self, out: &mut Self::Rows, table: &Self::Weight, tokens: &[u32], scale: f32) {
        self.time("embed", |inner| inner.embed(&mut out.inner, &table.inner, tokens, scale));
    }

    fn gather(&mut self, out: &mut Self::Rows, x: &Self::Rows, indices: &[usize]) {
        self.time("gather", |inner| inner.gather(&mut out.inner, &x.inner, indices));
    }

    fn add(&mut self, out: &mut Self::Rows, x: &Self::Rows) {
        self.time("add", |inner| inner.add(&mut out.inner, &x.inner));
    }

    fn rms_norm(&mut self, out: &mut Self::Rows, x: &Self::Rows, weight: &B::Vector, eps: f32) {
        self.time("rms_norm", |inner| inner.rms_norm(&mut out.inner, &x.inner, weight, eps));
    }

    fn rms_norm_backward(
        &mut self,
        dx: &mut Self::Rows,
        dy: &Self::Rows,
        x: &Self::Rows,
        weight: &B::Vector,
        eps: f32,
    ) {
        self.time("rms_norm_backward", |inner| {
            inner.rms_norm_backward(&mut dx.inner, &dy.inner, &x.inner, weight, eps);
        });
    }

    fn linear(
        &mut self,
        out: &mut Self::Rows,
        x: &Self::Rows,
        linear: Linear<'_, Self>,
        hidden: Option<&mut Self::Rows>,
    ) {
        let Linear { weight, bias, uses, add } = linear;
        let flops = out.rows * weight.flops() + weight.uses_flops(uses);
        let bare = bare_uses(uses);
        let hidden = hidden.map(|hidden| hidden.keep(x.rows, uses));
        self.time_product(product("linear", weight), flops, |inner| {
            let linear = Linear { weight: &weight.inner, bias, uses: &bare, add };
            inner.linear(&mut out.inner, &x.inner, linear, hidden);
        });
    }

    fn linear_backward(
        &mut self,
        dx: Option<&mut Self::Rows>,
        dy: &Self::Rows,
        x: &Self::Rows,
        weight: &Self::Weight,
        hidden: &Self::Rows,
        uses: &mut [LoraGradientUse<'_, Self::Lora, B::Pair>],
    ) {
        let through = if dx.is_some() { dy.rows * weight.flops() } else { 0 };
        let flops = through + weight.gradient_flops(uses, dx.is_some());
        let mut bare = bare_gradient_uses(uses);
        let dx = dx.map(|dx| &mut dx.inner);
        self.time_product(product("linear_backward", weight), flops, |inner| {
            let (dy, x, hidden) = (&dy.inner, &x.inner, &hidden.inner);
            inner.linear_backward(dx, dy, x, &weight.inner, hidden, &mut bare);
        });
    }

    fn linears(&mut self, x: &Self::Rows, parts: &mut [LinearPart<'_, Self>]) {
        let outputs = parts.iter().map(|part| part.linear.weight.outputs).sum();
        let op = Op { name: "linears", shape: Some((x.features, outputs)) };
        let one = |part: &LinearPart<'_, Self>| {
            x.rows * part.linear.weight.flops() + part.linear.weight.uses_flops(part.linear.uses)
        };
        let flops = parts.iter().map(one).sum();
        let uses: Vec<_> = parts.iter().map(|part| bare_uses(part.linear.uses)).collect();
        let mut bare: Vec<LinearPart<'_, B>> = Vec::new();
        for (part, bare_uses) in parts.iter_mut().zip(&uses) {
            let Linear { weight, bias, uses, add } = part.linear;
            let hidden = part.hidden.as_deref_mut().map(|hidden| hidden.keep(x.rows, uses));
            let linear = Linear { weight: &weight.inner, bias, uses: bare_uses, add };
            bare.push(LinearPart { out: &mut part.out.inner, linear, hidden });
        }
        self.time_product(op, flops, |inner| inner.linears(&x.inner, &mut bare));
    }

    fn linears_backward(
        &mut self,
        dx: Option<&mut Self::Rows>,
        x: &Self::Rows,
        parts: &mut [LinearGradientPart<'_, '_, Self>],
    ) {
        let outputs = parts.iter().map(|part| part.weight.outputs).sum();
        let op = Op { name: "linears_backward", shape: Some((x.features, outputs)) };
        let through = dx.is_some();
        let one = |part: &LinearGradientPart<'_, '_, Self>| {
            let input = if through { x.rows * part.weight.flops() } else { 0 };
            input + part.weight.gradient_flops(part.uses, through)
        };
        let flops = parts.iter().map(one).sum();
        let mut uses = Vec::new();
        let mut rest = Vec::new();
        for LinearGradientPart { dy, weight, hidden, uses: given } in parts {
            uses.push(bare_gradient_uses(given));
            rest.push((&dy.inner, &weight.inner, &hidden.inner));
        }
        let mut bare: Vec<LinearGradientPart<'_, '_, B>> = uses
            .iter_mut()
            .zip(rest)
            .map(|(uses, (dy, weight, hidden))| LinearGradientPart { dy, weight, hidden, uses })
            .collect();
        let dx = dx.map(|dx| &mut dx.inner);
        self.time_product(op, flops, |inner| inner.linears_backward(dx, &x.inner, &mut bare));
    }

    fn rope(&mut self, out: &mut Self::Rows, x: &Self::Rows, rope: Rope<'_, Self>) {
        self.time("rope", |inner| inner.rope(&mut out.inner, &x.inner, bare_rope(&rope)));
    }

    fn rope_backward(
        &mut self,
        dx: &mut Self::Rows,
        dy: &Self::Rows,
        x: &Self::Rows,
        rope: Rope<'_, Self>,
    ) {
        self.time("rope_backward", |inner| {
            inner.rope_backward(&mut dx.inner, &dy.inner, &x.inner, bare_rope(&rope));
        });
    }

    fn attention(
        &mut self,
        out: &mut Self::Rows,
        lse: &mut Self::Rows,
        qkv: Qkv<'_, Self>,
        sequences: &[Range<usize>],
        shape: &AttentionShape,
    ) {
        let op = Op { name: "attention", shape: None };
        // Scores, and the weighted sum of values.
        self.time_product(op, 2 * sequences_flops(sequences, shape), |inner| {
            let qkv = bare_qkv(&qkv);
            inner.attention(&mut out.inner, &mut lse.inner, qkv, sequences, shape);
        });
        (lse.rows, lse.features) = (out.rows, shape.heads);
    }

    fn attention_backward(
        &mut self,
        gradients: QkvGradients<'_, Self>,
        forward: AttentionForward<'_, Self>,
        sequences: &[Range<usize>],
        shape: &AttentionShape,
    ) {
        let op = Op { name: "attention_backward", shape: None };
        let AttentionForward { qkv, out, lse, dout } = forward;
        // Scores again, the weights' gradient, and those of queries, keys and values.
        self.time_product(op, 5 * sequences_flops(sequences, shape), |inner| {
            let gradients = QkvGradients {
                dq: &mut gradients.dq.inner,
                dk: &mut gradients.dk.inner,
                dv: &mut gradients.dv.inner,
            };
            let forward = AttentionForward {
                qkv: bare_qkv(&qkv),
                out: &out.inner,
                lse: &lse.inner,
                dout: &dout.inner,
            };
            inner.attention_backward(gradients, forward, sequences, shape);
        });
    }

    fn cache_write(
        &mut self,
        cache: &mut B::Cache,
        layer: usize,
        k: &Self::Rows,
        v: &Self::Rows,
        sequences: &[PagedSequence<'_>],
    ) {
        self.time("cache_write", |inner| {
            inner.cache_write(cache, layer, &k.inner, &v.inner, sequences);
        });
    }

    fn attention_paged(
        &mut self,
        out: &mut Self::Rows,
        q: &Self::Rows,
        cache: &B::Cache,
        layer: usize,
        sequences: &[PagedSequence<'_>],
        shape: &AttentionShape,
    ) {
        let op = Op { name: "attention_paged", shape: None };
        let positions = |sequence: &PagedSequence<'_>| {
            sequence.position..sequence.position + sequence.rows.len()
        };
        let flops = 2 * pairs_flops(sequences.iter().flat_map(positions), shape);
        self.time_product(op, flops, |inner| {
            inner.attention_paged(&mut out.inner, &q.inner, cache, layer, sequences, shape);
        });
    }

    fn gated(
        &mut self,
        out: &mut Self::Rows,
        gate: &Self::Rows,
        up: &Self::Rows,
        activation: Activation,
    ) {
        self.time("gated", |inner| {
            inner.gated(&mut out.inner, &gate.inner, &up.inner, activation);
        });
    }

    fn gated_backward(
        &mut self,
        dgate: &mut Self::Rows,
        dup: &mut Self::Rows,
        dout: &Self::Rows,
        gate: &Self::Rows,
        up: &Self::Rows,
        activation: Activation,
    ) {
        self.time("gated_backward", |inner| {
            let (dgate, dup) = (&mut dgate.inner, &mut dup.inner);
            inner.gated_backward(dgate, dup, &dout.inner, &gate.inner, &up.inner, activation);
        });
    }

    fn score(
        &mut self,
        logprobs: &mut [f32],
        x: &Self::Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &[LoraUse<'_, Self::Lora>],
        targets: Targets<'_>,
    ) {
        let weight = unembedding.weight;
        let flops = x.rows * weight.flops() + weight.uses_flops(uses);
        let bare = bare_uses(uses);
        self.time_product(product("score", weight), flops, |inner| {
            inner.score(logprobs, &x.inner, bare_unembedding(unembedding), &bare, targets);
        });
    }

    fn score_backward(
        &mut self,
        dx: Option<&mut Self::Rows>,
        x: &Self::Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &mut [LoraGradientUse<'_, Self::Lora, B::Pair>],
        targets: Targets<'_>,
        coefficients: &mut Coefficients<'_>,
    ) {
        let weight = unembedding.weight;
        let adapters =
            uses.iter().map(|used| used.rows.len() * weight.adapter_flops(used.lora.rank));
        let forward = x.rows * weight.flops() + adapters.sum::<usize>();
        let through = if dx.is_some() { x.rows * weight.flops() } else { 0 };
        let flops = forward + through + weight.gradient_flops(uses, dx.is_some());
        let mut bare = bare_gradient_uses(uses);
        let dx = dx.map(|dx| &mut dx.inner);
        let start = now();
        let mut elsewhere = Duration::ZERO;
        self.inner.score_backward(
            dx,
            &x.inner,
            bare_unembedding(unembedding),
            &mut bare,
            targets,
            &mut |rows, logprobs, values| {
                let start = now();
                coefficients(rows, logprobs, values);
                elsewhere += start.elapsed();
            },
        );
        let own = start.elapsed().saturating_sub(elsewhere);
        self.notes.add(product("score_backward", weight), own, flops);
        self.notes.add(Op { name: "loss", shape: None }, elsewhere, 0);
    }

    fn sample(
        &mut self,
        answers: &mut Vec<Drawn>,
        x: &Self::Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &[LoraUse<'_, Self::Lora>],
        asks: &[Ask],
    ) {
        let weight = unembedding.weight;
        let mut rows: Vec<usize> = asks.iter().map(|ask| ask.row).collect();
        rows.dedup();
        let adapter = |row: &usize| {
            let used = uses.iter().find(|used| used.rows.contains(row));
            used.map_or(0, |used| weight.adapter_flops(used.lora.rank))
        };
        let flops = rows.len() * weight.flops() + rows.iter().map(adapter).sum::<usize>();
        let bare = bare_uses(uses);
        self.time_product(product("sample", weight), flops, |inner| {
            inner.sample(answers, &x.inner, bare_unembedding(unembedding), &bare, asks);
        });
    }

    fn adamw(
        &mut self,
        lora: &mut Self::Lora,
        gradient: &B::Pair,
        first: &mut B::Pair,
        second: &mut B::Pair,
        step: &AdamW,
    ) {
        self.time("adamw", |inner| inner.adamw(&mut lora.inner, gradient, first, second, step));
    }

    fn sum_squares(&mut self, pair: &B::Pair) -> (f64, f64) {
        self.time("sum_squares", |inner| inner.sum_squares(pair))
    }
}
