//! Logprobs of given tokens, and their gradient.
//!
//! Let `l = linear(x[i])`, `lse = log Σ exp(l)`, t the candidates and c their coefficients.

use crate::{Coefficients, Linear, LoraGradientUse, LoraUse, Targets};

use super::{Lora, Pair, ReferenceBackend, Rows, Weight, attention::log_sum_exp, buffer, linear};

/// `logprobs[i, j] = l[t[i, j]] - lse`, as `[rows * per_row]`.
pub(super) fn forward(
    x: &Rows,
    linear: &Linear<'_, ReferenceBackend>,
    targets: Targets<'_>,
) -> Vec<f64> {
    let (logprobs, _) = log_softmax(x, linear);
    let row_targets = |i| &targets.ids[i * targets.per_row..][..targets.per_row];
    let row_logprobs = |i| {
        let row = logprobs.row(i);
        row_targets(i).iter().map(|&target| row[target as usize])
    };
    (0..x.len()).flat_map(row_logprobs).collect()
}

/// `dl = Σ_j c[i, j] (onehot(t[i, j]) - exp(l - lse))`, then through `linear`.
pub(super) fn backward(
    mut dx: Option<&mut Rows>,
    x: &Rows,
    weight: &Weight,
    uses: &mut [LoraGradientUse<'_, Lora, Pair>],
    targets: Targets<'_>,
    coefficients: &mut Coefficients<'_>,
) {
    let forward_uses: Vec<_> = uses
        .iter()
        .map(|u| LoraUse { rows: u.rows.clone(), lora: u.lora, scale: u.scale })
        .collect();
    let linear = Linear { weight, bias: None, uses: &forward_uses, add: false };
    let (mut dlogits, hidden) = log_softmax(x, &linear);
    for i in 0..x.len() {
        let ids = &targets.ids[i * targets.per_row..][..targets.per_row];
        let logprobs: Vec<f64> = ids.iter().map(|&id| dlogits.row(i)[id as usize]).collect();
        let mut row_coefficients = vec![0.0; ids.len()];
        coefficients(i..i + 1, &buffer::to_f32(&logprobs), &mut row_coefficients);
        differentiate(dlogits.row_mut(i), ids, &row_coefficients);
    }
    if let Some(dx) = dx.as_deref_mut() {
        dx.values_mut().fill(0.0);
    }
    linear::backward(dx, &dlogits, x, weight, &hidden, uses);
}

/// Turns one row of logprobs into its `dlogits`.
fn differentiate(row: &mut [f64], ids: &[u32], coefficients: &[f32]) {
    let sum: f64 = coefficients.iter().copied().map(f64::from).sum();
    for value in &mut *row {
        *value = -sum * value.exp();
    }
    for (&id, &coefficient) in ids.iter().zip(coefficients) {
        row[id as usize] += f64::from(coefficient);
    }
}

/// `log_softmax(linear(x))`, `[rows, vocabulary]`, and the adapters' `x Aᵀ`.
fn log_softmax(x: &Rows, linear: &Linear<'_, ReferenceBackend>) -> (Rows, Rows) {
    let (mut logits, hidden) = logits(x, linear);
    for i in 0..logits.len() {
        let lse = log_sum_exp(logits.row(i));
        for value in logits.row_mut(i) {
            *value -= lse;
        }
    }
    (logits, hidden)
}

/// `linear(x)`, `[rows, vocabulary]`, and the adapters' `x Aᵀ`.
pub(super) fn logits(x: &Rows, linear: &Linear<'_, ReferenceBackend>) -> (Rows, Rows) {
    assert!(!linear.add, "logits have nothing to add to");
    let mut logits = Rows::unwritten(x.len(), linear.weight.outputs);
    let mut hidden = Rows::unwritten(0, 0);
    linear::forward(&mut logits, x, linear, Some(&mut hidden));
    (logits, hidden)
}
