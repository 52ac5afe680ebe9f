//! The optimizer's step of one adapter site, and the sums that the global gradient clip needs.
//!
//! `AdamW` as Loshchilov & Hutter (2019) give it, in the order in which torch computes it; the formula
//! stands at [`AdamW`], with `bias1 = 1 - beta1^step` and `bias2 = 1 - beta2^step`.

use crate::AdamW;

use super::{Lora, Pair};

pub(super) fn adamw(
    lora: &mut Lora,
    gradient: &Pair,
    first: &mut Pair,
    second: &mut Pair,
    step: &AdamW,
) {
    update(&mut lora.a, &gradient.a, (&mut first.a, &mut second.a), step);
    update(&mut lora.b, &gradient.b, (&mut first.b, &mut second.b), step);
}

fn update(
    parameters: &mut [f64],
    gradient: &[f64],
    (first, second): (&mut [f64], &mut [f64]),
    step: &AdamW,
) {
    let count = i32::try_from(step.step).unwrap_or(i32::MAX);
    let bias1 = 1.0 - step.beta1.powi(count);
    let bias2 = 1.0 - step.beta2.powi(count);
    for (((p, g), m), v) in parameters.iter_mut().zip(gradient).zip(first).zip(second) {
        let g = g * f64::from(step.gradient_scale);
        *p *= 1.0 - step.learning_rate * step.weight_decay;
        *m += (g - *m) * (1.0 - step.beta1);
        *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
        *p -= step.learning_rate / bias1 * *m / (v.sqrt() / bias2.sqrt() + step.eps);
    }
}

pub(super) fn sum_squares(pair: &Pair) -> (f64, f64) {
    let sum = |values: &[f64]| values.iter().map(|value| value * value).sum();
    (sum(&pair.a), sum(&pair.b))
}
