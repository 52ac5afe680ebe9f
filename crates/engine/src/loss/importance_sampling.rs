//! `−Σ exp(logprob − q) · advantage`, with q the logprob under the policy that sampled the token.

use super::{
    Loss, Rule, Term, TokenRule,
    policy::{ADVANTAGES, KL, LOGPROBS, RATIO_MAX, TOKENS, advantage, counted, ratio},
};

pub(crate) const IMPORTANCE_SAMPLING: Loss = Loss {
    name: "importance_sampling",
    inputs: &[LOGPROBS, ADVANTAGES],
    options: &[],
    candidates: false,
    problem: |_| None,
    rule: Rule::Token(TokenRule {
        surrogate: loss,
        // The ratio is its own derivative.
        coefficient: |term| loss(term.logprob, term),
        metrics: &[TOKENS, RATIO_MAX, KL],
    }),
};

fn loss(logprob: f64, term: &Term<'_>) -> f64 {
    if counted(term) { -ratio(logprob, term) * advantage(term) } else { 0.0 }
}
