//! The gradient of attention for the set `bf16-amx`: all factors rounded to bf16, on tiles.
//!
//! Scores lie with keys as rows and queries as lanes. Keys are visited in blocks of 64, and for each its
//! query heads, and for each their queries in blocks of 64: dK and dV are chains in that order, 32 queries
//! at a time, within a part of a sequence; dQ is one over the keys, 32 at a time.

use std::{arch::x86_64::*, f32::consts, ops::Range};

use tinsmith_backend::AttentionShape;

use super::{Op, units::Unit};
use crate::{
    attention::tiles::{self, Sums, TILE_ROWS, TILE_WORDS, exp2, transpose},
    buffer::{ViewMut, padded},
    lanes::{LANES, Lanes},
    sets::bf16_avx512::round_row,
    softcap,
    x86::Avx512,
};

/// Keys of one block, and queries of one.
const BLOCK: usize = 64;
/// Tiles of sixteen in a block.
const TILES: usize = BLOCK / TILE_ROWS;
/// Tiles of 32 inputs in a block.
const INPUTS: usize = BLOCK / (2 * LANES);

/// Tiles of inputs in a head.
fn input_tiles(dim: usize) -> usize {
    dim.div_ceil(2 * LANES)
}

/// Tiles of columns in a head.
fn panels(dim: usize) -> usize {
    dim.div_ceil(LANES)
}

/// One task's memory, by words. Packed queries are those of each head's blocks.
#[derive(Clone, Copy)]
struct Scratch {
    /// Queries and gradients as right factors, over features: `[head_dim / 32][4]` tiles of a block.
    q_over_features: *mut f32,
    dout_over_features: *mut f32,
    /// The same over queries: `[2][head_dim / 16]` tiles.
    q_over_queries: *mut f32,
    dout_over_queries: *mut f32,
    /// Of each block, `[head_dim padded][64]`.
    dq: *mut f32,
    /// Of each query, the log of its sum in powers of two, Σ dout · out, and the factor on its scores'
    /// gradients.
    lse: *mut f32,
    means: *mut f32,
    scales: *mut f32,
    /// Keys and values of one block as left factors, `[4][head_dim / 32]` tiles.
    k: *mut f32,
    v: *mut f32,
    /// Its keys as columns: `[head_dim / 16][2]` tiles.
    k_columns: *mut f32,
    /// Of one block of keys and one of queries, `[64][64]`.
    scores: *mut f32,
    changes: *mut f32,
    /// The same as left factors, `[4][2]` tiles.
    rounded_scores: *mut f32,
    rounded_changes: *mut f32,
    /// Changes as right factors, `[2][4]` tiles.
    paired_changes: *mut f32,
    /// Of one block of keys, `[64][head_dim padded]`.
    dk: *mut f32,
    dv: *mut f32,
}

/// Words of a block of queries over features, and over queries.
fn packed_words(dim: usize) -> [usize; 2] {
    [input_tiles(dim) * TILES * TILE_WORDS, INPUTS * panels(dim) * TILE_WORDS]
}

impl Scratch {
    /// Its parts' sizes, for so many blocks of queries, all heads' together.
    fn sizes(blocks: usize, dim: usize) -> [usize; 18] {
        let [over_features, over_queries] = packed_words(dim);
        let keys = TILES * input_tiles(dim) * TILE_WORDS;
        let (square, rounded) = (BLOCK * BLOCK, BLOCK * BLOCK / 2);
        [
            blocks * over_features,
            blocks * over_features,
            blocks * over_queries,
            blocks * over_queries,
            blocks * padded(dim) * BLOCK,
            blocks * BLOCK,
            blocks * BLOCK,
            blocks * BLOCK,
            keys,
            keys,
            panels(dim) * INPUTS * TILE_WORDS,
            square,
            square,
            rounded,
            rounded,
            rounded,
            BLOCK * padded(dim),
            BLOCK * padded(dim),
        ]
    }

    fn new(mut scratch: *mut f32, blocks: usize, dim: usize) -> Self {
        let parts = Self::sizes(blocks, dim).map(|words| {
            let part = scratch;
            scratch = scratch.wrapping_add(words);
            part
        });
        let [q_over_features, dout_over_features, q_over_queries, dout_over_queries, ..] = parts;
        let [_, _, _, _, dq, lse, means, scales, k, v, k_columns, ..] = parts;
        let [.., scores, changes, rounded_scores, rounded_changes, paired_changes, dk, dv] = parts;
        Self {
            q_over_features,
            dout_over_features,
            q_over_queries,
            dout_over_queries,
            dq,
            lse,
            means,
            scales,
            k,
            v,
            k_columns,
            scores,
            changes,
            rounded_scores,
            rounded_changes,
            paired_changes,
            dk,
            dv,
        }
    }
}

/// Floats of one task's scratch for so many queries.
pub(super) fn scratch_floats(queries: usize, shape: &AttentionShape) -> usize {
    let blocks = queries.div_ceil(BLOCK) * (shape.heads / shape.kv_heads);
    Scratch::sizes(blocks, shape.head_dim).into_iter().sum()
}

/// Computes dQ of the unit's queries and, of all keys that they see, their share of dK and dV, which are
/// written to `keys`, whose row 0 is the unit's first key.
///
/// # Safety
///
/// The set is available; rows and heads exist and are the caller's alone; the scratch has
/// [`scratch_floats`].
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
pub(super) unsafe fn run(op: &Op<'_>, unit: &Unit, keys: [ViewMut; 2], scratch: *mut f32) {
    let group = op.shape.heads / op.shape.kv_heads;
    let blocks = unit.queries.len().div_ceil(BLOCK);
    let scratch = Scratch::new(scratch, blocks * group, op.shape.head_dim);
    let task = Task { op, unit, blocks, group, scratch };
    for head in 0..group {
        for block in 0..blocks {
            task.load_queries(head, block);
        }
    }
    tiles::configure(TILE_ROWS);
    for start in (unit.keys.start..unit.keys.end).step_by(BLOCK) {
        task.load_keys(start);
        let mut began = false;
        for head in 0..group {
            for block in 0..blocks {
                if task.sees(block, start) {
                    task.pair(head, block, start, began);
                    began = true;
                }
            }
        }
        debug_assert!(began, "every key is seen");
        let count = BLOCK.min(unit.keys.end - start);
        for (from, to) in [task.scratch.dk, task.scratch.dv].into_iter().zip(keys) {
            let to = to.skip_rows(start - unit.keys.start);
            super::copy_rows(from, to, count, op.shape.head_dim);
        }
    }
    tiles::release();
    for head in 0..group {
        for block in 0..blocks {
            task.store_dq(head, block);
        }
    }
}

struct Task<'a> {
    op: &'a Op<'a>,
    unit: &'a Unit,
    /// Blocks of queries of one head.
    blocks: usize,
    /// Heads that read the key-value head.
    group: usize,
    scratch: Scratch,
}

impl Task<'_> {
    /// Positions of a block's queries.
    fn queries(&self, block: usize) -> Range<usize> {
        let start = self.unit.queries.start + block * BLOCK;
        start..self.unit.queries.end.min(start + BLOCK)
    }

    /// Whether a query of the block sees a key of those that begin there.
    fn sees(&self, block: usize, key: usize) -> bool {
        let queries = self.queries(block);
        key < queries.end && key + BLOCK > self.op.shape.visible(queries.start).start
    }

    /// Number of a head's block among all.
    fn index(&self, head: usize, block: usize) -> usize {
        head * self.blocks + block
    }

    fn head(&self, head: usize) -> usize {
        self.unit.kv_head * self.group + head
    }

    /// Packs a block of queries and of `dout`; beyond its last query stand zeros.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn load_queries(&self, head: usize, block: usize) {
        let (op, scratch, dim) = (self.op, &self.scratch, self.op.shape.head_dim);
        let (queries, index) = (self.queries(block), self.index(head, block));
        let row = self.unit.rows.start + queries.start;
        let column = self.head(head) * dim;
        let [over_features, over_queries] = packed_words(dim);
        for (from, to_features, to_queries) in [
            (op.q, scratch.q_over_features, scratch.q_over_queries),
            (op.dout, scratch.dout_over_features, scratch.dout_over_queries),
        ] {
            let rows = Packed {
                first: from.at(row, column),
                stride: from.stride,
                count: queries.len(),
                dim,
            };
            rows.over_features(to_features.add(index * over_features));
            rows.over_rows(to_queries.add(index * over_queries));
        }
        for i in 0..BLOCK {
            let place = index * BLOCK + i;
            let (mut lse, mut mean, mut scale) = (0.0, 0.0, 0.0);
            if i < queries.len() {
                lse = *op.lse.at(row + i, self.head(head)) * consts::LOG2_E;
                mean = mean_of(op.dout.at(row + i, column), op.out.at(row + i, column), dim);
                // The weight of a lone key is 1 whatever its score: there is no gradient, and no rounding's
                // trace of one either.
                let alone = op.shape.visible(queries.start + i).len() == 1;
                scale = if alone { 0.0 } else { op.shape.scale };
            }
            *scratch.lse.add(place) = lse;
            *scratch.means.add(place) = mean;
            *scratch.scales.add(place) = scale;
        }
    }

    /// Packs a block of keys and values; beyond the last stand zeros.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn load_keys(&self, start: usize) {
        let (op, scratch, dim) = (self.op, &self.scratch, self.op.shape.head_dim);
        let count = BLOCK.min(self.unit.keys.end - start);
        let (row, column) = (self.unit.rows.start + start, self.unit.kv_head * dim);
        for (from, to) in [(op.k, scratch.k), (op.v, scratch.v)] {
            Packed { first: from.at(row, column), stride: from.stride, count, dim }.rows(to);
        }
        let rows = Packed { first: op.k.at(row, column), stride: op.k.stride, count, dim };
        rows.columns(scratch.k_columns);
    }

    /// One block of keys with one of queries of a head.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn pair(&self, head: usize, block: usize, key: usize, began: bool) {
        let (scratch, dim, index) =
            (&self.scratch, self.op.shape.head_dim, self.index(head, block));
        let [over_features, over_queries] = packed_words(dim);
        let inputs = input_tiles(dim);
        for (a, b, out) in [
            (scratch.k, scratch.q_over_features, scratch.scores),
            (scratch.v, scratch.dout_over_features, scratch.changes),
        ] {
            let b = b.add(index * over_features);
            let sums = Sums { pointer: out, stride: BLOCK, add: false };
            for tile in 0..TILES {
                let a = a.add(tile * inputs * TILE_WORDS);
                let sums = sums.at(tile * TILE_ROWS, 0);
                tiles::one_by_many(a, (b, TILES * TILE_WORDS), (inputs, TILES), sums);
            }
        }
        self.softmax(head, block, key);
        let wide = padded(dim);
        for (a, b, out) in [
            (scratch.rounded_scores, scratch.dout_over_queries, scratch.dv),
            (scratch.rounded_changes, scratch.q_over_queries, scratch.dk),
        ] {
            let b = b.add(index * over_queries);
            let sums = Sums { pointer: out, stride: wide, add: began };
            let step = panels(dim) * TILE_WORDS;
            for tile in 0..TILES {
                let a = a.add(tile * INPUTS * TILE_WORDS);
                let sums = sums.at(tile * TILE_ROWS, 0);
                tiles::one_by_many(a, (b, step), (INPUTS, panels(dim)), sums);
            }
        }
        let first =
            self.op.shape.visible(self.queries(block).start).start.max(self.unit.keys.start);
        let sums = Sums {
            pointer: scratch.dq.add(index * wide * BLOCK),
            stride: BLOCK,
            // Whether an earlier block of keys was seen.
            add: key > first,
        };
        for tile in 0..panels(dim) {
            let a = scratch.k_columns.add(tile * INPUTS * TILE_WORDS);
            let b = (scratch.paired_changes.cast_const(), TILES * TILE_WORDS);
            tiles::one_by_many(a, b, (INPUTS, TILES), sums.at(tile * TILE_ROWS, 0));
        }
    }

    /// `p = exp(score - lse)` and `p (dp - mean) scale`, times the slope of the softcap if there is one,
    /// rounded; zero where a query does not see a key.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn softmax(&self, head: usize, block: usize, key: usize) {
        let scratch = &self.scratch;
        let queries = self.queries(block);
        // All queries see all keys.
        let open = queries.len() == BLOCK
            && key + BLOCK <= queries.start + 1
            && key >= self.op.shape.visible(queries.end - 1).start;
        let index = self.index(head, block) * BLOCK;
        let pairs = tiles::interleaving();
        for input in 0..INPUTS {
            let lines = [2 * input, 2 * input + 1].map(|half| Lines {
                task: self,
                first: index + half * LANES,
                first_query: queries.start + half * LANES,
                queries: queries.len().saturating_sub(half * LANES),
                column: half * LANES,
                open,
            });
            for row in (0..BLOCK).step_by(2) {
                let upper = [lines[0].at(row, key + row), lines[1].at(row, key + row)];
                let below = (row + 1, key + row + 1);
                let lower = [lines[0].at(below.0, below.1), lines[1].at(below.0, below.1)];
                self.store_rounded((row, input), upper);
                self.store_rounded((row + 1, input), lower);
                for i in 0..2 {
                    let both = _mm512_cvtne2ps_pbh(lower[i].1, upper[i].1);
                    let both = std::mem::transmute::<__m512bh, __m512i>(both);
                    let tile = row / (2 * LANES) * TILES + 2 * input + i;
                    let place = tile * TILE_WORDS + row % (2 * LANES) / 2 * LANES;
                    let changes = _mm512_permutexvar_epi16(pairs, both);
                    _mm512_storeu_si512(scratch.paired_changes.add(place).cast(), changes);
                }
            }
        }
    }

    /// Rounds 32 queries' probabilities and gradients of the scores of one key, as left factors.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn store_rounded(&self, (row, input): (usize, usize), [a, b]: [(__m512, __m512); 2]) {
        let place = (row / TILE_ROWS * INPUTS + input) * TILE_WORDS + row % TILE_ROWS * LANES;
        let store = |to: *mut f32, line: __m512bh| {
            // SAFETY: the tiles have a line for each key.
            unsafe { to.add(place).cast::<__m512bh>().write_unaligned(line) };
        };
        store(self.scratch.rounded_scores, _mm512_cvtne2ps_pbh(b.0, a.0));
        store(self.scratch.rounded_changes, _mm512_cvtne2ps_pbh(b.1, a.1));
    }

    /// Writes a block's dQ out.
    #[target_feature(enable = "avx512f")]
    unsafe fn store_dq(&self, head: usize, block: usize) {
        let (op, dim) = (self.op, self.op.shape.head_dim);
        let queries = self.queries(block);
        let from = self.scratch.dq.add(self.index(head, block) * padded(dim) * BLOCK);
        let row = self.unit.rows.start + queries.start;
        for d in (0..dim).step_by(LANES) {
            for first in (0..queries.len()).step_by(LANES) {
                let mut lines = [_mm512_setzero_ps(); LANES];
                for (i, line) in lines.iter_mut().enumerate() {
                    *line = _mm512_loadu_ps(from.add((d + i) * BLOCK + first));
                }
                let lines = transpose(lines);
                for (i, line) in lines.into_iter().enumerate().take(queries.len() - first) {
                    let to = op.dq.at(row + first + i, self.head(head) * dim + d);
                    _mm512_mask_storeu_ps(to, tiles::head(dim - d), line);
                }
            }
        }
    }
}

/// Sixteen queries of a block of scores.
struct Lines<'a> {
    task: &'a Task<'a>,
    /// Number of the first among all packed ones.
    first: usize,
    /// Its position.
    first_query: usize,
    /// How many there are.
    queries: usize,
    /// Where they stand in the block.
    column: usize,
    open: bool,
}

impl Lines<'_> {
    /// The probabilities of one key and the gradients of its scores.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn at(&self, row: usize, key: usize) -> (__m512, __m512) {
        let (scratch, shape) = (&self.task.scratch, self.task.op.shape);
        let place = row * BLOCK + self.column;
        let score = _mm512_loadu_ps(scratch.scores.add(place));
        let lse = _mm512_loadu_ps(scratch.lse.add(self.first));
        let change = _mm512_loadu_ps(scratch.changes.add(place));
        let change = _mm512_sub_ps(change, _mm512_loadu_ps(scratch.means.add(self.first)));
        let (mut p, mut change) = if let Some(cap) = shape.softcap {
            let cap = Avx512::splat(cap);
            let capped =
                softcap::capped(Avx512(_mm512_mul_ps(score, _mm512_set1_ps(shape.scale))), cap);
            let Avx512(slope) = softcap::slope(capped, cap);
            let power = _mm512_fmsub_ps(capped.0, _mm512_set1_ps(consts::LOG2_E), lse);
            (exp2(power), _mm512_mul_ps(change, slope))
        } else {
            let factor = _mm512_set1_ps(shape.scale * consts::LOG2_E);
            (exp2(_mm512_fmsub_ps(score, factor, lse)), change)
        };
        let scales = _mm512_loadu_ps(scratch.scales.add(self.first));
        change = _mm512_mul_ps(_mm512_mul_ps(p, change), scales);
        if !self.open {
            let seen = self.seen(key);
            p = _mm512_maskz_mov_ps(seen, p);
            change = _mm512_maskz_mov_ps(seen, change);
        }
        (p, change)
    }

    /// Which of the queries see a key.
    fn seen(&self, key: usize) -> __mmask16 {
        // From the key itself to the last whose window holds it.
        let window = self.task.op.shape.window.unwrap_or(usize::MAX);
        let end = key.saturating_add(window).saturating_sub(self.first_query).min(self.queries);
        let start = key.saturating_sub(self.first_query).min(LANES);
        tiles::head(end) & !tiles::head(start)
    }
}

/// `Σ dout · out`, with `dout` rounded as it is in the products that this is taken off.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
unsafe fn mean_of(dout: *const f32, out: *const f32, dim: usize) -> f32 {
    let mut sum = _mm512_setzero_ps();
    for d in (0..dim).step_by(LANES) {
        let there = tiles::head(dim - d);
        let dout = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, dout.add(d)));
        let dout = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(dout));
        let dout = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(dout));
        sum = _mm512_fmadd_ps(dout, _mm512_maskz_loadu_ps(there, out.add(d)), sum);
    }
    Avx512(sum).sum()
}

/// Up to 64 rows of a head that are packed; rows beyond `count` are zeros.
struct Packed {
    first: *const f32,
    stride: usize,
    count: usize,
    dim: usize,
}

impl Packed {
    /// One row's 32 features of an input tile, rounded.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn rounded(&self, row: usize, tile: usize) -> __m512i {
        let mut line = _mm512_setzero_si512();
        if row < self.count {
            let start = tile * 2 * LANES;
            let from = self.first.add(row * self.stride + start);
            round_row(from, (self.dim - start).min(2 * LANES), (&raw mut line).cast());
        }
        line
    }

    /// As left factors: `[4][head_dim / 32]` tiles.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn rows(&self, to: *mut f32) {
        for row in 0..BLOCK {
            for tile in 0..input_tiles(self.dim) {
                let place = (row / TILE_ROWS * input_tiles(self.dim) + tile) * TILE_WORDS;
                let to = to.add(place + row % TILE_ROWS * LANES);
                _mm512_storeu_si512(to.cast(), self.rounded(row, tile));
            }
        }
    }

    /// As right factors whose inputs are features: `[head_dim / 32][4]` tiles.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn over_features(&self, to: *mut f32) {
        for tile in 0..input_tiles(self.dim) {
            for group in 0..TILES {
                let mut lines = [_mm512_setzero_ps(); LANES];
                for (i, line) in lines.iter_mut().enumerate() {
                    *line = _mm512_castsi512_ps(self.rounded(group * LANES + i, tile));
                }
                store_tile(to.add((tile * TILES + group) * TILE_WORDS), transpose(lines));
            }
        }
    }

    /// The words of two rows' sixteen features of a panel, the even row in the low halves.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn paired(&self, row: usize, panel: usize) -> __m512i {
        let (even, odd) = (self.rounded(row, panel / 2), self.rounded(row + 1, panel / 2));
        _mm512_permutex2var_epi16(even, tiles::interleavings_of_two()[panel % 2], odd)
    }

    /// As right factors whose inputs are rows: `[2][head_dim / 16]` tiles.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn over_rows(&self, to: *mut f32) {
        let panels = panels(self.dim);
        for row in (0..BLOCK).step_by(2) {
            let place = row / (2 * LANES) * panels * TILE_WORDS + row % (2 * LANES) / 2 * LANES;
            for panel in 0..panels {
                let words = self.paired(row, panel);
                _mm512_storeu_si512(to.add(place + panel * TILE_WORDS).cast(), words);
            }
        }
    }

    /// As left factors whose rows are features and whose inputs are rows: `[head_dim / 16][2]` tiles.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn columns(&self, to: *mut f32) {
        for input in 0..INPUTS {
            for panel in 0..panels(self.dim) {
                let mut lines = [_mm512_setzero_ps(); LANES];
                for (i, line) in lines.iter_mut().enumerate() {
                    *line = _mm512_castsi512_ps(self.paired(2 * (input * LANES + i), panel));
                }
                store_tile(to.add((panel * INPUTS + input) * TILE_WORDS), transpose(lines));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_tile(to: *mut f32, lines: [__m512; LANES]) {
    for (i, line) in lines.into_iter().enumerate() {
        _mm512_storeu_ps(to.add(i * LANES), line);
    }
}
