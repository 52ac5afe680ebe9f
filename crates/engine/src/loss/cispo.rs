//! `−Σ constant(clip(r, low, high)) · logprob · advantage`, r being the ratio; the bounds are absolute.
//!
//! `MiniMax-M1` 2025, equation 4: the clipped ratio only weighs, so that no token loses its gradient.

use super::{
    Loss, Rule, Term, TokenRule,
    policy::{
        ADVANTAGES, CLIPPED_HIGH, CLIPPED_LOW, HIGH, KL, LOGPROBS, LOW, RATIO_MAX, TOKENS,
        advantage, bounds, clipped, counted, crossed, ratio,
    },
};

pub(crate) const CISPO: Loss = Loss {
    name: "cispo",
    inputs: &[LOGPROBS, ADVANTAGES, LOW, HIGH],
    options: &bounds(0.0, 4.0),
    candidates: false,
    problem: crossed,
    rule: Rule::Token(TokenRule {
        surrogate: |logprob, term| coefficient(term) * logprob,
        coefficient,
        metrics: &[TOKENS, RATIO_MAX, KL, CLIPPED_LOW, CLIPPED_HIGH],
    }),
};

fn coefficient(term: &Term<'_>) -> f64 {
    let weight = clipped(ratio(term.logprob, term), term);
    if counted(term) { -weight * advantage(term) } else { 0.0 }
}
