//! `−Σ weight · logprob`. Weights may be negative: client-side losses send their gradients so.

use super::{Input, Loss, Metric, Reduction, Term};

pub(crate) const CROSS_ENTROPY: Loss = Loss {
    name: "cross_entropy",
    inputs: &[Input { name: "weights", default: Some(1.0) }],
    options: &[],
    candidates: true,
    surrogate: |logprob, term| -weight(term) * logprob,
    coefficient: |term| -weight(term),
    metrics: &[
        Metric {
            name: "tokens:sum",
            reduction: Reduction::Sum,
            value: |term| (weight(term) != 0.0).then_some(1.0),
        },
        Metric { name: "weights:sum", reduction: Reduction::Sum, value: |term| Some(weight(term)) },
    ],
};

fn weight(term: &Term<'_>) -> f64 {
    term.inputs[0]
}
