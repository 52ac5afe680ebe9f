//! Parts of sequences whose gradients are computed by themselves, so that one long sequence has work for
//! every thread.
//!
//! A unit is a key-value head with some of a sequence's queries, all heads of theirs. A sequence of one
//! part has its dK and dV at once; those of a longer one are its parts', added in order.

use std::{cell::Cell, ops::Range};

use tinsmith_backend::{ATTENTION_TILE, AttentionShape};

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::{Floats, Op, Scratch};
use crate::{
    CpuBackend,
    attention::Tiling,
    buffer::{ViewMut, padded, with_scratch},
    lanes::{Kernel, LANES, Lanes, Path},
    lists::with_list,
};

/// Some queries of one sequence, and the keys that they see.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// The sequence's, in the step.
    pub(super) rows: Range<usize>,
    pub(super) kv_head: usize,
    /// Positions.
    pub(super) queries: Range<usize>,
    /// Positions, from the first of a block.
    pub(super) keys: Range<usize>,
}

thread_local! {
    static UNITS: Cell<Vec<Unit>> = const { Cell::new(Vec::new()) };
}

/// What the first query of a part is a multiple of, and its first key.
const STEP: usize = 64;

/// How a set's sequences are cut.
struct Cut {
    /// Tokens of a sequence that is one part, at most.
    whole: usize,
    /// Queries of a part of another one.
    queries: usize,
}

impl Cut {
    /// A part of a sequence of 32,768 tokens is about 20 ms of work.
    fn of(tiling: Tiling, shape: &AttentionShape) -> Self {
        let of_rows = |rows: usize| (rows * shape.kv_heads / shape.heads / STEP).max(1) * STEP;
        match tiling {
            Tiling::Floats => Self { whole: 1024, queries: of_rows(256) },
            // All heads' queries together fit the second cache.
            Tiling::Pairs => Self { whole: of_rows(2048), queries: of_rows(2048) },
        }
    }

    /// Queries of a part, at most.
    fn most(&self, tokens: usize) -> usize {
        if tokens <= self.whole { tokens } else { self.queries }
    }
}

/// Units whose shares of dK and dV are kept at once.
fn wave(threads: usize) -> usize {
    2 * threads
}

/// Floats of one task's scratch, for sequences of up to so many tokens.
pub(crate) fn scratch_floats(tiling: Tiling, tokens: usize, shape: &AttentionShape) -> usize {
    let cut = Cut::of(tiling, shape);
    let largest = [tokens, tokens.min(cut.whole)].map(|tokens| (cut.most(tokens), tokens));
    let floats = |(queries, keys)| unit_floats(tiling, (queries, keys), shape);
    largest.into_iter().map(floats).max().unwrap_or(0)
}

/// Floats of the scratch for one unit.
fn unit_floats(tiling: Tiling, (queries, keys): (usize, usize), shape: &AttentionShape) -> usize {
    match tiling {
        Tiling::Floats => Scratch::floats(keys, shape.head_dim),
        #[cfg(target_arch = "x86_64")]
        Tiling::Pairs => amx::scratch_floats(queries, shape),
        #[cfg(not(target_arch = "x86_64"))]
        Tiling::Pairs => unreachable!("no set of this CPU has such tiles: {queries}"),
    }
}

/// Floats that all tasks share, for sequences of up to so many tokens.
pub(crate) fn shared_floats(
    tiling: Tiling,
    (tokens, threads): (usize, usize),
    shape: &AttentionShape,
) -> usize {
    let whole = tokens <= Cut::of(tiling, shape).whole;
    if whole { 0 } else { wave(threads) * share_floats(tokens, shape) }
}

/// Floats of one unit's share.
fn share_floats(tokens: usize, shape: &AttentionShape) -> usize {
    2 * tokens * padded(shape.head_dim)
}

/// Computes all gradients; `work` is what they are worth in multiply-adds.
pub(super) fn run(cpu: &mut CpuBackend, op: &Op<'_>, sequences: &[Range<usize>], work: usize) {
    let cut = Cut::of(Tiling::of(cpu.set), op.shape);
    with_list(&UNITS, |units| {
        let short = sequences.iter().filter(|rows| rows.len() <= cut.whole && !rows.is_empty());
        for rows in short {
            units.extend(part(op.shape, rows, 0..rows.len()));
        }
        // The long ones first, so that no thread is left with one at the end.
        units.sort_by_key(|unit| std::cmp::Reverse(unit.rows.len()));
        cpu.pool.run_sized(units.len(), work, &|i| {
            let unit = &units[i];
            let keys = own_keys(op, unit);
            // SAFETY: shapes were compared before; a sequence's key-value head is one unit's own.
            unsafe { compute((Tiling::of(cpu.set), cpu.path), op, unit, keys) };
        });
        for rows in sequences.iter().filter(|rows| rows.len() > cut.whole) {
            units.clear();
            for start in (0..rows.len()).step_by(cut.queries) {
                units.extend(part(op.shape, rows, start..rows.len().min(start + cut.queries)));
            }
            run_long(cpu, op, units, share_floats(rows.len(), op.shape));
        }
    });
}

/// The units of one part of a sequence.
fn part(
    shape: &AttentionShape,
    rows: &Range<usize>,
    queries: Range<usize>,
) -> impl Iterator<Item = Unit> + use<> {
    let first = shape.visible(queries.start).start / STEP * STEP;
    let keys = first..queries.end;
    let rows = rows.clone();
    (0..shape.kv_heads).map(move |kv_head| Unit {
        rows: rows.clone(),
        kv_head,
        queries: queries.clone(),
        keys: keys.clone(),
    })
}

/// Where the gradients of a unit's keys and values stand.
fn own_keys(op: &Op<'_>, unit: &Unit) -> [ViewMut; 2] {
    let (row, column) = (unit.rows.start + unit.keys.start, unit.kv_head * op.shape.head_dim);
    // SAFETY: shapes were compared before.
    [op.dk, op.dv].map(|all| unsafe { ViewMut { pointer: all.at(row, column), ..all } })
}

/// # Safety
///
/// Rows and heads exist; those of dQ, and of `keys`, are the caller's alone.
unsafe fn compute((tiling, path): (Tiling, Path), op: &Op<'_>, unit: &Unit, keys: [ViewMut; 2]) {
    let floats = unit_floats(tiling, (unit.queries.len(), unit.keys.len()), op.shape);
    with_scratch(floats, |scratch| {
        // SAFETY: the caller's contract; the scratch has what its kind needs.
        unsafe {
            match tiling {
                Tiling::Floats => {
                    let scratch = Scratch::new(scratch, unit.keys.len(), op.shape.head_dim);
                    path.run(Floats { op, unit, keys, scratch });
                }
                #[cfg(target_arch = "x86_64")]
                Tiling::Pairs => amx::run(op, unit, keys, scratch),
                #[cfg(not(target_arch = "x86_64"))]
                Tiling::Pairs => unreachable!("no set of this CPU has such tiles"),
            }
        }
    });
}

/// The units of one sequence, a few at a time: each computes its share, and shares are added in order.
fn run_long(cpu: &mut CpuBackend, op: &Op<'_>, units: &[Unit], share: usize) {
    let (pool, path, tiling) = (&cpu.pool, cpu.path, Tiling::of(cpu.set));
    let wide = padded(op.shape.head_dim);
    let wave = wave(pool.threads());
    cpu.partials.renew(wave * share);
    let partials = cpu.partials.pointer_mut();
    let shares = ViewMut { pointer: partials, stride: share };
    for units in units.chunks(wave) {
        // SAFETY: a unit's share is its own.
        let views = |i: usize| unsafe {
            [0, share / 2].map(|start| ViewMut { pointer: shares.at(i, start), stride: wide })
        };
        pool.run(units.len(), &|i| {
            // SAFETY: shapes were compared before; dQ of a unit's queries is its own.
            unsafe { compute((tiling, path), op, &units[i], views(i)) };
        });
        // One task has a key-value head's keys of a tile, of all units, in order.
        let tiles =
            units.iter().map(|unit| unit.keys.end).max().unwrap_or(0).div_ceil(ATTENTION_TILE);
        let work = tiles * ATTENTION_TILE * wide * units.len();
        pool.run_sized(tiles * op.shape.kv_heads, work, &|task| {
            let (tile, kv_head) = (task / op.shape.kv_heads, task % op.shape.kv_heads);
            for (i, unit) in units.iter().enumerate().filter(|(_, unit)| unit.kv_head == kv_head) {
                let start = (tile * ATTENTION_TILE).max(unit.keys.start);
                let end = ((tile + 1) * ATTENTION_TILE).min(unit.keys.end);
                for (from, to) in views(i).into_iter().zip(own_keys(op, unit)) {
                    // A part's own keys are seen by no part before it.
                    let own = unit.queries.start - unit.keys.start;
                    let keys = start - unit.keys.start..end.max(start) - unit.keys.start;
                    // SAFETY: the keys are some of the unit's, and this task's alone.
                    unsafe { path.run(AddShare { from, to, keys, own, dim: op.shape.head_dim }) };
                }
            }
        });
    }
}

/// `to (+)= from` for some keys of a unit; those from `own` on are written for the first time.
struct AddShare {
    from: ViewMut,
    to: ViewMut,
    keys: Range<usize>,
    own: usize,
    dim: usize,
}

impl Kernel for AddShare {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for key in self.keys {
            for d in (0..self.dim).step_by(LANES) {
                let (left, to) = (self.dim - d, self.to.at(key, d));
                let mut sum = L::load(self.from.at(key, d));
                if key < self.own {
                    sum = L::load_head(to, left, 0.0).add(sum);
                }
                sum.store_head(to, left);
            }
        }
    }
}
