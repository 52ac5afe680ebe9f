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
    pool.run_sized(count, count * stride * 32, &|row| {
        // SAFETY: the buffer has the row with its padding; each row is one task's own.
        unsafe { path.run(SoftCap { row: view.at(row, 0), count: stride, cap }) };
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

/// `to[i]` becomes the softcap's slope where it gave `from[i]`.
pub(crate) struct Slopes {
    pub(crate) from: *const f32,
    pub(crate) to: *mut f32,
    pub(crate) count: usize,
    pub(crate) cap: f32,
}

impl Kernel for Slopes {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let cap = L::splat(self.cap);
        let mut i = 0;
        while i < self.count {
            let capped = L::load_head(self.from.add(i), self.count - i, 0.0);
            slope(capped, cap).store_head(self.to.add(i), self.count - i);
            i += LANES;
        }
    }
}

/// `row[i] *= by[i]`.
pub(crate) struct Scale {
    pub(crate) row: *mut f32,
    pub(crate) by: *const f32,
    pub(crate) count: usize,
}

impl Kernel for Scale {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut i = 0;
        while i < self.count {
            let by = L::load_head(self.by.add(i), self.count - i, 0.0);
            let row = L::load_head(self.row.add(i), self.count - i, 0.0);
            row.mul(by).store_head(self.row.add(i), self.count - i);
            i += LANES;
        }
    }
}
