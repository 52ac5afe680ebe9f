//! `−Σ min(s · advantage, clip(s, low, high) · advantage)`, s being the ratio of the sequence; the bounds are
//! absolute.
//!
//! Zheng et al. 2025 (arXiv 2507.18071), equations 5 and 7: s is the geometric mean of the tokens' ratios. It
//! is differentiated through s, so that every token of the sequence has the same share of the gradient.

use super::{
    DatumRule, Evaluation, Fill, Input, Loss, Rule, Term, Terms,
    exp::exp,
    policy::{
        ADVANTAGES, HIGH, LOGPROBS, LOW, advantage, bounds, bounds_of, counted, crossed, minimum,
        slope,
    },
};

/// How much a token counts in the sequence's ratio; where it is not given, 1 for tokens with an advantage.
const MASK: &str = "sequence_ratio_mask";

pub(crate) const GSPO: Loss = Loss {
    name: "gspo",
    inputs: &[
        LOGPROBS,
        ADVANTAGES,
        LOW,
        HIGH,
        // NaN stands for a mask that was not given.
        Input { name: MASK, fill: Fill::Value(f64::NAN) },
    ],
    // Section 5.1 of the paper.
    options: &bounds(1.0 - 3e-4, 1.0 + 4e-4),
    candidates: false,
    problem: |term| {
        let negative = term.inputs[4] < 0.0;
        let negative = negative.then(|| format!("{MASK} = {} is below 0", term.inputs[4]));
        crossed(term).or(negative)
    },
    rule: Rule::Datum(DatumRule { problem, evaluate }),
};

/// A mask that leaves nothing to compute the ratio from.
fn problem(terms: &Terms<'_>) -> Option<String> {
    let empty = mask_sum(terms) == 0.0 && terms.iter().any(|term| counted(&term));
    empty.then(|| format!("{MASK} is 0 everywhere, and there are advantages"))
}

fn evaluate(terms: &Terms<'_>, coefficients: &mut [f64]) -> Evaluation {
    let weight = mask_sum(terms);
    let mut log_ratio = 0.0;
    for term in terms.iter() {
        // What the mask leaves out may have any q.
        let mask = mask(&term);
        if mask > 0.0 {
            log_ratio += mask * (term.logprob - term.inputs[0]);
        }
    }
    let log_ratio = if weight > 0.0 { log_ratio / weight } else { 0.0 };
    let ratio = exp(log_ratio);
    let (mut loss, mut gradient) = (0.0, 0.0);
    let [mut tokens, mut low_tokens, mut high_tokens] = [0.0; 3];
    for term in terms.iter().filter(counted) {
        let bounds = bounds_of(&term);
        loss += minimum(ratio, advantage(&term), bounds);
        gradient += slope(ratio, advantage(&term), bounds);
        tokens += 1.0;
        low_tokens += f64::from(u8::from(ratio < bounds[0]));
        high_tokens += f64::from(u8::from(ratio > bounds[1]));
    }
    if weight > 0.0 {
        for (coefficient, term) in coefficients.iter_mut().zip(terms.iter()) {
            *coefficient = gradient * ratio * (mask(&term) / weight);
        }
    }
    let metrics = [
        ("tokens:sum", tokens),
        ("ratio:max", if tokens > 0.0 { ratio } else { 0.0 }),
        ("kl_sampler_learner:sum", kl(terms)),
        ("clipped_low_tokens:sum", low_tokens),
        ("clipped_high_tokens:sum", high_tokens),
    ];
    let metrics = metrics.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Evaluation { loss, metrics }
}

fn mask(term: &Term<'_>) -> f64 {
    let given = term.inputs[4];
    if given.is_nan() { f64::from(u8::from(counted(term))) } else { given }
}

fn mask_sum(terms: &Terms<'_>) -> f64 {
    terms.iter().map(|term| mask(&term)).sum()
}

/// Σ q − p over the tokens that count in the ratio.
fn kl(terms: &Terms<'_>) -> f64 {
    let masked = terms.iter().filter(|term| mask(term) > 0.0);
    masked.map(|term| term.inputs[0] - term.logprob).sum()
}
