//! Logprobs of given tokens, and their gradient.
//!
//! Let `l = linear(x[i])`, or `s · tanh(linear(x[i]) / s)` under a softcap s; `lse = log Σ exp(l)`, t the
//! candidates and c their coefficients.

use crate::{Coefficients, Linear, LoraGradientUse, LoraUse, Targets, Unembedding};

use super::{Lora, Pair, ReferenceBackend, Rows, attention::log_sum_exp, buffer, linear};

/// `logprobs[i, j] = l[t[i, j]] - lse`, as `[rows * per_row]`.
pub(super) fn forward(
    x: &Rows,
    unembedding: Unembedding<'_, ReferenceBackend>,
    uses: &[LoraUse<'_, Lora>],
    targets: Targets<'_>,
) -> Vec<f64> {
    let (mut logprobs, _) = logits(x, unembedding, uses);
    for i in 0..x.len() {
        log_softmax(logprobs.row_mut(i));
    }
    let row_targets = |i| &targets.ids[i * targets.per_row..][..targets.per_row];
    let row_logprobs = |i| {
        let row = logprobs.row(i);
        row_targets(i).iter().map(|&target| row[target as usize])
    };
    (0..x.len()).flat_map(row_logprobs).collect()
}

/// `dl = Σ_j c[i, j] (onehot(t[i, j]) - exp(l - lse))`, times `1 - (l / s)²` under a softcap, then through
/// `linear`.
pub(super) fn backward(
    mut dx: Option<&mut Rows>,
    x: &Rows,
    unembedding: Unembedding<'_, ReferenceBackend>,
    uses: &mut [LoraGradientUse<'_, Lora, Pair>],
    targets: Targets<'_>,
    coefficients: &mut Coefficients<'_>,
) {
    let forward_uses: Vec<_> = uses
        .iter()
        .map(|u| LoraUse { rows: u.rows.clone(), lora: u.lora, scale: u.scale })
        .collect();
    let (mut dlogits, hidden) = logits(x, unembedding, &forward_uses);
    for i in 0..x.len() {
        let slopes = slopes(dlogits.row(i), unembedding.softcap);
        log_softmax(dlogits.row_mut(i));
        let ids = &targets.ids[i * targets.per_row..][..targets.per_row];
        let logprobs: Vec<f64> = ids.iter().map(|&id| dlogits.row(i)[id as usize]).collect();
        let mut row_coefficients = vec![0.0; ids.len()];
        coefficients(i..i + 1, &buffer::to_f32(&logprobs), &mut row_coefficients);
        differentiate(dlogits.row_mut(i), ids, &row_coefficients);
        for (value, slope) in dlogits.row_mut(i).iter_mut().zip(slopes) {
            *value *= slope;
        }
    }
    if let Some(dx) = dx.as_deref_mut() {
        dx.values_mut().fill(0.0);
    }
    linear::backward(dx, &dlogits, x, unembedding.weight, &hidden, uses);
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

/// `d(s · tanh(l / s)) / dl` of one row, from what the softcap gave.
fn slopes(capped: &[f64], softcap: Option<f32>) -> Vec<f64> {
    let slope = |capped: &f64| softcap.map_or(1.0, |c| 1.0 - (capped / f64::from(c)).powi(2));
    capped.iter().map(slope).collect()
}

/// Turns one row of logits into logprobs.
fn log_softmax(row: &mut [f64]) {
    let lse = log_sum_exp(row);
    for value in row {
        *value -= lse;
    }
}

/// `l`, `[rows, vocabulary]`, and the adapters' `x Aᵀ`.
pub(super) fn logits(
    x: &Rows,
    unembedding: Unembedding<'_, ReferenceBackend>,
    uses: &[LoraUse<'_, Lora>],
) -> (Rows, Rows) {
    let Unembedding { weight, softcap } = unembedding;
    let mut logits = Rows::unwritten(x.len(), weight.outputs);
    let mut hidden = Rows::unwritten(0, 0);
    let linear = Linear { weight, bias: None, uses, add: false };
    linear::forward(&mut logits, x, &linear, Some(&mut hidden));
    for logit in logits.values_mut() {
        *logit = soft_capped(*logit, softcap);
    }
    (logits, hidden)
}

/// `c · tanh(x / c)` if there is a cap c; attention caps its scores so, too.
pub(super) fn soft_capped(x: f64, softcap: Option<f32>) -> f64 {
    softcap.map(f64::from).map_or(x, |c| c * (x / c).tanh())
}
