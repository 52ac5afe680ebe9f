//! Softcaps: attention scores and logits that cannot leave `-cap..cap`.

use crate::{
    buffer::Rows,
    lanes::{Kernel, LANES, Lanes, Path},
    math,
    pool::Pool,
};

/// `rows = cap · tanh(rows / cap)`.
pub(crate) fn cap_rows(rows: &mut Rows, cap: f32, (path, pool): (Path, &Pool)) {
    let (count, stride, view) = (rows.rows, rows.stride, rows.view_mut());
    pool.run_rows(count, count * stride * 32, &|part| {
        // SAFETY: the buffer has the rows with their padding; each row is one task's own.
        unsafe {
            path.run(SoftCap { row: view.at(part.start, 0), count: part.len() * stride, cap });
        }
    });
}

struct SoftCap {
    row: *mut f32,
    count: usize,
    cap: f32,
}

impl Kernel for SoftCap {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let cap = L::splat(self.cap);
        let mut i = 0;
        while i < self.count {
            capped(L::load(self.row.add(i)), cap).store(self.row.add(i));
            i += LANES;
        }
    }
}

/// `cap · tanh(x / cap)`.
#[inline(always)]
pub(crate) unsafe fn capped<L: Lanes>(x: L, cap: L) -> L {
    cap.mul(math::tanh(x.div(cap)))
}

/// The slope of [`capped`] where it gave `capped`: `1 - (capped / cap)²`.
#[inline(always)]
pub(crate) unsafe fn slope<L: Lanes>(capped: L, cap: L) -> L {
    let tanh = capped.div(cap);
    L::splat(0.0).sub(tanh).mul_add(tanh, L::splat(1.0))
}

/// [`slope`] of one number.
pub(crate) fn slope_of(capped: f32, cap: f32) -> f32 {
    let tanh = capped / cap;
    (-tanh).mul_add(tanh, 1.0)
}

/// `row[i] = factor * exp(row[i] - minus)`, times the slope of the softcap that gave `row[i]`.
pub(crate) struct SlopedExponentials {
    pub(crate) row: *mut f32,
    pub(crate) count: usize,
    pub(crate) minus: f32,
    pub(crate) factor: f32,
    pub(crate) cap: f32,
}

impl Kernel for SlopedExponentials {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (minus, factor, cap) =
            (L::splat(self.minus), L::splat(self.factor), L::splat(self.cap));
        let mut i = 0;
        while i < self.count {
            let count = self.count - i;
            let x = L::load_head(self.row.add(i), count, 0.0);
            let share = math::exp(x.sub(minus)).mul(factor);
            share.mul(slope(x, cap)).store_head(self.row.add(i), count);
            i += LANES;
        }
    }
}
