//! Root mean square norm, and its gradient.
//!
//! Sums over features: lane `i` adds features `i, i + 16, …` in order with fused multiply-adds, then the
//! lanes are folded by halves.

use crate::{
    CpuBackend,
    buffer::{Rows, Vector},
    lanes::{Kernel, LANES, Lanes},
};

pub(crate) fn rms_norm(cpu: &CpuBackend, out: &mut Rows, x: &Rows, weight: &Vector, eps: f32) {
    assert!((out.rows, out.features) == (x.rows, x.features), "shapes fit");
    let (rows, features, weight) = (x.rows, x.features, weight.data.floats());
    let (out, x) = (out.view_mut(), x.view());
    cpu.pool.run_rows(rows, rows * features * COST, &|part| {
        for row in part {
            // SAFETY: both have the row; each row is one task's own.
            unsafe {
                let (out, x) = (out.at(row, 0), x.at(row, 0));
                cpu.path.run(Forward { out, x, weight: weight.as_ptr(), features, eps });
            }
        }
    });
}

pub(crate) fn rms_norm_backward(
    cpu: &CpuBackend,
    dx: &mut Rows,
    (dy, x): (&Rows, &Rows),
    weight: &Vector,
    eps: f32,
) {
    assert!((dx.rows, dx.features) == (x.rows, x.features), "shapes fit");
    assert!((dy.rows, dy.features) == (x.rows, x.features), "shapes fit");
    let (rows, features, weight) = (x.rows, x.features, weight.data.floats());
    let (dx, dy, x) = (dx.view_mut(), dy.view(), x.view());
    cpu.pool.run_rows(rows, rows * features * 2 * COST, &|part| {
        for row in part {
            // SAFETY: all three have the row; each row is one task's own.
            unsafe {
                let (dx, dy, x) = (dx.at(row, 0), dy.at(row, 0), x.at(row, 0));
                cpu.path.run(Backward { dx, dy, x, weight: weight.as_ptr(), features, eps });
            }
        }
    });
}

/// Multiply-adds that one element is about worth.
const COST: usize = 8;

struct Forward {
    out: *mut f32,
    x: *const f32,
    weight: *const f32,
    features: usize,
    eps: f32,
}

impl Kernel for Forward {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let inverse = L::splat(inverse_root::<L>(self.x, self.features, self.eps));
        let mut i = 0;
        while i < self.features {
            let left = self.features - i;
            let x = L::load_head(self.x.add(i), left, 0.0);
            let weight = L::load_head(self.weight.add(i), left, 0.0);
            x.mul(inverse).mul(weight).store_head(self.out.add(i), left);
            i += LANES;
        }
    }
}

struct Backward {
    dx: *mut f32,
    dy: *const f32,
    x: *const f32,
    weight: *const f32,
    features: usize,
    eps: f32,
}

impl Kernel for Backward {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let inverse = inverse_root::<L>(self.x, self.features, self.eps);
        let factor = correction::<L>(self.dy, self.x, self.weight, (self.features, inverse));
        let (inverse, factor) = (L::splat(inverse), L::splat(factor));
        let mut i = 0;
        while i < self.features {
            let left = self.features - i;
            let x = L::load_head(self.x.add(i), left, 0.0);
            let dy = L::load_head(self.dy.add(i), left, 0.0);
            let weight = L::load_head(self.weight.add(i), left, 0.0);
            let dx = L::load_head(self.dx.add(i), left, 0.0);
            let change = x.mul_add(factor, dy.mul(weight).mul(inverse));
            dx.add(change).store_head(self.dx.add(i), left);
            i += LANES;
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
pub(crate) unsafe fn inverse_root<L: Lanes>(x: *const f32, features: usize, eps: f32) -> f32 {
    let mut squares = L::splat(0.0);
    let mut i = 0;
    while i < features {
        let x = L::load_head(x.add(i), features - i, 0.0);
        squares = x.mul_add(x, squares);
        i += LANES;
    }
    1.0 / (squares.sum() / features as f32 + eps).sqrt()
}

/// The factor on x in the gradient: `-r³ / n · Σ dy w x`, with `r` the inverse root.
#[inline(always)]
pub(crate) unsafe fn correction<L: Lanes>(
    dy: *const f32,
    x: *const f32,
    weight: *const f32,
    (features, inverse): (usize, f32),
) -> f32 {
    let mut products = L::splat(0.0);
    let mut i = 0;
    while i < features {
        let left = features - i;
        let weighted =
            L::load_head(dy.add(i), left, 0.0).mul(L::load_head(weight.add(i), left, 0.0));
        products = weighted.mul_add(L::load_head(x.add(i), left, 0.0), products);
        i += LANES;
    }
    -(inverse * inverse * inverse) * (products.sum() / features as f32)
}
