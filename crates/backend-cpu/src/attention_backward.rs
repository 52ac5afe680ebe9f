//! The gradient of attention: probabilities are made again, in the tiles of forward.
//!
//! In f32, dQ is summed over key tiles in order; dK and dV by query head, then query tile, within a unit
//! (`attention_backward/units.rs`). Each tile's part is one chain from zero (Dao et al. 2022, algorithm 4).
//! `attention_backward/amx.rs` has the other way.

use std::ops::Range;

use tinsmith_backend::{ATTENTION_TILE, AttentionForward, AttentionShape, QkvGradients};

use crate::{
    CpuBackend,
    attention::scaled_scores,
    buffer::{Rows, View, ViewMut, padded},
    gemm::{Fold, Multiply},
    lanes::{Kernel, LANES, Lanes},
    math, softcap,
};

#[cfg(target_arch = "x86_64")]
mod amx;
mod units;

use units::Unit;
pub(crate) use units::{scratch_floats, shared_floats};

pub(crate) fn attention_backward(
    cpu: &mut CpuBackend,
    gradients: &mut QkvGradients<'_, CpuBackend>,
    forward: &AttentionForward<'_, CpuBackend>,
    sequences: &[Range<usize>],
    shape: &AttentionShape,
) {
    let qkv = &forward.qkv;
    let wide = |rows: &Rows, heads: usize| rows.features == heads * shape.head_dim;
    for rows in [qkv.q, forward.out, forward.dout, gradients.dq] {
        assert!(wide(rows, shape.heads) && rows.rows == qkv.q.rows, "shapes fit");
    }
    for rows in [qkv.k, qkv.v, gradients.dk, gradients.dv] {
        assert!(wide(rows, shape.kv_heads) && rows.rows == qkv.q.rows, "shapes fit");
    }
    assert!(sequences.iter().all(|rows| rows.end <= qkv.q.rows), "rows exist");
    assert!((forward.lse.rows, forward.lse.features) == (qkv.q.rows, shape.heads), "shapes fit");
    let op = Op {
        q: qkv.q.view(),
        k: qkv.k.view(),
        v: qkv.v.view(),
        out: forward.out.view(),
        dout: forward.dout.view(),
        lse: forward.lse.view(),
        dq: gradients.dq.view_mut(),
        dk: gradients.dk.view_mut(),
        dv: gradients.dv.view_mut(),
        shape,
    };
    let reach = shape.window.map_or(usize::MAX, |window| window.saturating_add(ATTENTION_TILE));
    let pairs =
        sequences.iter().map(|rows| rows.len() * (rows.len() / 2).min(reach)).sum::<usize>();
    let work = pairs * shape.heads * shape.head_dim * 5;
    units::run(cpu, &op, sequences, work);
}

struct Op<'a> {
    q: View,
    k: View,
    v: View,
    out: View,
    dout: View,
    lse: View,
    dq: ViewMut,
    dk: ViewMut,
    dv: ViewMut,
    shape: &'a AttentionShape,
}

// SAFETY: the views' data outlives the op, and each task writes rows and heads of its own.
unsafe impl Sync for Op<'_> {}

/// One task's memory, the keys rounded up to whole tiles.
#[derive(Clone, Copy)]
struct Scratch {
    /// By tile, `[head_dim][32]`.
    k_transposed: *mut f32,
    v_transposed: *mut f32,
    /// `[rows][head_dim padded]`.
    k: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
    /// Of one query tile, `[32][head_dim padded]`.
    q: *mut f32,
    dout: *mut f32,
    dq: *mut f32,
    /// `[32][32]`.
    scores: *mut f32,
    changes: *mut f32,
    /// Of each query: Σ dout · out.
    means: *mut f32,
}

impl Scratch {
    fn floats(tokens: usize, dim: usize) -> usize {
        let rows = tokens.next_multiple_of(ATTENTION_TILE);
        let tile = ATTENTION_TILE * (3 * padded(dim) + 2 * ATTENTION_TILE + 1);
        rows * (2 * dim + 3 * padded(dim)) + tile
    }

    /// # Safety
    ///
    /// The pointer reaches that many floats.
    unsafe fn new(mut scratch: *mut f32, tokens: usize, dim: usize) -> Self {
        let mut take = |floats: usize| {
            let taken = scratch;
            scratch = scratch.wrapping_add(floats);
            taken
        };
        let (rows, wide) = (tokens.next_multiple_of(ATTENTION_TILE), padded(dim));
        Self {
            k_transposed: take(rows * dim),
            v_transposed: take(rows * dim),
            k: take(rows * wide),
            dk: take(rows * wide),
            dv: take(rows * wide),
            q: take(ATTENTION_TILE * wide),
            dout: take(ATTENTION_TILE * wide),
            dq: take(ATTENTION_TILE * wide),
            scores: take(ATTENTION_TILE * ATTENTION_TILE),
            changes: take(ATTENTION_TILE * ATTENTION_TILE),
            means: take(ATTENTION_TILE),
        }
    }
}

/// One unit, in f32: dK and dV of its keys are written to `keys`, whose row 0 is the first.
struct Floats<'a> {
    op: &'a Op<'a>,
    unit: &'a Unit,
    keys: [ViewMut; 2],
    scratch: Scratch,
}

impl Kernel for Floats<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (op, scratch, unit) = (self.op, self.scratch, self.unit);
        let (dim, tokens) = (op.shape.head_dim, unit.keys.len());
        let (wide, group) = (padded(dim), op.shape.heads / op.shape.kv_heads);
        self.pack_keys();
        std::slice::from_raw_parts_mut(scratch.dk, tokens * wide).fill(0.0);
        std::slice::from_raw_parts_mut(scratch.dv, tokens * wide).fill(0.0);
        for head in unit.kv_head * group..(unit.kv_head + 1) * group {
            for start in unit.queries.clone().step_by(ATTENTION_TILE) {
                let queries = start..unit.queries.end.min(start + ATTENTION_TILE);
                self.load_queries::<L>(head, queries.clone());
                let first = op.shape.visible(start).start / ATTENTION_TILE * ATTENTION_TILE;
                for key in (first..queries.end).step_by(ATTENTION_TILE) {
                    self.tile::<L>(head, queries.clone(), key);
                }
                let to =
                    ViewMut { pointer: op.dq.at(unit.rows.start + start, head * dim), ..op.dq };
                copy_rows(scratch.dq, to, queries.len(), dim);
            }
        }
        for (from, to) in [scratch.dk, scratch.dv].into_iter().zip(self.keys) {
            copy_rows(from, to, tokens, dim);
        }
    }
}

impl Floats<'_> {
    fn pack_keys(&self) {
        let (op, scratch, dim) = (self.op, self.scratch, self.op.shape.head_dim);
        let (first, column) =
            (self.unit.rows.start + self.unit.keys.start, self.unit.kv_head * dim);
        for i in 0..self.unit.keys.len() {
            // SAFETY: the scratch has whole tiles for all rows; the rows exist.
            unsafe {
                let (k, v) = (op.k.at(first + i, column), op.v.at(first + i, column));
                let tile = i / ATTENTION_TILE * ATTENTION_TILE * dim + i % ATTENTION_TILE;
                for d in 0..dim {
                    *scratch.k_transposed.add(tile + d * ATTENTION_TILE) = *k.add(d);
                    *scratch.v_transposed.add(tile + d * ATTENTION_TILE) = *v.add(d);
                }
                pack_row(scratch.k, i, k, dim);
            }
        }
    }

    /// Packs a tile of queries and of `dout`, and takes each row's `Σ dout · out`.
    #[inline(always)]
    unsafe fn load_queries<L: Lanes>(&self, head: usize, queries: Range<usize>) {
        let (op, scratch, dim) = (self.op, self.scratch, self.op.shape.head_dim);
        let (first, count) = (self.unit.rows.start + queries.start, queries.len());
        std::slice::from_raw_parts_mut(scratch.dq, count * padded(dim)).fill(0.0);
        for i in 0..count {
            pack_row(scratch.q, i, op.q.at(first + i, head * dim), dim);
            pack_row(scratch.dout, i, op.dout.at(first + i, head * dim), dim);
        }
        let out = View { pointer: op.out.at(first, head * dim), ..op.out };
        let dout = View { pointer: op.dout.at(first, head * dim), ..op.dout };
        L::call(Means { out, dout, dim, count, means: scratch.means });
    }

    /// One tile of queries with one tile of keys.
    #[inline(always)]
    unsafe fn tile<L: Lanes>(&self, head: usize, queries: Range<usize>, key: usize) {
        let (scratch, dim) = (self.scratch, self.op.shape.head_dim);
        let wide = padded(dim);
        let keys = ATTENTION_TILE.min(self.unit.keys.end - key);
        let place = key - self.unit.keys.start;
        let over_head = |a: *const f32, b: *const f32, out: *mut f32| Multiply {
            a,
            a_row: wide,
            a_k: 1,
            b,
            b_panel: LANES,
            b_k: ATTENTION_TILE,
            k: dim,
            rows: queries.len(),
            panels: ATTENTION_TILE / LANES,
            out: ViewMut { pointer: out, stride: ATTENTION_TILE },
            fold: Fold::Store,
        };
        let from = place * dim;
        L::call(over_head(scratch.q, scratch.k_transposed.wrapping_add(from), scratch.scores));
        L::call(over_head(scratch.dout, scratch.v_transposed.wrapping_add(from), scratch.changes));
        self.softmax::<L>(head, queries.clone(), key);
        let over_tile = |(a, a_row, a_k): (*const f32, usize, usize), b, (rows, k), out| Multiply {
            a,
            a_row,
            a_k,
            b,
            b_panel: LANES,
            b_k: wide,
            k,
            rows,
            panels: wide / LANES,
            out: ViewMut { pointer: out, stride: wide },
            fold: Fold::Add,
        };
        let count = queries.len();
        let changes = scratch.changes.cast_const();
        let k = scratch.k.add(place * wide);
        L::call(over_tile((changes, ATTENTION_TILE, 1), k, (count, keys), scratch.dq));
        let dv = scratch.dv.add(place * wide);
        let dk = scratch.dk.add(place * wide);
        let scores = scratch.scores.cast_const();
        L::call(over_tile((scores, 1, ATTENTION_TILE), scratch.dout, (keys, count), dv));
        L::call(over_tile((changes, 1, ATTENTION_TILE), scratch.q, (keys, count), dk));
    }

    /// `p = exp(score - lse)` in place of scores, `p (dp - mean) scale` in place of dp, times the slope
    /// of the softcap if there is one.
    #[inline(always)]
    unsafe fn softmax<L: Lanes>(&self, head: usize, queries: Range<usize>, key: usize) {
        let (op, scratch) = (self.op, self.scratch);
        for (i, query) in queries.enumerate() {
            let scores = scratch.scores.add(i * ATTENTION_TILE);
            let changes = scratch.changes.add(i * ATTENTION_TILE);
            let lse = L::splat(*op.lse.at(self.unit.rows.start + query, head));
            let (mean, scale) = (L::splat(*scratch.means.add(i)), L::splat(op.shape.scale));
            let scaled = scaled_scores::<L>(scores, op.shape, (key, op.shape.visible(query)));
            for (half, score) in scaled.into_iter().enumerate() {
                let p = math::exp(score.sub(lse));
                let change = L::load(changes.add(half * LANES)).sub(mean);
                p.store(scores.add(half * LANES));
                let mut change = p.mul(change).mul(scale);
                if let Some(cap) = op.shape.softcap {
                    change = change.mul(softcap::slope(score, L::splat(cap)));
                }
                // Keys that do not exist have any dp, a NaN even; a masked score is no number to cap.
                let zero = L::splat(0.0);
                zero.select_less(p, change, zero).store(changes.add(half * LANES));
            }
        }
    }
}

/// `means[i] = Σ out[i] · dout[i]`, one chain each, in the order of the chains of `dout · v`: where
/// a query sees one key, the two are equal and its gradient is an exact zero.
struct Means {
    out: View,
    dout: View,
    dim: usize,
    count: usize,
    means: *mut f32,
}

impl Kernel for Means {
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "eight chains side by side, by index")]
    unsafe fn run<L: Lanes>(self) {
        const CHAINS: usize = 8;
        for start in (0..self.count).step_by(CHAINS) {
            let mut sums = [0.0f32; CHAINS];
            for d in 0..self.dim {
                for i in 0..CHAINS {
                    // The last group takes its last row more than once.
                    let row = (start + i).min(self.count - 1);
                    sums[i] = (*self.dout.at(row, d)).mul_add(*self.out.at(row, d), sums[i]);
                }
            }
            for i in 0..CHAINS.min(self.count - start) {
                *self.means.add(start + i) = sums[i];
            }
        }
    }
}

/// Copies a head's features to row `i` of a packed matrix, with zeros after them.
unsafe fn pack_row(to: *mut f32, i: usize, from: *const f32, dim: usize) {
    let to = to.add(i * padded(dim));
    std::ptr::copy_nonoverlapping(from, to, dim);
    std::slice::from_raw_parts_mut(to.add(dim), padded(dim) - dim).fill(0.0);
}

unsafe fn copy_rows(from: *const f32, to: ViewMut, rows: usize, dim: usize) {
    for i in 0..rows {
        std::ptr::copy_nonoverlapping(from.add(i * padded(dim)), to.at(i, 0), dim);
    }
}
