//! `AdamW`, with the gradient clipped by its norm over the whole adapter.

use std::collections::BTreeMap;

use tinsmith_backend::{AdamW, Backend};
use tinsmith_model::lora::{Adapter, Moments, PairSet};

use crate::{AdamParams, Error, Result};

/// Added to the norm in the clip's divisor, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// One step of the adapter on `gradient`, given the sum of its squares; it is zero afterwards. Gives the metrics.
pub(crate) fn step<B: Backend>(
    b: &mut B,
    adapter: &mut Adapter<B>,
    (gradient, sum_squares): (&mut PairSet<B>, f64),
    moments: &mut Moments<B>,
    params: &AdamParams,
) -> BTreeMap<String, f64> {
    let norm = sum_squares.sqrt();
    moments.step += 1;
    let step = AdamW {
        learning_rate: params.learning_rate,
        beta1: params.beta1,
        beta2: params.beta2,
        eps: params.eps,
        weight_decay: params.weight_decay,
        step: moments.step,
        gradient_scale: clip_scale(norm, params.grad_clip_norm),
    };
    adapter.adamw(b, gradient, moments, &step);
    gradient.zero(b);
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2⁵³")]
    let steps = moments.step as f64;
    BTreeMap::from([("grad_norm:max".to_owned(), norm), ("optim_steps:max".to_owned(), steps)])
}

/// Factor that brings a gradient of norm `norm` down to `norm_max`; 1 if that is not needed or not asked for.
#[expect(clippy::cast_possible_truncation, reason = "torch multiplies f32 gradients by it too")]
fn clip_scale(norm: f64, norm_max: f64) -> f32 {
    if norm_max > 0.0 { (norm_max / (norm + CLIP_EPS)).min(1.0) as f32 } else { 1.0 }
}

/// Refuses parameters that no step can be made with.
pub(crate) fn check(params: &AdamParams) -> Result<()> {
    let AdamParams { learning_rate, beta1, beta2, eps, weight_decay, grad_clip_norm } = *params;
    let rules = [
        ("learning_rate", learning_rate, learning_rate >= 0.0, "at least 0"),
        ("beta1", beta1, (0.0..1.0).contains(&beta1), "in [0, 1)"),
        ("beta2", beta2, (0.0..1.0).contains(&beta2), "in [0, 1)"),
        ("eps", eps, eps >= 0.0, "at least 0"),
        ("weight_decay", weight_decay, weight_decay >= 0.0, "at least 0"),
        ("grad_clip_norm", grad_clip_norm, true, "a number"),
    ];
    for (name, value, holds, rule) in rules {
        if !value.is_finite() || !holds {
            return Err(Error::user(format!("adam_params: {name} = {value} must be {rule}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clip_only_shrinks() {
        assert_eq!(clip_scale(5.0, 0.0), 1.0);
        assert_eq!(clip_scale(5.0, -1.0), 1.0);
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(0.0, 1.0), 1.0);
        assert!((clip_scale(4.0, 1.0) - 0.25).abs() < 1e-6);
    }

    #[test]
    fn parameters_name_what_is_wrong() {
        let good = AdamParams {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-12,
            weight_decay: 0.0,
            grad_clip_norm: 0.0,
        };
        assert!(check(&good).is_ok());
        let message = check(&AdamParams { beta2: 1.0, ..good }).unwrap_err().to_string();
        assert_eq!(message, "adam_params: beta2 = 1 must be in [0, 1)");
        let message =
            check(&AdamParams { learning_rate: f64::NAN, ..good }).unwrap_err().to_string();
        assert_eq!(message, "adam_params: learning_rate = NaN must be at least 0");
    }
}
