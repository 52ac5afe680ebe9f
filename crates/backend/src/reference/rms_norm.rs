//! RMS norm (Zhang & Sennrich 2019). Let
//! `r = 1 / sqrt(mean(x²) + eps)`, means taken over features.

use super::{Rows, Vector};

/// `out = x · r · w`.
pub(super) fn forward(out: &mut Rows, x: &Rows, weight: &Vector, eps: f32) {
    assert_eq!(out.len(), x.len(), "as many rows out as in");
    for i in 0..x.len() {
        normalize(out.row_mut(i), x.row(i), &weight.values, eps);
    }
}

/// With `g = dy · w`: `dx += r · (g - x · r² · mean(g · x))`.
pub(super) fn backward(dx: &mut Rows, dy: &Rows, x: &Rows, weight: &Vector, eps: f32) {
    for i in 0..x.len() {
        add_gradient(dx.row_mut(i), dy.row(i), x.row(i), (&weight.values, eps));
    }
}

/// One vector's norm; `rope` uses it on each head.
pub(super) fn normalize(out: &mut [f64], x: &[f64], weight: &[f64], eps: f32) {
    assert_eq!(x.len(), weight.len(), "a weight for each feature");
    let r = inverse_rms(x, eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * r * w;
    }
}

/// One vector's gradient, added to `dx`; `rope` uses it on each head.
pub(super) fn add_gradient(dx: &mut [f64], dy: &[f64], x: &[f64], (weight, eps): (&[f64], f32)) {
    let r = inverse_rms(x, eps);
    let products = dy.iter().zip(weight).zip(x).map(|((dy, w), x)| dy * w * x);
    let mean = products.sum::<f64>() / count(x);
    for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
        *dx += r * (dy * w - x * r * r * mean);
    }
}

fn inverse_rms(x: &[f64], eps: f32) -> f64 {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / count(x);
    1.0 / (mean + f64::from(eps)).sqrt()
}

fn count(x: &[f64]) -> f64 {
    f64::from(u32::try_from(x.len()).expect("features fit 32 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::assert_close;

    #[test]
    fn rms_norm_by_hand() {
        let mut out = Rows::unwritten(1, 2);
        let weight = Vector { values: vec![2.0, 1.0] };
        forward(&mut out, &Rows::new(2, &[3.0, 4.0]), &weight, 0.0);
        let root = 12.5_f64.sqrt();
        assert_close(out.values(), &[6.0 / root, 4.0 / root]);
    }
}
