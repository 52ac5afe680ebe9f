//! The gated MLP's activation, and its gradient. Nothing is summed.

use tinsmith_backend::Activation;

use crate::{
    CpuBackend,
    buffer::{Rows, View, ViewMut},
    lanes::{Kernel, LANES, Lanes},
    math,
};

pub(crate) fn gated(
    cpu: &CpuBackend,
    out: &mut Rows,
    (gate, up): (&Rows, &Rows),
    activation: Activation,
) {
    let Activation::Silu = activation;
    assert!(same_shape(&[out, gate, up]), "shapes fit");
    let (rows, stride) = (out.rows, out.stride);
    let (out, gate, up) = (out.view_mut(), gate.view(), up.view());
    cpu.pool.run_sized(rows, rows * stride * COST, &|row| {
        // SAFETY: all three have the row, with its padding; each row is one task's own.
        unsafe {
            let (out, gate, up) = (out.at(row, 0), gate.at(row, 0), up.at(row, 0));
            cpu.path.run(Forward { out, gate, up, count: stride });
        }
    });
}

pub(crate) fn gated_backward(
    cpu: &CpuBackend,
    (dgate, dup): (&mut Rows, &mut Rows),
    dout: &Rows,
    (gate, up): (&Rows, &Rows),
    activation: Activation,
) {
    let Activation::Silu = activation;
    assert!(same_shape(&[dgate, dup, dout, gate, up]), "shapes fit");
    let (rows, stride) = (dout.rows, dout.stride);
    let work = Backward {
        dgate: dgate.view_mut(),
        dup: dup.view_mut(),
        dout: dout.view(),
        gate: gate.view(),
        up: up.view(),
        row: 0,
        count: stride,
    };
    cpu.pool.run_sized(rows, rows * stride * 2 * COST, &|row| {
        // SAFETY: all five have the row, with its padding; each row is one task's own.
        unsafe { cpu.path.run(Backward { row, ..work }) };
    });
}

/// Multiply-adds that one element is about worth.
const COST: usize = 16;

fn same_shape(rows: &[&Rows]) -> bool {
    rows.iter().all(|r| (r.rows, r.features) == (rows[0].rows, rows[0].features))
}

struct Forward {
    out: *mut f32,
    gate: *const f32,
    up: *const f32,
    count: usize,
}

impl Kernel for Forward {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut i = 0;
        while i < self.count {
            let gate = L::load(self.gate.add(i));
            let silu = gate.mul(sigmoid(gate));
            silu.mul(L::load(self.up.add(i))).store(self.out.add(i));
            i += LANES;
        }
    }
}

#[derive(Clone, Copy)]
struct Backward {
    dgate: ViewMut,
    dup: ViewMut,
    dout: View,
    gate: View,
    up: View,
    row: usize,
    count: usize,
}

impl Kernel for Backward {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let one = L::splat(1.0);
        let mut i = 0;
        while i < self.count {
            let gate = L::load(self.gate.at(self.row, i));
            let up = L::load(self.up.at(self.row, i));
            let dout = L::load(self.dout.at(self.row, i));
            let sigmoid = sigmoid(gate);
            dout.mul(gate.mul(sigmoid)).store(self.dup.at(self.row, i));
            // d(x s(x))/dx = s (1 + x (1 - s))
            let slope = sigmoid.mul(gate.mul_add(one.sub(sigmoid), one));
            dout.mul(up).mul(slope).store(self.dgate.at(self.row, i));
            i += LANES;
        }
    }
}

#[inline(always)]
unsafe fn sigmoid<L: Lanes>(x: L) -> L {
    let one = L::splat(1.0);
    one.div(one.add(math::exp(L::splat(0.0).sub(x))))
}
