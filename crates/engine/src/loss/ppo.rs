//! `−Σ min(r · advantage, clip(r, low, high) · advantage)`, r being the ratio; the bounds are absolute.
//!
//! Schulman et al. 2017, equation 7.

use super::{
    Loss, Rule, Term, TokenRule,
    policy::{
        ADVANTAGES, CLIPPED_HIGH, CLIPPED_LOW, HIGH, KL, LOGPROBS, LOW, RATIO_MAX, TOKENS,
        advantage, bounds, bounds_of, counted, crossed, minimum, ratio, slope,
    },
};

pub(crate) const PPO: Loss = Loss {
    name: "ppo",
    inputs: &[LOGPROBS, ADVANTAGES, LOW, HIGH],
    options: &bounds(0.8, 1.2),
    candidates: false,
    problem: crossed,
    rule: Rule::Token(TokenRule {
        surrogate: loss,
        coefficient,
        metrics: &[TOKENS, RATIO_MAX, KL, CLIPPED_LOW, CLIPPED_HIGH],
    }),
};

fn loss(logprob: f64, term: &Term<'_>) -> f64 {
    if !counted(term) {
        return 0.0;
    }
    minimum(ratio(logprob, term), advantage(term), bounds_of(term))
}

fn coefficient(term: &Term<'_>) -> f64 {
    let ratio = ratio(term.logprob, term);
    // The ratio is its own derivative.
    if counted(term) { slope(ratio, advantage(term), bounds_of(term)) * ratio } else { 0.0 }
}
