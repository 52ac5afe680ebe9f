//! The gate of a gated MLP (Shazeer 2020). Elementwise, with f the activation.

use crate::Activation;

use super::Rows;

/// `out = f(gate) · up`.
pub(super) fn forward(out: &mut Rows, gate: &Rows, up: &Rows, activation: Activation) {
    assert_eq!(out.values().len(), gate.values().len(), "as much out as in");
    assert_eq!(up.values().len(), gate.values().len(), "gate and up have one shape");
    for (i, out) in out.values_mut().iter_mut().enumerate() {
        let (f, _) = value_and_slope(gate.values()[i], activation);
        *out = f * up.values()[i];
    }
}

/// `dgate = dout · up · f'(gate)`, `dup = dout · f(gate)`.
pub(super) fn backward(
    dgate: &mut Rows,
    dup: &mut Rows,
    dout: &Rows,
    gate: &Rows,
    up: &Rows,
    activation: Activation,
) {
    for (i, &dout) in dout.values().iter().enumerate() {
        let (f, slope) = value_and_slope(gate.values()[i], activation);
        dgate.values_mut()[i] = dout * up.values()[i] * slope;
        dup.values_mut()[i] = dout * f;
    }
}

/// `f(x)` and `f'(x)`. Silu: `x σ(x)` and `σ(x) (1 + x (1 - σ(x)))` with `σ(x) = 1 / (1 + exp(-x))`.
///
/// Gelu (Hendrycks & Gimpel 2016, with tanh): `x (1 + t) / 2` with `t = tanh(u)`,
/// `u = sqrt(2 / π) (x + 0.044715 x³)`, and `(1 + t) / 2 + x (1 - t²) / 2 · u'`.
fn value_and_slope(x: f64, activation: Activation) -> (f64, f64) {
    match activation {
        Activation::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
        }
        Activation::GeluTanh => {
            // `(1 + tanh u) / 2 = σ(2 u)`, which keeps its digits where tanh is near -1.
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let share = 1.0 / (1.0 + (-2.0 * root * (x + 0.044_715 * x * x * x)).exp());
            let slope = root * (1.0 + 3.0 * 0.044_715 * x * x);
            (x * share, share + x * 2.0 * share * (1.0 - share) * slope)
        }
    }
}
