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
    assert!(same_shape(&[out, gate, up]), "shapes fit");
    let (rows, stride) = (out.rows, out.stride);
    let (out, gate, up) = (out.view_mut(), gate.view(), up.view());
    cpu.pool.run_rows(rows, rows * stride * COST, &|part| {
        // SAFETY: all three have the rows, with their padding; each row is one task's own.
        unsafe {
            let (out, gate, up) =
                (out.at(part.start, 0), gate.at(part.start, 0), up.at(part.start, 0));
            cpu.path.run(Forward { out, gate, up, count: part.len() * stride, activation });
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
    assert!(same_shape(&[dgate, dup, dout, gate, up]), "shapes fit");
    let (rows, stride) = (dout.rows, dout.stride);
    let work = Backward {
        dgate: dgate.view_mut(),
        dup: dup.view_mut(),
        dout: dout.view(),
        gate: gate.view(),
        up: up.view(),
        row: 0,
        count: 0,
        activation,
    };
    cpu.pool.run_rows(rows, rows * stride * 2 * COST, &|part| {
        // SAFETY: all five have the rows, with their padding; each row is one task's own.
        unsafe { cpu.path.run(Backward { row: part.start, count: part.len() * stride, ..work }) };
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
    activation: Activation,
}

impl Kernel for Forward {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut i = 0;
        while i < self.count {
            let gate = L::load(self.gate.add(i));
            let value = match self.activation {
                Activation::Silu => gate.mul(sigmoid(gate)),
                Activation::GeluTanh => gate.mul(GeluTanh::at(gate).share),
            };
            value.mul(L::load(self.up.add(i))).store(self.out.add(i));
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
    activation: Activation,
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
            let (value, slope) = match self.activation {
                Activation::Silu => {
                    let sigmoid = sigmoid(gate);
                    // d(x s(x))/dx = s (1 + x (1 - s))
                    (gate.mul(sigmoid), sigmoid.mul(gate.mul_add(one.sub(sigmoid), one)))
                }
                Activation::GeluTanh => {
                    let gelu = GeluTanh::at(gate);
                    (gate.mul(gelu.share), gelu.slope())
                }
            };
            dout.mul(value).store(self.dup.at(self.row, i));
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

/// The share of x that gelu lets through: `(1 + tanh u) / 2 = σ(2 u)`, which keeps its digits where tanh
/// is near -1; `u = sqrt(2 / π) (x + 0.044715 x³)`.
struct GeluTanh<L> {
    x: L,
    square: L,
    share: L,
}

impl<L: Lanes> GeluTanh<L> {
    /// `2 sqrt(2 / π)`.
    const ROOT: f32 = 1.595_769_2;
    const CUBIC: f32 = 0.044_715;

    #[inline(always)]
    unsafe fn at(gate: L) -> Self {
        // Beyond, the share is 0 or 1 to the last digit; the slope's large factors must not overflow.
        let lowest = L::splat(-10.0);
        let x = L::splat(10.0).min(lowest.max(gate));
        let (square, root) = (x.mul(x), L::splat(Self::ROOT));
        let factor = square.mul_add(L::splat(Self::CUBIC), L::splat(1.0));
        let share = sigmoid(x.mul(root).mul(factor));
        Self { x, square, share: gate.select_less(lowest, L::splat(0.0), share) }
    }

    /// `d(x σ(2 u))/dx = σ + x σ (1 - σ) d(2 u)/dx`.
    #[inline(always)]
    unsafe fn slope(&self) -> L {
        let one = L::splat(1.0);
        let factor = self.square.mul_add(L::splat(3.0 * Self::CUBIC), one);
        let change = self.x.mul(L::splat(Self::ROOT)).mul(factor);
        self.share.mul(change.mul_add(one.sub(self.share), one))
    }
}
