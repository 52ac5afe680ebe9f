//! Unembedding with log-softmax, and its gradient: logits exist for one chunk of rows at a time.
//!
//! The sum of exponentials is taken over fixed vocabulary tiles: each tile's own maximum and sum (16
//! lanes, then their tree), folded in order. Scoring, its gradient and sampling share this.

use std::ops::Range;

use tinsmith_backend::{
    Coefficients, GRADIENT_TILE, LoraGradientUse, LoraUse, Targets, Unembedding,
};

use crate::{
    CpuBackend, KernelSet,
    buffer::{Cells, Lora, Pair, Rows, overlap, padded, with_scratch},
    gemm::{Product, narrow},
    lanes::{Kernel, LANES, Lanes, Path},
    linear::{
        PRODUCTS, Side, Sides, TILES, add_gradients, datum_tiles, forward_uses, keep_uses, project,
        rank_max, with_adapters,
    },
    lists::with_list,
    math,
    pool::Pool,
    softcap::{self, SlopedExponentials},
};

#[cfg(target_arch = "x86_64")]
mod tiled;

/// Entries of the vocabulary whose maximum and sum are taken together.
const VOCABULARY_TILE: usize = 512;

pub(crate) fn score(
    cpu: &mut CpuBackend,
    logprobs: &mut [f32],
    x: &Rows,
    (unembedding, uses): (Unembedding<'_, CpuBackend>, &[LoraUse<'_, Lora>]),
    targets: Targets<'_>,
) {
    assert!(logprobs.len() == x.rows * targets.per_row, "a place for each candidate");
    let unembed = Unembed::new(cpu, x, unembedding, uses);
    for rows in unembed.chunks() {
        unembed.logits(cpu, &rows);
        let (path, pool) = (cpu.path, &cpu.pool);
        let part = rows.start * targets.per_row..rows.end * targets.per_row;
        let targets = Targets { ids: &targets.ids[part.clone()], per_row: targets.per_row };
        row_logprobs(&mut logprobs[part], None, &cpu.logits, targets, (path, pool));
    }
}

pub(crate) fn score_backward(
    cpu: &mut CpuBackend,
    mut dx: Option<&mut Rows>,
    (x, unembedding): (&Rows, Unembedding<'_, CpuBackend>),
    uses: &mut [LoraGradientUse<'_, Lora, Pair>],
    targets: Targets<'_>,
    coefficients: &mut Coefficients<'_>,
) {
    let forward = forward_uses(uses.iter());
    let unembed = Unembed::new(cpu, x, unembedding, &forward);
    let (weight, softcap) = (unembedding.weight, unembedding.softcap);
    if let Some(dx) = &mut dx {
        dx.zero_on(&cpu.pool);
    }
    let mut scoring = std::mem::take(&mut cpu.scoring);
    let Scoring { pieces, covered, logprobs, factors, normalizers } = &mut scoring;
    list_pieces(uses, x.rows, (&mut *pieces, covered));
    for chunk in gradient_chunks(pieces, chunk_rows(weight.outputs)) {
        let rows = chunk.rows.clone();
        unembed.logits(cpu, &rows);
        let (path, pool) = (cpu.path, &cpu.pool);
        let part = rows.start * targets.per_row..rows.end * targets.per_row;
        let targets = Targets { ids: &targets.ids[part.clone()], per_row: targets.per_row };
        logprobs.clear();
        logprobs.resize(part.len(), 0.0);
        factors.clear();
        factors.resize(part.len(), 0.0);
        normalizers.clear();
        normalizers.resize(rows.len(), 0.0);
        let logits = &mut cpu.logits;
        row_logprobs(logprobs, Some(normalizers), logits, targets, (path, pool));
        coefficients(rows.clone(), logprobs, factors);
        if factors.iter().all(|&factor| factor == 0.0) {
            continue;
        }
        let row_scales = RowScales { normalizers, factors, softcap };
        differentiate(logits, &row_scales, targets, (path, pool));
        let active = |row: usize| {
            let part = &factors[row * targets.per_row..][..targets.per_row];
            part.iter().any(|&factor| factor != 0.0)
        };
        unembed.backward(cpu, dx.as_deref_mut(), &rows, active);
        unembed.add_chunk_gradients(cpu, uses, &chunk);
    }
    cpu.scoring = scoring;
    keep_uses(forward);
}

/// The unembedding of a step's rows.
#[derive(Clone, Copy)]
pub(crate) struct Unembed<'a> {
    x: &'a Rows,
    unembedding: Unembedding<'a, CpuBackend>,
    uses: &'a [LoraUse<'a, Lora>],
}

impl<'a> Unembed<'a> {
    /// Makes `x Aᵀ`, or room for it.
    pub(crate) fn new(
        cpu: &mut CpuBackend,
        x: &'a Rows,
        unembedding: Unembedding<'a, CpuBackend>,
        uses: &'a [LoraUse<'a, Lora>],
    ) -> Self {
        assert!(x.features == unembedding.weight.inputs, "features fit");
        match cpu.set {
            KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => {
                project(&mut cpu.hidden, x, uses, Side::Down, (cpu.path, &cpu.pool));
            }
            KernelSet::Bf16Amx => cpu.hidden.reshape(x.rows, rank_max(uses)),
        }
        Self { x, unembedding, uses }
    }

    /// The rows, in parts whose logits are held at once.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, step) = (self.x.rows, chunk_rows(self.unembedding.weight.outputs));
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    /// The logits of `x[rows.start + i]`, under the softcap if there is one.
    pub(crate) fn logits(&self, cpu: &mut CpuBackend, rows: &Range<usize>) {
        let Unembedding { weight, softcap } = self.unembedding;
        cpu.logits.reshape(rows.len(), weight.outputs);
        match cpu.set {
            KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => {
                self.multiply(cpu, rows);
            }
            #[cfg(target_arch = "x86_64")]
            KernelSet::Bf16Amx => tiled::logits(self, cpu, rows),
            #[cfg(not(target_arch = "x86_64"))]
            KernelSet::Bf16Amx => unreachable!("the set is not available on this CPU"),
        }
        if let Some(cap) = softcap {
            softcap::cap_rows(&mut cpu.logits, cap, (cpu.path, &cpu.pool));
        }
    }

    fn multiply(&self, cpu: &mut CpuBackend, rows: &Range<usize>) {
        let CpuBackend { logits, hidden, path, pool, .. } = cpu;
        let weight = self.unembedding.weight;
        // SAFETY: `rows` lie in `x`; `logits` got the shape that is written.
        with_adapters(self.uses, hidden, Side::Down, rows, |adapters| unsafe {
            let product = Product {
                out: logits.view_mut(),
                x: self.x.view().skip_rows(rows.start),
                rows: rows.len(),
                inputs: weight.inputs,
                outputs: weight.outputs,
                operand: weight.operand(),
                bias: None,
                adapters,
                add: false,
            };
            product.run(*path, pool);
        });
    }

    /// `dlogits B` of a chunk, and `dx` of those of its rows that have a gradient.
    fn backward(
        &self,
        cpu: &mut CpuBackend,
        mut dx: Option<&mut Rows>,
        chunk: &Range<usize>,
        active: impl Fn(usize) -> bool,
    ) {
        match cpu.set {
            KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => {
                self.project_chunk(cpu, chunk);
                let Some(dx) = &mut dx else { return };
                for run in runs(chunk.len(), active) {
                    self.run_backward(cpu, dx, chunk, run);
                }
            }
            #[cfg(target_arch = "x86_64")]
            KernelSet::Bf16Amx if self.uses.is_empty() => {
                let Some(dx) = &mut dx else { return };
                for run in runs(chunk.len(), active) {
                    tiled::backward(self, cpu, Some(dx), (chunk, run));
                }
            }
            // Rows without a gradient have zeros, also in `dlogits B`.
            #[cfg(target_arch = "x86_64")]
            KernelSet::Bf16Amx => tiled::backward(self, cpu, dx, (chunk, 0..chunk.len())),
            #[cfg(not(target_arch = "x86_64"))]
            KernelSet::Bf16Amx => unreachable!("the set is not available on this CPU"),
        }
    }

    /// `hidden[i] = dlogits[i] B`, for the rows of a chunk.
    fn project_chunk(&self, cpu: &mut CpuBackend, chunk: &Range<usize>) {
        let CpuBackend { logits, hidden_gradients: [hidden, ..], path, pool, .. } = cpu;
        hidden.reshape(chunk.len(), rank_max(self.uses));
        let out = hidden.view_mut();
        with_list(&PRODUCTS, |products| {
            let touching = self.uses.iter().filter(|u| !overlap(&u.rows, chunk).is_empty());
            products.extend(touching.map(|lora_use| {
                let rows = overlap(&lora_use.rows, chunk);
                let first = rows.start - chunk.start;
                let (b, rank) = (lora_use.lora.up_transposed(), lora_use.lora.rank());
                // SAFETY: the rows lie in the chunk, whose rows both buffers have.
                let views = unsafe { (out.skip_rows(first), logits.view().skip_rows(first), b) };
                narrow(views, (rows.len(), logits.features, rank))
            }));
            // SAFETY: as above; uses do not share rows.
            unsafe { Product::run_all(products, *path, pool) };
        });
    }

    /// `dx = dlogits W + Σ scale * (dlogits B) A`, for a run of a chunk's rows.
    fn run_backward(
        &self,
        cpu: &mut CpuBackend,
        dx: &mut Rows,
        chunk: &Range<usize>,
        run: Range<usize>,
    ) {
        let CpuBackend { logits, hidden_gradients: [hidden, ..], path, pool, .. } = cpu;
        let weight = self.unembedding.weight;
        // SAFETY: the run lies in the chunk, the chunk in `dx`, which is borrowed for us alone; the chunk's
        // `dlogits B` has the chunk's rows.
        with_adapters(self.uses, hidden, Side::Up, chunk, |adapters| unsafe {
            for adapter in &mut *adapters {
                let shared = overlap(&adapter.rows, &run);
                adapter.rows = shared.start - run.start..shared.end - run.start;
                adapter.hidden = hidden.view().skip_rows(run.start);
            }
            let product = Product {
                out: dx.view_mut().skip_rows(chunk.start + run.start),
                x: logits.view().skip_rows(run.start),
                rows: run.len(),
                inputs: weight.outputs,
                outputs: weight.inputs,
                operand: weight.transposed(pool),
                bias: None,
                adapters,
                add: false,
            };
            product.run(*path, pool);
        });
    }

    /// Folds the chunk's tiles onto each use's gradient.
    fn add_chunk_gradients(
        &self,
        cpu: &mut CpuBackend,
        uses: &mut [LoraGradientUse<'_, Lora, Pair>],
        chunk: &Chunk<'_>,
    ) {
        match cpu.set {
            KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => {
                self.fold_gradients(cpu, uses, chunk);
            }
            #[cfg(target_arch = "x86_64")]
            KernelSet::Bf16Amx => tiled::fold_gradients(self, cpu, uses, chunk),
            #[cfg(not(target_arch = "x86_64"))]
            KernelSet::Bf16Amx => unreachable!("the set is not available on this CPU"),
        }
    }

    fn fold_gradients(
        &self,
        cpu: &CpuBackend,
        uses: &mut [LoraGradientUse<'_, Lora, Pair>],
        chunk: &Chunk<'_>,
    ) {
        let start = chunk.rows.start;
        for (i, lora_use) in uses.iter_mut().enumerate() {
            // SAFETY: tiles lie in the chunk, whose rows all four sides have.
            with_list(&TILES, |tiles| unsafe {
                tiles.extend(chunk.tiles_of(i));
                let sides = Sides {
                    hidden: cpu.hidden.view().skip_rows(start),
                    hidden_gradient: cpu.hidden_gradients[0].view(),
                    x: self.x.view().skip_rows(start),
                    dy: cpu.logits.view(),
                };
                let (gradient, scale) = (&mut *lora_use.gradient, lora_use.scale);
                add_gradients(gradient, &sides, tiles, scale, (cpu.path, &cpu.pool));
            });
        }
    }
}

/// Rows whose logits are held at once: about 4 MB of them, whole gradient tiles.
pub(crate) fn chunk_rows(vocabulary: usize) -> usize {
    let rows = (1 << 20) / padded(vocabulary).max(1);
    (rows / GRADIENT_TILE * GRADIENT_TILE).clamp(GRADIENT_TILE, 8 * GRADIENT_TILE)
}

/// Rows that stay together: a gradient tile, or so many rows of no use.
#[derive(Debug)]
struct Piece {
    /// Number of the use.
    of: Option<usize>,
    rows: Range<usize>,
}

/// Consecutive rows.
struct Chunk<'a> {
    rows: Range<usize>,
    pieces: &'a [Piece],
}

impl Chunk<'_> {
    /// A use's gradient tiles, as rows of the chunk.
    fn tiles_of(&self, number: usize) -> impl Iterator<Item = Range<usize>> {
        let start = self.rows.start;
        let own = self.pieces.iter().filter(move |piece| piece.of == Some(number));
        own.map(move |Piece { rows, .. }| rows.start - start..rows.end - start)
    }
}

/// What [`score_backward`] works with, kept from op to op.
#[derive(Debug, Default)]
pub(crate) struct Scoring {
    pieces: Vec<Piece>,
    /// Rows of each use.
    covered: Vec<Range<usize>>,
    logprobs: Vec<f32>,
    factors: Vec<f32>,
    normalizers: Vec<f32>,
}

/// Lists the gradient tiles in the order in which they are folded, then the rows of no use.
fn list_pieces(
    uses: &[LoraGradientUse<'_, Lora, Pair>],
    rows: usize,
    (pieces, covered): (&mut Vec<Piece>, &mut Vec<Range<usize>>),
) {
    pieces.clear();
    for (i, lora_use) in uses.iter().enumerate() {
        let tiles = lora_use.datums.iter().flat_map(datum_tiles);
        pieces.extend(tiles.map(|rows| Piece { of: Some(i), rows }));
    }
    covered.clear();
    covered.extend(uses.iter().map(|u| u.rows.clone()));
    covered.sort_unstable_by_key(|range| range.start);
    covered.push(rows..rows);
    let mut end = 0;
    for range in covered {
        pieces.extend(datum_tiles(&(end..range.start)).map(|rows| Piece { of: None, rows }));
        end = end.max(range.end);
    }
}

/// Chunks of up to `most` rows that end where pieces end.
fn gradient_chunks(mut pieces: &[Piece], most: usize) -> impl Iterator<Item = Chunk<'_>> {
    std::iter::from_fn(move || {
        let mut rows = pieces.first()?.rows.clone();
        let mut count = 1;
        for piece in &pieces[1..] {
            if piece.rows.start != rows.end || rows.len() + piece.rows.len() > most {
                break;
            }
            rows.end = piece.rows.end;
            count += 1;
        }
        let own = pieces.split_off(..count)?;
        Some(Chunk { rows, pieces: own })
    })
}

/// Maximal runs of rows that are active.
fn runs(rows: usize, active: impl Fn(usize) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = (next..rows).find(|&row| active(row))?;
        next = (start..rows).find(|&row| !active(row)).unwrap_or(rows);
        Some(start..next)
    })
}

/// Fills `logprobs [rows * per_row]`, and each row's log of the sum of exponentials if asked.
fn row_logprobs(
    logprobs: &mut [f32],
    normalizers: Option<&mut [f32]>,
    logits: &Rows,
    targets: Targets<'_>,
    (path, pool): (Path, &Pool),
) {
    let out = Cells::new(logprobs);
    let normalizers = normalizers.map(Cells::new);
    pool.run_sized(logits.rows, logits.rows * logits.features * 8, &|row| {
        let logits = logits.row(row);
        let normalizer = statistics(path, logits).normalizer();
        let first = row * targets.per_row;
        for (i, &id) in targets.ids[first..][..targets.per_row].iter().enumerate() {
            // SAFETY: each row has its own `per_row` places.
            unsafe { out.put(first + i, logits[id as usize] - normalizer) };
        }
        if let Some(normalizers) = &normalizers {
            // SAFETY: one place for each row.
            unsafe { normalizers.put(row, normalizer) };
        }
    });
}

/// What turns a chunk's logits into their gradient.
struct RowScales<'a> {
    /// `[rows]`
    normalizers: &'a [f32],
    /// `[rows * per_row]`
    factors: &'a [f32],
    softcap: Option<f32>,
}

/// Turns logits into `dlogits = Σ_j c_j (onehot(target_j) - softmax)`, each times the softcap's slope.
fn differentiate(
    logits: &mut Rows,
    scales: &RowScales<'_>,
    targets: Targets<'_>,
    (path, pool): (Path, &Pool),
) {
    let RowScales { normalizers, factors, softcap } = *scales;
    let (rows, features, view) = (logits.rows, logits.features, logits.view_mut());
    pool.run_sized(rows, rows * features * 8, &|row| {
        let part = row * targets.per_row..(row + 1) * targets.per_row;
        let factors = &factors[part.clone()];
        let total = factors.iter().sum::<f32>();
        let (factor, minus) = (-total, normalizers[row]);
        let ids = &targets.ids[part];
        // SAFETY: the row is this task's own; targets were read from it before. The scratch has a place
        // for each candidate.
        unsafe {
            let row = view.at(row, 0);
            if let Some(cap) = softcap {
                with_scratch(ids.len(), |changes| {
                    for (i, (&factor, &id)) in factors.iter().zip(ids).enumerate() {
                        let slope = softcap::slope_of(*row.add(id as usize), cap);
                        *changes.add(i) = factor * slope;
                    }
                    path.run(SlopedExponentials { row, count: features, minus, factor, cap });
                    for (i, &id) in ids.iter().enumerate() {
                        *row.add(id as usize) += *changes.add(i);
                    }
                });
            } else {
                path.run(Exponentials { from: row, to: row, count: features, minus, factor });
                for (&factor, &id) in factors.iter().zip(ids) {
                    *row.add(id as usize) += factor;
                }
            }
        }
    });
}

/// `to[i] = factor * exp(from[i] - minus)`.
pub(crate) struct Exponentials {
    pub(crate) from: *const f32,
    pub(crate) to: *mut f32,
    pub(crate) count: usize,
    pub(crate) minus: f32,
    pub(crate) factor: f32,
}

impl Kernel for Exponentials {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (minus, factor) = (L::splat(self.minus), L::splat(self.factor));
        let mut i = 0;
        while i < self.count {
            let count = self.count - i;
            let x = L::load_head(self.from.add(i), count, 0.0).sub(minus);
            math::exp(x).mul(factor).store_head(self.to.add(i), count);
            i += LANES;
        }
    }
}

/// The greatest logit of a row and the sum of the exponentials of the others' distances to it.
pub(crate) struct Statistics {
    pub(crate) greatest: f32,
    pub(crate) sum: f32,
}

impl Statistics {
    /// The log of the sum of exponentials.
    pub(crate) fn normalizer(&self) -> f32 {
        self.greatest + math::log(self.sum)
    }
}

/// Floats of the scratch for one row's statistics.
pub(crate) fn scratch_floats(vocabulary: usize) -> usize {
    2 * padded(tile_count(vocabulary))
}

pub(crate) fn statistics(path: Path, logits: &[f32]) -> Statistics {
    with_scratch(scratch_floats(logits.len()), |weights| {
        // SAFETY: the scratch has two places for each tile.
        unsafe { tile_statistics(path, logits, weights) }
    })
}

/// Tiles in a vocabulary.
pub(crate) fn tile_count(vocabulary: usize) -> usize {
    vocabulary.div_ceil(VOCABULARY_TILE)
}

/// The entries of one tile.
pub(crate) fn tile_range(tile: usize, vocabulary: usize) -> Range<usize> {
    tile * VOCABULARY_TILE..vocabulary.min((tile + 1) * VOCABULARY_TILE)
}

/// The statistics of a row; `weights` begins with each tile's share of the sum.
///
/// # Safety
///
/// `weights` has two places for each tile, each half rounded up to whole vectors.
pub(crate) unsafe fn tile_statistics(path: Path, logits: &[f32], weights: *mut f32) -> Statistics {
    let mut statistics = Statistics { greatest: f32::NEG_INFINITY, sum: 0.0 };
    path.run(RowStatistics {
        logits: logits.as_ptr(),
        count: logits.len(),
        tops: weights.add(padded(tile_count(logits.len()))),
        weights,
        out: &raw mut statistics,
    });
    statistics
}

/// `tops` and `weights` have a place for each tile.
struct RowStatistics {
    logits: *const f32,
    count: usize,
    tops: *mut f32,
    weights: *mut f32,
    out: *mut Statistics,
}

impl Kernel for RowStatistics {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let tiles = tile_count(self.count);
        let mut greatest = f32::NEG_INFINITY;
        for tile in 0..tiles {
            let range = tile_range(tile, self.count);
            let (top, sum) = self.tile::<L>(range.start, range.end);
            *self.tops.add(tile) = top;
            *self.weights.add(tile) = sum;
            // A NaN stays, so that the row's logprobs say so.
            greatest = if greatest > top { greatest } else { top };
        }
        let mut i = 0;
        while i < tiles {
            let top = L::load_head(self.tops.add(i), tiles - i, 0.0);
            let sum = L::load_head(self.weights.add(i), tiles - i, 0.0);
            let weight = sum.mul(math::exp(top.sub(L::splat(greatest))));
            weight.store_head(self.weights.add(i), tiles - i);
            i += LANES;
        }
        let mut sum = 0.0;
        for tile in 0..tiles {
            sum += *self.weights.add(tile);
        }
        *self.out = Statistics { greatest, sum };
    }
}

impl RowStatistics {
    /// The tile's greatest logit and its sum of exponentials.
    #[inline(always)]
    unsafe fn tile<L: Lanes>(&self, start: usize, end: usize) -> (f32, f32) {
        let mut top = L::splat(f32::NEG_INFINITY);
        let mut i = start;
        while i < end {
            let x = L::load_head(self.logits.add(i), end - i, f32::NEG_INFINITY);
            top = top.max(x);
            i += LANES;
        }
        let top = top.greatest();
        let (offset, mut sum) = (L::splat(top), L::splat(0.0));
        let mut i = start;
        while i < end {
            let x = L::load_head(self.logits.add(i), end - i, f32::NEG_INFINITY);
            sum = sum.add(math::exp(x.sub(offset)));
            i += LANES;
        }
        (top, sum.sum())
    }
}
