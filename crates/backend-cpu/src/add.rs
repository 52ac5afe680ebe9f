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
    cpu.pool.run_sized(rows, rows * stride, &|row| {
        // SAFETY: both have the row, with its padding; each row is one task's own.
        unsafe { cpu.path.run(Add { out: out.at(row, 0), x: x.at(row, 0), count: stride }) };
    });
}

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
