//! `−Σ exp(logprob − q) · advantage`, with q the logprob under the policy that sampled the token.

use super::{Input, Loss, Metric, Reduction, Term};

pub(crate) const IMPORTANCE_SAMPLING: Loss = Loss {
    name: "importance_sampling",
    inputs: &[
        Input { name: "logprobs", default: None },
        Input { name: "advantages", default: None },
    ],
    options: &[],
    candidates: false,
    surrogate: loss,
    // The ratio is its own derivative.
    coefficient: |term| loss(term.logprob, term),
    metrics: &[
        Metric {
            name: "tokens:sum",
            reduction: Reduction::Sum,
            value: |term| counted(term).map(|_| 1.0),
        },
        Metric {
            name: "ratio:max",
            reduction: Reduction::Max,
            value: |term| counted(term).map(f64::exp),
        },
        // E[q − p] over sampled tokens estimates KL(sampler ‖ learner).
        Metric {
            name: "kl_sampler_learner:sum",
            reduction: Reduction::Sum,
            value: |term| counted(term).map(|log_ratio| -log_ratio),
        },
    ],
};

fn loss(logprob: f64, term: &Term<'_>) -> f64 {
    let [q, advantage] = [term.inputs[0], term.inputs[1]];
    // The logprob of a token that was not sampled means nothing.
    if advantage == 0.0 { 0.0 } else { -(logprob - q).exp() * advantage }
}

/// The log of the ratio, for tokens that the loss looks at.
fn counted(term: &Term<'_>) -> Option<f64> {
    (term.inputs[1] != 0.0).then_some(term.logprob - term.inputs[0])
}
