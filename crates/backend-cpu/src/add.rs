//! Adding activations. Nothing is summed over rows or features.

use crate::{
    CpuBackend,
    buffer::Rows,
    lanes::{Kernel, LANES, Lanes},
};

pub(crate) fn add(cpu: &CpuBackend, out: &mut Rows, x: &Rows) {
    assert!((out.rows, out.features) == (x.rows, x.features), "shapes fit");
    let (rows, stride) = (out.rows, out.stride);
    let (out, x) = (out.view_mut(), x.view());
    cpu.pool.run_rows(rows, rows * stride * COST, &|part| {
        // SAFETY: both have the rows, with their padding; each row is one task's own.
        unsafe {
            let (out, x) = (out.at(part.start, 0), x.at(part.start, 0));
            cpu.path.run(Add { out, x, count: part.len() * stride });
        }
    });
}

/// Multiply-adds that one element is about worth.
const COST: usize = 4;

struct Add {
    out: *mut f32,
    x: *const f32,
    count: usize,
}

impl Kernel for Add {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut i = 0;
        while i < self.count {
            L::load(self.out.add(i)).add(L::load(self.x.add(i))).store(self.out.add(i));
            i += LANES;
        }
    }
}
