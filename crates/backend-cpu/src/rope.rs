//! Rotary embedding of each head, after an optional RMS norm of the head, and its gradient.
//!
//! Cosines and sines are computed once for each position and kept. Lanes are pairs.

use tinsmith_backend::{Rope, RopeTable};

use crate::{
    CpuBackend,
    buffer::{Buffer, Rows, View, ViewMut, padded},
    lanes::{Kernel, LANES, Lanes},
    math,
    rms_norm::{correction, inverse_root},
};

pub(crate) fn rope(cpu: &mut CpuBackend, out: &mut Rows, x: &Rows, rope: &Rope<'_, CpuBackend>) {
    assert!((out.rows, out.features) == (x.rows, x.features), "shapes fit");
    let turns = Turns::of(&mut cpu.turns, rope.table, rope.positions);
    let (out, heads) = (out.view_mut(), Heads::new(x, rope));
    cpu.pool.run_rows(x.rows, x.rows * x.features * COST, &|part| {
        for row in part {
            // SAFETY: both have the row; each row is one task's own.
            unsafe {
                let kernel = Forward { out, heads, row, turns: turns.at(rope.positions, row) };
                cpu.path.run(kernel);
            }
        }
    });
}

pub(crate) fn rope_backward(
    cpu: &mut CpuBackend,
    dx: &mut Rows,
    (dy, x): (&Rows, &Rows),
    rope: &Rope<'_, CpuBackend>,
) {
    assert!((dx.rows, dx.features) == (x.rows, x.features), "shapes fit");
    assert!((dy.rows, dy.features) == (x.rows, x.features), "shapes fit");
    let turns = Turns::of(&mut cpu.turns, rope.table, rope.positions);
    let (dx, dy, heads) = (dx.view_mut(), dy.view(), Heads::new(x, rope));
    cpu.pool.run_rows(x.rows, x.rows * x.features * 2 * COST, &|part| {
        for row in part {
            // SAFETY: all three have the row; each row is one task's own.
            unsafe {
                let kernel = Backward { dx, dy, heads, row, turns: turns.at(rope.positions, row) };
                cpu.path.run(kernel);
            }
        }
    });
}

/// Multiply-adds that one element is about worth.
const COST: usize = 8;

/// The heads of a row, and their norm.
#[derive(Clone, Copy)]
struct Heads {
    x: View,
    count: usize,
    dim: usize,
    norm: Option<(View, f32)>,
}

impl Heads {
    fn new(x: &Rows, rope: &Rope<'_, CpuBackend>) -> Self {
        let dim = rope.head_dim;
        assert!(rope.positions.len() == x.rows && x.features.is_multiple_of(dim), "shapes fit");
        assert!(rope.table.inverse_frequencies.len() == dim / 2, "a frequency for each pair");
        let norm = rope
            .norm
            .map(|(weight, eps)| (View { pointer: weight.data.pointer(), stride: 0 }, eps));
        Self { x: x.view(), count: x.features / dim, dim, norm }
    }
}

/// Cosines and sines by position: `[position][cosines | sines]`, each padded to whole vectors.
#[derive(Debug)]
pub(crate) struct Turns {
    table: RopeTable,
    kept: Buffer,
    kept_positions: usize,
    /// Those of the rows of this op whose positions are not kept.
    extra: Buffer,
}

/// Positions whose turns are kept: 64 MiB for heads of 128.
const KEPT_POSITIONS: usize = 1 << 17;

impl Turns {
    /// The turns of a table, with all positions of an op.
    fn of<'a>(all: &'a mut Vec<Self>, table: &RopeTable, positions: &[u32]) -> &'a Self {
        let same = |turns: &Self| {
            turns.table.amplitude.to_bits() == table.amplitude.to_bits()
                && turns.table.inverse_frequencies == table.inverse_frequencies
        };
        let index = all.iter().position(same).unwrap_or_else(|| {
            let (kept, extra) = (Buffer::default(), Buffer::default());
            all.push(Self { table: table.clone(), kept, kept_positions: 0, extra });
            all.len() - 1
        });
        all[index].prepare(positions);
        &all[index]
    }

    /// Floats that sequences of up to so many tokens leave behind.
    pub(crate) fn floats(longest: usize, head_dim: usize) -> usize {
        kept_positions(longest) * 2 * padded(head_dim / 2)
    }

    fn stride(&self) -> usize {
        2 * padded(self.table.inverse_frequencies.len())
    }

    fn prepare(&mut self, positions: &[u32]) {
        let stride = self.stride();
        let needed = positions.iter().map(|&p| p as usize + 1).max().unwrap_or(0);
        if needed > self.kept_positions && self.kept_positions < KEPT_POSITIONS {
            let grown = kept_positions(needed);
            self.kept.grow(grown * stride);
            for position in self.kept_positions..grown {
                fill(&mut self.kept, position, position as f32, &self.table);
            }
            self.kept_positions = grown;
        }
        if needed > self.kept_positions {
            self.extra.renew(positions.len() * stride);
            for (row, &position) in positions.iter().enumerate() {
                if position as usize >= self.kept_positions {
                    fill(&mut self.extra, row, position as f32, &self.table);
                }
            }
        }
    }

    /// # Safety
    ///
    /// The positions are those that the turns were prepared for.
    unsafe fn at(&self, positions: &[u32], row: usize) -> *const f32 {
        let position = positions[row] as usize;
        if position < self.kept_positions {
            self.kept.pointer().add(position * self.stride())
        } else {
            self.extra.pointer().add(row * self.stride())
        }
    }
}

fn kept_positions(needed: usize) -> usize {
    needed.next_power_of_two().clamp(64, KEPT_POSITIONS)
}

fn fill(buffer: &mut Buffer, slot: usize, position: f32, table: &RopeTable) {
    let half = padded(table.inverse_frequencies.len());
    let to = &mut buffer.floats_mut()[slot * 2 * half..][..2 * half];
    for (i, &frequency) in table.inverse_frequencies.iter().enumerate() {
        let (cos, sin) = math::cos_sin(position * frequency);
        (to[i], to[half + i]) = (cos * table.amplitude, sin * table.amplitude);
    }
}

struct Forward {
    out: ViewMut,
    heads: Heads,
    row: usize,
    turns: *const f32,
}

impl Kernel for Forward {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let heads = self.heads;
        let half = heads.dim / 2;
        for head in 0..heads.count {
            let x = heads.x.at(self.row, head * heads.dim);
            let out = self.out.at(self.row, head * heads.dim);
            let inverse = match heads.norm {
                Some((_, eps)) => inverse_root::<L>(x, heads.dim, eps),
                None => 1.0,
            };
            let mut i = 0;
            while i < half {
                let left = half - i;
                let (mut a, mut b) =
                    (L::load_head(x.add(i), left, 0.0), L::load_head(x.add(half + i), left, 0.0));
                if let Some((weight, _)) = heads.norm {
                    let inverse = L::splat(inverse);
                    a = a.mul(inverse).mul(L::load_head(weight.at(0, i), left, 0.0));
                    b = b.mul(inverse).mul(L::load_head(weight.at(0, half + i), left, 0.0));
                }
                let (cos, sin) =
                    (L::load(self.turns.add(i)), L::load(self.turns.add(padded(half) + i)));
                let zero = L::splat(0.0);
                a.mul_add(cos, zero.sub(b.mul(sin))).store_head(out.add(i), left);
                b.mul_add(cos, a.mul(sin)).store_head(out.add(half + i), left);
                i += LANES;
            }
        }
    }
}

struct Backward {
    dx: ViewMut,
    dy: View,
    heads: Heads,
    row: usize,
    turns: *const f32,
}

impl Kernel for Backward {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let heads = self.heads;
        let half = heads.dim / 2;
        for head in 0..heads.count {
            let x = heads.x.at(self.row, head * heads.dim);
            let dy = self.dy.at(self.row, head * heads.dim);
            let dx = self.dx.at(self.row, head * heads.dim);
            let mut i = 0;
            while i < half {
                let left = half - i;
                let (a, b) =
                    (L::load_head(dy.add(i), left, 0.0), L::load_head(dy.add(half + i), left, 0.0));
                let (cos, sin) =
                    (L::load(self.turns.add(i)), L::load(self.turns.add(padded(half) + i)));
                let zero = L::splat(0.0);
                a.mul_add(cos, b.mul(sin)).store_head(dx.add(i), left);
                b.mul_add(cos, zero.sub(a.mul(sin))).store_head(dx.add(half + i), left);
                i += LANES;
            }
            if let Some((weight, eps)) = heads.norm {
                let inverse = inverse_root::<L>(x, heads.dim, eps);
                self.norm_backward::<L>(dx, x, weight.pointer, inverse);
            }
        }
    }
}

impl Backward {
    /// Turns the gradient of a normed head into that of the head, in place.
    #[inline(always)]
    unsafe fn norm_backward<L: Lanes>(
        &self,
        dx: *mut f32,
        x: *const f32,
        weight: *const f32,
        inverse: f32,
    ) {
        let dim = self.heads.dim;
        let factor = L::splat(correction::<L>(dx, x, weight, (dim, inverse)));
        let mut i = 0;
        while i < dim {
            let left = dim - i;
            let dy = L::load_head(dx.add(i), left, 0.0);
            let weight = L::load_head(weight.add(i), left, 0.0);
            let x = L::load_head(x.add(i), left, 0.0);
            x.mul_add(factor, dy.mul(weight).mul(L::splat(inverse))).store_head(dx.add(i), left);
            i += LANES;
        }
    }
}
