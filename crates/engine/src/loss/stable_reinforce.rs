//! `−Σ constant(w) · (logprob · advantage − ½ · kl_coeff · (logprob − q)²)` over the tokens that were sampled,
//! with w = min(r, high), r being the ratio to the recorded logprob q.
//!
//! Ours: none is published. REINFORCE whose importance weights are truncated (Ionides 2008); with them, the
//! second part is an estimate of the gradient of KL(learner ‖ sampler) from the sampler's tokens.

use super::{
    Constant, Fill, Input, Loss, Metric, Reduction, Rule, Term, TokenRule,
    policy::{ADVANTAGES, LOGPROBS, advantage, ratio},
};

pub(crate) const STABLE_REINFORCE: Loss = Loss {
    name: "stable_reinforce",
    // 1 for tokens that were sampled: the other ones have no q.
    inputs: &[LOGPROBS, ADVANTAGES, Input { name: "sampled", fill: Fill::Required }],
    options: &[
        Constant { name: "kl_coeff", default: 0.0 },
        Constant { name: "clip_high_threshold", default: 2.0 },
    ],
    candidates: false,
    problem: |term| {
        let named = [("kl_coeff", kl_coeff(term)), ("clip_high_threshold", high(term))];
        let below = named.into_iter().find(|(_, value)| *value < 0.0);
        below.map(|(name, value)| format!("{name} = {value} is below 0"))
    },
    rule: Rule::Token(TokenRule {
        surrogate: |logprob, term| {
            let distance = logprob - term.inputs[0];
            let penalty = 0.5 * kl_coeff(term) * distance * distance;
            if sampled(term) { weight(term) * (penalty - logprob * advantage(term)) } else { 0.0 }
        },
        coefficient: |term| {
            let penalty = kl_coeff(term) * (term.logprob - term.inputs[0]);
            if sampled(term) { weight(term) * (penalty - advantage(term)) } else { 0.0 }
        },
        metrics: &[
            Metric {
                name: "tokens:sum",
                reduction: Reduction::Sum,
                value: |term| sampled(term).then_some(1.0),
            },
            Metric {
                name: "ratio:max",
                reduction: Reduction::Max,
                value: |term| sampled(term).then(|| ratio(term.logprob, term)),
            },
            Metric {
                name: "kl_sampler_learner:sum",
                reduction: Reduction::Sum,
                value: |term| sampled(term).then(|| term.inputs[0] - term.logprob),
            },
            Metric {
                name: "clipped_high_tokens:sum",
                reduction: Reduction::Sum,
                value: |term| {
                    (sampled(term) && ratio(term.logprob, term) > high(term)).then_some(1.0)
                },
            },
        ],
    }),
};

fn kl_coeff(term: &Term<'_>) -> f64 {
    term.options[0]
}

fn high(term: &Term<'_>) -> f64 {
    term.options[1]
}

fn sampled(term: &Term<'_>) -> bool {
    term.inputs[2] != 0.0
}

fn weight(term: &Term<'_>) -> f64 {
    ratio(term.logprob, term).min(high(term))
}
