//! `−Σ weight · logprob`. Weights may be negative: client-side losses send their gradients so.

use super::{Fill, Input, Loss, Metric, Reduction, Rule, Term, TokenRule};

pub(crate) const CROSS_ENTROPY: Loss = Loss {
    name: "cross_entropy",
    inputs: &[Input { name: "weights", fill: Fill::Value(1.0) }],
    options: &[],
    candidates: true,
    problem: |_| None,
    rule: Rule::Token(TokenRule {
        surrogate: |logprob, term| -weight(term) * logprob,
        coefficient: |term| -weight(term),
        metrics: &[
            Metric {
                name: "tokens:sum",
                reduction: Reduction::Sum,
                value: |term| (weight(term) != 0.0).then_some(1.0),
            },
            Metric {
                name: "weights:sum",
                reduction: Reduction::Sum,
                value: |term| Some(weight(term)),
            },
        ],
    }),
};

fn weight(term: &Term<'_>) -> f64 {
    term.inputs[0]
}
