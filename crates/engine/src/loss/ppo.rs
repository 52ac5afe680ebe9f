//! `−Σ min(r · advantage, clip(r, low, high) · advantage)`, r being the ratio; the bounds are absolute.
//!
//! Schulman et al. 2017, equation 7. At a bound itself the gradient is PyTorch's (2.15): the minimum divides
//! it between its two equal sides, and `torch.clamp` lets nothing through there, so that half of it remains.

use super::{
    Loss, Term,
    policy::{
        ADVANTAGES, CLIPPED_HIGH, CLIPPED_LOW, HIGH, KL, LOGPROBS, LOW, RATIO_MAX, TOKENS,
        advantage, bounds, clipped, counted, crossed, ratio,
    },
};

pub(crate) const PPO: Loss = Loss {
    name: "ppo",
    inputs: &[LOGPROBS, ADVANTAGES, LOW, HIGH],
    options: &bounds(0.8, 1.2),
    candidates: false,
    problem: crossed,
    surrogate: loss,
    coefficient,
    metrics: &[TOKENS, RATIO_MAX, KL, CLIPPED_LOW, CLIPPED_HIGH],
};

fn loss(logprob: f64, term: &Term<'_>) -> f64 {
    if !counted(term) {
        return 0.0;
    }
    let (ratio, advantage) = (ratio(logprob, term), advantage(term));
    -(ratio * advantage).min(clipped(ratio, term) * advantage)
}

fn coefficient(term: &Term<'_>) -> f64 {
    let (ratio, advantage) = (ratio(term.logprob, term), advantage(term));
    let [low, high] = [term.inputs[2], term.inputs[3]];
    // The minimum is constant where the ratio has gone far enough in the direction that pays.
    let constant = if advantage > 0.0 { ratio > high } else { ratio < low };
    if constant || !counted(term) {
        return 0.0;
    }
    let share = if ratio == low || ratio == high { 0.5 } else { 1.0 };
    -share * ratio * advantage
}
