//! The backend trait, each op handed to its own file.

use std::ops::Range;

use tinsmith_backend::{
    Activation, AdamW, Ask, AttentionForward, AttentionShape, Backend, Between, Coefficients,
    Drawn, Footprint, Linear, LinearGradientPart, LinearPart, LoraGradientUse, LoraUse,
    PagedSequence, Qkv, QkvGradients, RawMatrix, Result, Rope, Targets, Unembedding,
};

use crate::{
    Cache, CpuBackend, Kernels, Lora, Pair, Rows, Vector, Weight, adamw, add,
    attention::{self, Tiling},
    attention_backward, embed, footprint, gated, linear, rms_norm, rope, sample, score,
};

impl Backend for CpuBackend {
    type Rows = Rows;
    type Weight = Weight;
    type Vector = Vector;
    type Lora = Lora;
    type Pair = Pair;
    type Cache = Cache;

    fn kernel_set(&self) -> &str {
        self.set.versioned()
    }

    fn bytes(&self, of: Footprint) -> usize {
        footprint::bytes(self, of)
    }

    fn sibling(&self) -> Result<Self> {
        let kernels = Kernels { set: self.set, path: self.path };
        Ok(Self::with_pool(kernels, self.pool.sibling()))
    }

    fn yielding<R>(&mut self, between: &mut dyn Between, work: impl FnOnce(&mut Self) -> R) -> R {
        let slot = self.pool.between.clone();
        slot.lend(between, || work(self))
    }

    fn weight(&mut self, matrix: &RawMatrix<'_>) -> Result<Weight> {
        Weight::new(matrix, self.set, &self.pool)
    }

    fn vector(&mut self, vector: &RawMatrix<'_>, offset: f32) -> Result<Vector> {
        Vector::new(vector, offset)
    }

    fn rows(&mut self, rows: usize, features: usize) -> Result<Rows> {
        Rows::new(rows, features)
    }

    fn resize(&mut self, buffer: &mut Rows, rows: usize) -> Result<()> {
        buffer.data.try_renew(rows * buffer.stride)?;
        buffer.rows = rows;
        Ok(())
    }

    fn zero(&mut self, buffer: &mut Rows) {
        buffer.zero_on(&self.pool);
    }

    fn read_rows(&mut self, buffer: &Rows) -> Vec<f32> {
        buffer.read()
    }

    fn write_rows(&mut self, buffer: &mut Rows, values: &[f32]) {
        buffer.write(values);
    }

    fn lora(&mut self, a: &[f32], b: &[f32], rank: usize) -> Result<Lora> {
        Lora::new((a, b), rank, (self.set, &self.pool))
    }

    fn read_lora(&mut self, lora: &Lora) -> (Vec<f32>, Vec<f32>) {
        lora.trained.read()
    }

    fn pair(&mut self, lora: &Lora) -> Result<Pair> {
        Pair::new(lora.rank(), lora.trained.a.features, lora.trained.b.features)
    }

    fn zero_pair(&mut self, pair: &mut Pair) {
        pair.zero();
    }

    fn copy_pair(&mut self, to: &mut Pair, from: &Pair) {
        to.copy_from(from);
    }

    fn read_pair(&mut self, pair: &Pair) -> (Vec<f32>, Vec<f32>) {
        pair.read()
    }

    fn write_pair(&mut self, pair: &mut Pair, a: &[f32], b: &[f32]) {
        pair.write(a, b);
    }

    fn cache(&mut self, blocks: usize, layers: usize, shape: &AttentionShape) -> Result<Cache> {
        Cache::new(Tiling::of(self.set), (blocks, layers), shape)
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
        embed::embed(self, out, table, tokens, scale);
    }

    fn gather(&mut self, out: &mut Rows, x: &Rows, indices: &[usize]) {
        embed::gather(self, out, x, indices);
    }

    fn add(&mut self, out: &mut Rows, x: &Rows) {
        add::add(self, out, x);
    }

    fn rms_norm(&mut self, out: &mut Rows, x: &Rows, weight: &Vector, eps: f32) {
        rms_norm::rms_norm(self, out, x, weight, eps);
    }

    fn rms_norm_backward(&mut self, dx: &mut Rows, dy: &Rows, x: &Rows, weight: &Vector, eps: f32) {
        rms_norm::rms_norm_backward(self, dx, (dy, x), weight, eps);
    }

    fn linear(
        &mut self,
        out: &mut Rows,
        x: &Rows,
        linear: Linear<'_, Self>,
        hidden: Option<&mut Rows>,
    ) {
        linear::linears(self, x, &mut [LinearPart { out, linear, hidden }]);
    }

    fn linears(&mut self, x: &Rows, parts: &mut [LinearPart<'_, Self>]) {
        linear::linears(self, x, parts);
    }

    fn linears_backward(
        &mut self,
        dx: Option<&mut Rows>,
        x: &Rows,
        parts: &mut [LinearGradientPart<'_, '_, Self>],
    ) {
        linear::linears_backward(self, (dx, false), x, parts);
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
        let part = LinearGradientPart { dy, weight, hidden, uses };
        linear::linears_backward(self, (dx, true), x, &mut [part]);
    }

    fn rope(&mut self, out: &mut Rows, x: &Rows, rope: Rope<'_, Self>) {
        rope::rope(self, out, x, &rope);
    }

    fn rope_backward(&mut self, dx: &mut Rows, dy: &Rows, x: &Rows, rope: Rope<'_, Self>) {
        rope::rope_backward(self, dx, (dy, x), &rope);
    }

    fn attention(
        &mut self,
        out: &mut Rows,
        lse: &mut Rows,
        qkv: Qkv<'_, Self>,
        sequences: &[Range<usize>],
        shape: &AttentionShape,
    ) {
        attention::attention(self, (out, lse), &qkv, sequences, shape);
    }

    fn attention_backward(
        &mut self,
        mut gradients: QkvGradients<'_, Self>,
        forward: AttentionForward<'_, Self>,
        sequences: &[Range<usize>],
        shape: &AttentionShape,
    ) {
        attention_backward::attention_backward(self, &mut gradients, &forward, sequences, shape);
    }

    fn cache_write(
        &mut self,
        cache: &mut Cache,
        layer: usize,
        k: &Rows,
        v: &Rows,
        sequences: &[PagedSequence<'_>],
    ) {
        attention::cache_write(self, cache, layer, (k, v), sequences);
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
        attention::attention_paged(self, out, q, (cache, layer), sequences, shape);
    }

    fn gated(&mut self, out: &mut Rows, gate: &Rows, up: &Rows, activation: Activation) {
        gated::gated(self, out, (gate, up), activation);
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
        gated::gated_backward(self, (dgate, dup), dout, (gate, up), activation);
    }

    fn score(
        &mut self,
        logprobs: &mut [f32],
        x: &Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &[LoraUse<'_, Lora>],
        targets: Targets<'_>,
    ) {
        score::score(self, logprobs, x, (unembedding, uses), targets);
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
        score::score_backward(self, dx, (x, unembedding), uses, targets, coefficients);
    }

    fn sample(
        &mut self,
        answers: &mut Vec<Drawn>,
        x: &Rows,
        unembedding: Unembedding<'_, Self>,
        uses: &[LoraUse<'_, Lora>],
        asks: &[Ask],
    ) {
        sample::sample(self, answers, x, (unembedding, uses), asks);
    }

    fn adamw(
        &mut self,
        lora: &mut Lora,
        gradient: &Pair,
        first: &mut Pair,
        second: &mut Pair,
        step: &AdamW,
    ) {
        adamw::adamw(self, lora, gradient, (first, second), step);
    }

    fn sum_squares(&mut self, pair: &Pair) -> (f64, f64) {
        adamw::sum_squares(pair)
    }
}
