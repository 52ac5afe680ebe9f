//! Attention of the set `bf16-amx`: queries, keys, values and the weights of the values rounded to bf16, on
//! tiles.
//!
//! Keys are visited in steps of 128 from the sequence's first token. A step's scores and its sum of values
//! are chains over 32 inputs at a time; its weights, powers of two, are summed in 16 lanes, tile by tile,
//! then by the lanes' tree, before they are rounded. A tile masked whole changes nothing.

use std::{arch::x86_64::*, f32::consts, ops::Range};

use tinsmith_backend::{ATTENTION_TILE, AttentionShape};

use super::{
    Part, Target,
    tiles::{self, Sums, TILE_ROWS, TILE_WORDS, exp2},
};
use crate::{
    buffer::padded,
    lanes::{LANES, Lanes},
    math,
    sets::bf16_avx512::round_row,
    softcap,
    x86::Avx512,
};

/// Tiles of keys whose weights are taken together.
const STEP_TILES: usize = 4;
const STEP_KEYS: usize = STEP_TILES * ATTENTION_TILE;
/// Rows whose scores are held at once: two tiles.
const GROUP: usize = 2 * TILE_ROWS;
/// Rows of one task: each is a query of one head.
pub(super) const ROWS: usize = 4 * GROUP;

/// Tiles of inputs in a head.
fn input_tiles(dim: usize) -> usize {
    dim.div_ceil(ATTENTION_TILE)
}

/// Tiles of columns in a head.
fn panels(dim: usize) -> usize {
    dim.div_ceil(LANES)
}

/// Words of a tile's keys: `[head_dim / 32][2][16 pairs of features][16 keys]`.
fn key_words(dim: usize) -> usize {
    input_tiles(dim) * 2 * TILE_WORDS
}

/// Words of a tile: its keys, then its values, `[head_dim / 16][16 pairs of keys][16 features]`.
pub(super) fn tile_words(dim: usize) -> usize {
    key_words(dim) + panels(dim) * TILE_WORDS
}

/// Writes one token's key and value into a tile.
///
/// # Safety
///
/// The set is available; the pointers reach a tile and `head_dim` floats.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
pub(super) unsafe fn write_token(
    tile: *mut f32,
    slot: usize,
    (k, v): (*const f32, *const f32),
    dim: usize,
) {
    let lines = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
        _mm512_set1_epi32(LANES as i32),
    );
    let column = tile.add(slot / LANES * TILE_WORDS + slot % LANES);
    for (i, start) in (0..dim).step_by(ATTENTION_TILE).enumerate() {
        let mut pairs = _mm512_setzero_si512();
        // One row of one tile: sixteen words.
        round_row(k.add(start), ATTENTION_TILE.min(dim - start), (&raw mut pairs).cast());
        _mm512_i32scatter_epi32::<4>(column.add(i * 2 * TILE_WORDS).cast(), lines, pairs);
    }
    let values = tile.add(key_words(dim) + slot / 2 * LANES);
    for (panel, start) in (0..dim).step_by(LANES).enumerate() {
        let value =
            _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(tiles::head(dim - start), v.add(start)));
        let value = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(value));
        let to = values.add(panel * TILE_WORDS).cast();
        let pairs = _mm512_loadu_si512(to);
        let low = _mm512_set1_epi32(0xffff);
        let pairs = if slot.is_multiple_of(2) {
            _mm512_or_si512(_mm512_andnot_si512(low, pairs), value)
        } else {
            _mm512_or_si512(_mm512_and_si512(low, pairs), _mm512_slli_epi32::<16>(value))
        };
        _mm512_storeu_si512(to.cast(), pairs);
    }
}

/// Floats of one task's scratch.
pub(super) fn scratch_floats(dim: usize) -> usize {
    ROWS * (input_tiles(dim) * LANES + padded(dim) + 2)
        + GROUP * (STEP_KEYS + STEP_KEYS / 2 + 3)
        + panels(dim) * TILE_WORDS
}

/// One task's memory.
#[derive(Clone, Copy)]
struct Scratch {
    /// Rounded queries, `[row tile][head_dim / 32]` tiles.
    q: *mut f32,
    /// `[rows][head_dim padded]`.
    sums: *mut f32,
    /// By row. Greatest scores are in powers of two.
    greatest: *mut f32,
    totals: *mut f32,
    /// Of one group, `[32][128]`.
    scores: *mut f32,
    /// The same rounded, `[2][4]` tiles.
    weights: *mut f32,
    /// Of one group, by row.
    tops: *mut f32,
    bases: *mut f32,
    decays: *mut f32,
    /// Values of a tile whose last keys are not there.
    values: *mut f32,
}

impl Scratch {
    fn new(mut scratch: *mut f32, dim: usize) -> Self {
        let mut take = |floats: usize| {
            let taken = scratch;
            scratch = scratch.wrapping_add(floats);
            taken
        };
        Self {
            q: take(ROWS * input_tiles(dim) * LANES),
            sums: take(ROWS * padded(dim)),
            greatest: take(ROWS),
            totals: take(ROWS),
            scores: take(GROUP * STEP_KEYS),
            weights: take(GROUP * STEP_KEYS / 2),
            tops: take(GROUP),
            bases: take(GROUP),
            decays: take(GROUP),
            values: take(panels(dim) * TILE_WORDS),
        }
    }
}

/// Some queries of some heads that read one key-value head. Row `i` is head `i % heads` of query
/// `i / heads`.
struct Task<'a> {
    target: &'a Target<'a>,
    part: &'a Part<'a>,
    /// Of the part.
    queries: Range<usize>,
    heads: Range<usize>,
    /// Where the head's part of a tile begins.
    tile_offset: usize,
    scratch: Scratch,
}

/// Queries that one task takes through the tiles together.
pub(super) fn queries(shape: &AttentionShape) -> usize {
    (ROWS / (shape.heads / shape.kv_heads)).max(1)
}

/// Attends from queries of a part, for all heads that read one key-value head.
///
/// # Safety
///
/// The set is available; rows, heads and tiles exist and the rows and heads are the caller's alone;
/// the scratch has [`scratch_floats`].
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
pub(super) unsafe fn attend(
    target: &Target<'_>,
    part: &Part<'_>,
    queries: Range<usize>,
    kv_head: usize,
    scratch: *mut f32,
) {
    let (dim, group) = (target.shape.head_dim, target.shape.heads / target.shape.kv_heads);
    let all = kv_head * group..(kv_head + 1) * group;
    for head in all.clone().step_by(ROWS) {
        let task = Task {
            target,
            part,
            queries: queries.clone(),
            heads: head..all.end.min(head + ROWS),
            tile_offset: kv_head * tile_words(dim),
            scratch: Scratch::new(scratch, dim),
        };
        task.run();
    }
    tiles::release();
}

impl Task<'_> {
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn run(&self) {
        let (shape, rows) = (self.target.shape, self.rows());
        self.load_queries();
        std::slice::from_raw_parts_mut(self.scratch.greatest, ROWS).fill(f32::NEG_INFINITY);
        std::slice::from_raw_parts_mut(self.scratch.totals, ROWS).fill(0.0);
        let first = self.part.position + self.queries.start;
        let end = self.part.position + self.queries.end;
        let mut configured = 0;
        for step in shape.visible(first).start / STEP_KEYS..end.div_ceil(STEP_KEYS) {
            for start in (0..rows).step_by(GROUP) {
                let group = Group { task: self, start, rows: GROUP.min(rows - start), step };
                let tile_rows = group.tile_rows();
                if configured != tile_rows {
                    tiles::configure(tile_rows);
                    configured = tile_rows;
                }
                group.run();
            }
        }
        for row in 0..rows {
            self.finish(row);
        }
    }

    fn rows(&self) -> usize {
        self.queries.len() * self.heads.len()
    }

    /// A row's position in its sequence.
    fn position(&self, row: usize) -> usize {
        self.part.position + self.queries.start + row / self.heads.len()
    }

    /// A row's place in the step, and its head.
    fn place(&self, row: usize) -> (usize, usize) {
        let query = self.part.rows.start + self.queries.start + row / self.heads.len();
        (query, self.heads.start + row % self.heads.len())
    }

    fn q_tile(&self, row_tile: usize) -> *mut f32 {
        let words = input_tiles(self.target.shape.head_dim) * TILE_WORDS;
        self.scratch.q.wrapping_add(row_tile * words)
    }

    /// Rounds the queries; rows that fill up a tile beside others are zero.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn load_queries(&self) {
        let (dim, rows) = (self.target.shape.head_dim, self.rows());
        for row in 0..rows {
            let (query, head) = self.place(row);
            let to = self.q_tile(row / TILE_ROWS).add(row % TILE_ROWS * LANES);
            round_row(self.target.q.at(query, head * dim), dim, to);
        }
        for row in rows..rows.next_multiple_of(GROUP) {
            for tile in 0..input_tiles(dim) {
                let to = self.q_tile(row / TILE_ROWS).add(row % TILE_ROWS * LANES);
                _mm512_storeu_ps(to.add(tile * TILE_WORDS), _mm512_setzero_ps());
            }
        }
    }

    /// Where a tile of the key-value head begins.
    unsafe fn tile(&self, tile: usize) -> *const f32 {
        let row = self.part.tiles.blocks.map_or(tile, |blocks| blocks[tile] as usize);
        self.part.tiles.base.at(row, self.tile_offset)
    }

    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn finish(&self, row: usize) {
        let (dim, scratch) = (self.target.shape.head_dim, &self.scratch);
        let (query, head_number) = self.place(row);
        let total = *scratch.totals.add(row);
        let (sums, out) =
            (scratch.sums.add(row * padded(dim)), self.target.out.at(query, head_number * dim));
        for d in (0..dim).step_by(LANES) {
            let share = _mm512_div_ps(_mm512_loadu_ps(sums.add(d)), _mm512_set1_ps(total));
            _mm512_mask_storeu_ps(out.add(d), tiles::head(dim - d), share);
        }
        if let Some(lse) = self.target.lse {
            *lse.at(query, head_number) =
                *scratch.greatest.add(row) * consts::LN_2 + math::log(total);
        }
    }
}

/// Up to 32 rows of a task and the keys of one step.
struct Group<'a> {
    task: &'a Task<'a>,
    start: usize,
    rows: usize,
    step: usize,
}

impl Group<'_> {
    /// Rows that tiles are configured to: a lone tile has no more than there are.
    fn tile_rows(&self) -> usize {
        self.rows.min(TILE_ROWS)
    }

    fn row_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// The step's tiles that any row sees, and whether the rows have seen some before.
    fn tiles(&self) -> (Range<usize>, bool) {
        let (task, shape) = (self.task, self.task.target.shape);
        let first = shape.visible(task.position(self.start)).start / ATTENTION_TILE;
        let end = (task.position(self.start + self.rows - 1) + 1).div_ceil(ATTENTION_TILE);
        let step = self.step * STEP_TILES..(self.step + 1) * STEP_TILES;
        (first.max(step.start)..end.min(step.end), first < step.start)
    }

    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn run(&self) {
        let (tiles, seen) = self.tiles();
        if tiles.is_empty() {
            return;
        }
        self.scores(&tiles);
        self.find_tops(&tiles);
        self.renew_greatest();
        self.weigh(&tiles);
        self.add_values(&tiles, seen);
    }

    unsafe fn scores(&self, tiles: &Range<usize>) {
        let (task, scratch) = (self.task, &self.task.scratch);
        let inputs = input_tiles(task.target.shape.head_dim);
        let row_tile = self.start / TILE_ROWS;
        for (i, tile) in tiles.clone().enumerate() {
            let sums = Sums {
                pointer: scratch.scores.wrapping_add(i * ATTENTION_TILE),
                stride: STEP_KEYS,
                add: false,
            };
            let keys = task.tile(tile);
            if self.row_tiles() == 2 {
                let a =
                    [task.q_tile(row_tile).cast_const(), task.q_tile(row_tile + 1).cast_const()];
                tiles::two_by_two(a, keys, inputs, sums);
            } else {
                tiles::one_by_two(task.q_tile(row_tile), keys, inputs, sums);
            }
        }
    }

    /// What scores are multiplied by to become powers of two: capped ones are already.
    fn factor(&self) -> f32 {
        let shape = self.task.target.shape;
        if shape.softcap.is_some() { 1.0 } else { shape.scale * consts::LOG2_E }
    }

    /// Caps and masks the scores, and takes each row's greatest.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn find_tops(&self, tiles: &Range<usize>) {
        let (task, shape) = (self.task, self.task.target.shape);
        let masked = _mm512_set1_ps(f32::NEG_INFINITY);
        _mm512_storeu_ps(task.scratch.tops, masked);
        _mm512_storeu_ps(task.scratch.tops.add(LANES), masked);
        for row in 0..self.rows {
            let visible = shape.visible(task.position(self.start + row));
            let mut scores = task.scratch.scores.add(row * STEP_KEYS);
            let mut top = masked;
            for tile in tiles.clone() {
                let seen = seen(&visible, tile);
                let (mut a, mut b) = (_mm512_loadu_ps(scores), _mm512_loadu_ps(scores.add(LANES)));
                if let Some(cap) = shape.softcap {
                    (a, b) = (capped(a, shape.scale, cap), capped(b, shape.scale, cap));
                }
                if seen != !0 || shape.softcap.is_some() {
                    a = _mm512_mask_mov_ps(masked, seen as __mmask16, a);
                    b = _mm512_mask_mov_ps(masked, (seen >> LANES) as __mmask16, b);
                    _mm512_storeu_ps(scores, a);
                    _mm512_storeu_ps(scores.add(LANES), b);
                }
                top = _mm512_max_ps(top, _mm512_max_ps(a, b));
                scores = scores.add(ATTENTION_TILE);
            }
            *task.scratch.tops.add(row) = _mm512_reduce_max_ps(top);
        }
    }

    /// The running maximum, what weights are taken from, and how much earlier ones shrink.
    #[target_feature(enable = "avx512f")]
    unsafe fn renew_greatest(&self) {
        let scratch = &self.task.scratch;
        let none = _mm512_set1_ps(f32::NEG_INFINITY);
        for i in (0..GROUP).step_by(LANES) {
            let greatest = scratch.greatest.add(self.start + i);
            let old = _mm512_loadu_ps(greatest);
            let top =
                _mm512_mul_ps(_mm512_loadu_ps(scratch.tops.add(i)), _mm512_set1_ps(self.factor()));
            let new = _mm512_max_ps(old, top);
            // Anything while a query has seen no key.
            let some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(new, none);
            let base = _mm512_maskz_mov_ps(some, new);
            _mm512_storeu_ps(greatest, new);
            _mm512_storeu_ps(scratch.bases.add(i), base);
            _mm512_storeu_ps(scratch.decays.add(i), exp2(_mm512_sub_ps(old, base)));
        }
    }

    /// Scores become weights: summed, then rounded.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn weigh(&self, tiles: &Range<usize>) {
        let scratch = &self.task.scratch;
        let factor = _mm512_set1_ps(self.factor());
        for row in 0..self.rows {
            let base = _mm512_set1_ps(*scratch.bases.add(row));
            let scores = scratch.scores.add(row * STEP_KEYS);
            let first = row / TILE_ROWS * STEP_TILES * TILE_WORDS + row % TILE_ROWS * LANES;
            let weights = scratch.weights.add(first);
            let mut sum = _mm512_setzero_ps();
            for i in 0..tiles.len() {
                let scores = scores.add(i * ATTENTION_TILE);
                let a = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores), factor, base));
                let b = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores.add(LANES)), factor, base));
                sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
                let rounded = _mm512_cvtne2ps_pbh(b, a);
                weights.add(i * TILE_WORDS).cast::<__m512bh>().write_unaligned(rounded);
            }
            let total = scratch.totals.add(self.start + row);
            *total = (*total).mul_add(*scratch.decays.add(row), Avx512(sum).sum());
        }
    }

    /// `sums = sums * decay + weights * values`.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
    unsafe fn add_values(&self, tiles: &Range<usize>, seen: bool) {
        let (task, scratch) = (self.task, &self.task.scratch);
        let dim = task.target.shape.head_dim;
        if seen {
            for row in 0..self.rows {
                let decay = *scratch.decays.add(row);
                let sums = scratch.sums.add((self.start + row) * padded(dim));
                // A factor of 1 changes no bit.
                for d in (0..if decay == 1.0 { 0 } else { dim }).step_by(LANES) {
                    let kept = _mm512_mul_ps(_mm512_loadu_ps(sums.add(d)), _mm512_set1_ps(decay));
                    _mm512_storeu_ps(sums.add(d), kept);
                }
            }
        }
        let mut values = [std::ptr::null(); STEP_TILES];
        for (values, tile) in values.iter_mut().zip(tiles.clone()) {
            *values = self.values(tile);
        }
        for row_tile in 0..self.row_tiles() {
            let weights = scratch.weights.add(row_tile * STEP_TILES * TILE_WORDS).cast_const();
            let first = self.start + row_tile * TILE_ROWS;
            let sums = Sums {
                pointer: scratch.sums.add(first * padded(dim)),
                stride: padded(dim),
                add: seen,
            };
            tiles::one_by_places(weights, &values[..tiles.len()], panels(dim), sums);
        }
    }

    /// The values of a tile; those of keys after the last query are zero, for what stands there may be
    /// anything.
    #[target_feature(enable = "avx512f")]
    unsafe fn values(&self, tile: usize) -> *const f32 {
        let (task, dim) = (self.task, self.task.target.shape.head_dim);
        let values = task.tile(tile).add(key_words(dim));
        let end = task.position(self.start + self.rows - 1) + 1;
        let there = end - tile * ATTENTION_TILE;
        if there >= ATTENTION_TILE {
            return values;
        }
        for panel in 0..panels(dim) {
            for pair in 0..TILE_ROWS {
                let place = panel * TILE_WORDS + pair * LANES;
                let keep = match there.saturating_sub(2 * pair) {
                    0 => 0,
                    1 => 0xffff,
                    _ => -1,
                };
                let kept = _mm512_and_si512(
                    _mm512_loadu_si512(values.add(place).cast()),
                    _mm512_set1_epi32(keep),
                );
                _mm512_storeu_si512(task.scratch.values.add(place).cast(), kept);
            }
        }
        task.scratch.values
    }
}

/// Which of a tile's 32 keys are visible.
fn seen(visible: &Range<usize>, tile: usize) -> u32 {
    let first = tile * ATTENTION_TILE;
    let below = |end: usize| {
        let count = end.saturating_sub(first).min(ATTENTION_TILE);
        ((1_u64 << count) - 1) as u32
    };
    below(visible.end) & !below(visible.start)
}

/// A capped score, as a power of two.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn capped(score: __m512, scale: f32, cap: f32) -> __m512 {
    let scaled = _mm512_mul_ps(score, _mm512_set1_ps(scale));
    let Avx512(capped) = softcap::capped(Avx512(scaled), Avx512::splat(cap));
    _mm512_mul_ps(capped, _mm512_set1_ps(consts::LOG2_E))
}
