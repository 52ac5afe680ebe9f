//! The truth: every op as plain loops in f64, on the host, one row after another.
//!
//! Fast backends are compared with it ([`crate::conformance`]), and finite differences run on it. An op
//! stands in `reference/<op>.rs`, beside its math. Buffers hold NaN until they are written, so that
//! reading what nobody wrote shows.

use std::ops::Range;

use crate::{
    Activation, AdamW, Ask, AttentionForward, AttentionShape, Backend, Coefficients, Drawn,
    Footprint, Linear, LoraGradientUse, LoraUse, PagedSequence, Qkv, QkvGradients, RawMatrix,
    Result, Rope, Targets, Unembedding,
};

mod adamw;
mod add;
mod attention;
mod buffer;
mod embed;
mod gated;
mod linear;
mod rms_norm;
mod rope;
mod sample;
mod score;

pub use buffer::{Cache, Lora, Pair, Rows, Vector, Weight};

/// The reference backend; see the module.
#[derive(Debug)]
pub struct ReferenceBackend;

impl Backend for ReferenceBackend {
    type Rows = Rows;
    type Weight = Weight;
    type Vector = Vector;
    type Lora = Lora;
    type Pair = Pair;
    type Cache = Cache;

    fn kernel_set(&self) -> &'static str {
        "reference"
    }

    fn bytes(&self, of: Footprint) -> usize {
        buffer::bytes(of)
    }

    fn sibling(&self) -> Result<Self> {
        Ok(Self)
    }

    fn weight(&mut self, matrix: &RawMatrix<'_>) -> Result<Weight> {
        Ok(Weight::from_raw(matrix))
    }

    fn vector(&mut self, vector: &RawMatrix<'_>, offset: f32) -> Result<Vector> {
        Ok(Vector::from_raw(vector, offset))
    }

    fn rows(&mut self, rows: usize, features: usize) -> Result<Rows> {
        Ok(Rows::unwritten(rows, features))
    }

    fn resize(&mut self, buffer: &mut Rows, rows: usize) -> Result<()> {
        buffer.reshape(rows, buffer.features());
        Ok(())
    }

    fn zero(&mut self, buffer: &mut Rows) {
        buffer.values_mut().fill(0.0);
    }

    fn read_rows(&mut self, buffer: &Rows) -> Vec<f32> {
        buffer::to_f32(buffer.values())
    }

    fn write_rows(&mut self, buffer: &mut Rows, values: &[f32]) {
        buffer::copy_from_f32(buffer.values_mut(), values);
    }

    fn lora(&mut self, a: &[f32], b: &[f32], rank: usize) -> Result<Lora> {
        Ok(Lora { rank, a: buffer::to_f64(a), b: buffer::to_f64(b) })
    }

    fn read_lora(&mut self, lora: &Lora) -> (Vec<f32>, Vec<f32>) {
        (buffer::to_f32(&lora.a), buffer::to_f32(&lora.b))
    }

    fn pair(&mut self, lora: &Lora) -> Result<Pair> {
        Ok(Pair { a: vec![0.0; lora.a.len()], b: vec![0.0; lora.b.len()] })
    }

    fn zero_pair(&mut self, pair: &mut Pair) {
        pair.a.fill(0.0);
        pair.b.fill(0.0);
    }

    fn copy_pair(&mut self, to: &mut Pair, from: &Pair) {
        to.a.copy_from_slice(&from.a);
        to.b.copy_from_slice(&from.b);
    }

    fn read_pair(&mut self, pair: &Pair) -> (Vec<f32>, Vec<f32>) {
        (buffer::to_f32(&pair.a), buffer::to_f32(&pair.b))
    }

    fn write_pair(&mut self, pair: &mut Pair, a: &[f32], b: &[f32]) {
        buffer::copy_from_f32(&mut pair.a, a);
        buffer::copy_from_f32(&mut pair.b, b);
    }

    fn cache(&mut self, blocks: usize, layers: usize, shape: &AttentionShape) -> Result<Cache> {
        Ok(Cache::zeros(blocks, layers, shape.kv_heads * shape.head_dim))
    }

    fn copy_block(&mut self, cache: &mut Cache, from: u32, to: u32) {
        cache.copy_block(from, to);
    }

    fn block_bytes(&self, cache: &Cache) -> usize {
        cache.block_bytes()
    }

    fn read_block(&mut self, cache: &Cache, block: u32, bytes: &mut [u8]) {
        cache.read_block(block, bytes);
    }

    fn write_block(&mut self, cache: &mut Cache, block: u32, bytes: &[u8]) {
        cache.write_block(block, bytes);
    }

    fn embed(&mut self, out: &mut Rows, table: &Weight, tokens: &[u32], scale: f32) {
        embed::embed(out, table, tokens, scale);
    }

    fn gather(&mut self, out: &mut Rows, x: &Rows, indices: &[usize]) {
        embed::gather(out, x, indices);
    }

    fn add(&mut self, out: &mut Rows, x: &Rows) {
        add::add(out, x);
    }

    fn rms_norm(&mut self, out: &mut Rows, x: &Rows, weight: &Vector, eps: f32) {
        rms_norm::forward(out, x, weight, eps);
    }

    fn rms_norm_backward(&mut self, dx: &mut Rows, dy: &Rows, x: &Rows, weight: &Vector, eps: f32) {
        rms_norm::backward(dx, dy, x, weight, eps);
    }

    fn linear(
        &mut self,
        out: &mut Rows,
        x: &Rows,
        linear: Linear<'_, Self>,
        hidden: Option<&mut Rows>,
    ) {
        linear::forward(out, x, &linear, hidden);
    }

    fn linear_backward(
        &mut self,
        dx: Option<&mut Rows>,
        dy: &Rows,
        x: &Rows,
        weight: &Weight,
        hidden: &Rows,
        uses: &mut [LoraGradientUse<'_, Lora, Pair>],
    ) {
        linear::backward(dx, dy, x, weight, hidden, uses);
    }

    fn rope(&mut self, out: &mut Rows, x: &Rows, rope: Rope<'_, Self>) {
        rope::forward(out, x, &rope);
    }

    fn rope_backward(&mut self, dx: &mut Rows, dy: &Rows, x: &Rows, rope: Rope<'_, Self>) {
        rope::backward(dx, dy, x, &rope);
    }

    fn attention(
        &mut self,
        out: &mut Rows,
        lse: &mut Rows,
        qkv: Qkv<'_, Self>,
        sequences: &[Range<usize>],
        shape: &AttentionShape,
    ) {
        attention::forward(out, lse, &qkv, sequences, shape);
    }

    fn attention_backward(
        &mut self,
        gradients: QkvGradients<'_, Self>,
        forward: AttentionForward<'_, Self>,
        sequences: &[Range<usize>],
        shape: &AttentionShape,
    ) {
        attention::backward(gradients, &forward, sequences, shape);
    }

    fn cache_write(
        &mut self,
        cache: &mut Cache,
        layer: usize,
        k: &Rows,
        v: &Rows,
        sequences: &[PagedSequence<'_>],
    ) {
        attention::cache_write(cache, layer, k, v, sequences);
    }

    fn attention_paged(
        &mut self,
        out: &mut Rows,
        q: &Rows,
        cache: &Cache,
        layer: usize,
        sequences: &[PagedSequence<'_>],
        shape: &AttentionShape,
    ) {
        attention::paged(out, q, cache, layer, sequences, shape);
    }

    fn gated(&mut self, out: &mut Rows, gate: &Rows, up: &Rows, activation: Activation) {
        gated::forward(out, gate, up, activation);
    }

    fn gated_backward(
        &mut self,
        dgate: &mut Rows,
        dup: &mut Rows,
        dout: &Rows,
        gate: &Rows,
        up: &Rows,
        activation: Activation,
    ) {
        gated::backward(dgate, dup, dout, gate, up, activation);
    }

    fn score(
        &mut self,
        logprobs: &mut [f32],
        x: &Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &[LoraUse<'_, Lora>],
        targets: Targets<'_>,
    ) {
        buffer::round_to_f32(logprobs, &score::forward(x, unembedding, uses, targets));
    }

    fn score_backward(
        &mut self,
        dx: Option<&mut Rows>,
        x: &Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &mut [LoraGradientUse<'_, Lora, Pair>],
        targets: Targets<'_>,
        coefficients: &mut Coefficients<'_>,
    ) {
        score::backward(dx, x, unembedding, uses, targets, coefficients);
    }

    fn sample(
        &mut self,
        answers: &mut Vec<Drawn>,
        x: &Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &[LoraUse<'_, Lora>],
        asks: &[Ask],
    ) {
        sample::sample(answers, x, unembedding, uses, asks);
    }

    fn adamw(
        &mut self,
        lora: &mut Lora,
        gradient: &Pair,
        first: &mut Pair,
        second: &mut Pair,
        step: &AdamW,
    ) {
        adamw::adamw(lora, gradient, first, second, step);
    }

    fn sum_squares(&mut self, pair: &Pair) -> (f64, f64) {
        adamw::sum_squares(pair)
    }
}

#[cfg(test)]
fn assert_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert!(
            (actual - expected).abs() <= 1e-12 * expected.abs().max(1.0),
            "{actual} {expected}"
        );
    }
}
