//! `−Σ (logprob · advantage − ½ · beta · (logprob − q)²)`.
//!
//! Richemond et al. 2024. A token with advantage 0 still pays for its distance from the sampler, but one
//! with advantage 0 and q 0 is padding (a prompt's): it would be drawn to probability one.

use super::{
    Constant, Loss, Metric, Reduction, Rule, Term, TokenRule,
    policy::{ADVANTAGES, LOGPROBS, advantage},
};

pub(crate) const DRO: Loss = Loss {
    name: "dro",
    inputs: &[LOGPROBS, ADVANTAGES],
    options: &[Constant { name: "beta", default: 0.05 }],
    candidates: false,
    problem: |term| (beta(term) < 0.0).then(|| format!("beta = {} is below 0", beta(term))),
    rule: Rule::Token(TokenRule {
        surrogate: |logprob, term| {
            let distance = logprob - term.inputs[0];
            let penalty = 0.5 * beta(term) * distance * distance;
            if padding(term) { 0.0 } else { penalty - logprob * advantage(term) }
        },
        coefficient: |term| {
            let distance = term.logprob - term.inputs[0];
            if padding(term) { 0.0 } else { beta(term) * distance - advantage(term) }
        },
        metrics: &[
            Metric {
                name: "tokens:sum",
                reduction: Reduction::Sum,
                value: |term| (!padding(term)).then_some(1.0),
            },
            Metric {
                name: "kl_sampler_learner:sum",
                reduction: Reduction::Sum,
                value: |term| (!padding(term)).then(|| term.inputs[0] - term.logprob),
            },
            Metric {
                name: "squared_distance:sum",
                reduction: Reduction::Sum,
                value: |term| {
                    let distance = term.logprob - term.inputs[0];
                    (!padding(term)).then_some(distance * distance)
                },
            },
        ],
    }),
};

fn beta(term: &Term<'_>) -> f64 {
    term.options[0]
}

fn padding(term: &Term<'_>) -> bool {
    advantage(term) == 0.0 && term.inputs[0] == 0.0
}
