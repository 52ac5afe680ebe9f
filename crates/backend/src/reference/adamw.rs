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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::assert_close;

    #[test]
    fn adamw_by_hand() {
        let mut lora = Lora { rank: 1, a: vec![1.0], b: vec![-2.0] };
        let gradient = Pair { a: vec![5.0], b: vec![0.0] };
        let zeros = Pair { a: vec![0.0], b: vec![0.0] };
        let (mut first, mut second) = (zeros.clone(), zeros);
        let mut step = AdamW {
            learning_rate: 0.1,
            beta1: 0.5,
            beta2: 0.75,
            eps: 0.5,
            weight_decay: 1.0,
            step: 1,
            gradient_scale: 0.1,
        };
        adamw(&mut lora, &gradient, &mut first, &mut second, &step);
        // The bias corrections undo the decay on the first step: 0.5 / (0.5 + eps).
        let g = 5.0 * f64::from(0.1_f32);
        let once = 0.9 - 0.1 * g / (g + 0.5);
        assert_close(&lora.a, &[once]);
        assert_close(&lora.b, &[-1.8]);
        step.step = 2;
        adamw(&mut lora, &gradient, &mut first, &mut second, &step);
        assert_close(&first.a, &[0.75 * g]);
        assert_close(&second.a, &[0.4375 * g * g]);
        assert_close(&lora.a, &[0.9 * once - 0.1 * g / (g + 0.5)]);
    }
}
