//! What the losses on sampled tokens have in common: their inputs, the ratio, its bounds, their metrics.
//!
//! The ratio is `exp(logprob − q)`, q being the token's logprob under the policy that sampled it.

use super::{Constant, Fill, Input, Metric, Reduction, Term, exp::exp};

/// First of the inputs: q.
pub(super) const LOGPROBS: Input = Input { name: "logprobs", fill: Fill::Required };
/// Second of the inputs. Zero marks a token that was not sampled: its q means nothing.
pub(super) const ADVANTAGES: Input = Input { name: "advantages", fill: Fill::Required };
/// Third and fourth of the inputs: a token's own bounds, in place of the constants of the same names.
pub(super) const LOW: Input = Input { name: "clip_low_threshold", fill: Fill::Constant(0) };
/// See [`LOW`].
pub(super) const HIGH: Input = Input { name: "clip_high_threshold", fill: Fill::Constant(1) };

/// The bounds of the ratio as constants; they are absolute, so that 1 lies between them as a rule.
pub(super) const fn bounds(low: f64, high: f64) -> [Constant; 2] {
    [Constant { name: LOW.name, default: low }, Constant { name: HIGH.name, default: high }]
}

/// Tokens that count.
pub(super) const TOKENS: Metric = Metric {
    name: "tokens:sum",
    reduction: Reduction::Sum,
    value: |term| counted(term).then_some(1.0),
};
/// The greatest ratio.
pub(super) const RATIO_MAX: Metric = Metric {
    name: "ratio:max",
    reduction: Reduction::Max,
    value: |term| counted(term).then(|| ratio(term.logprob, term)),
};
/// E[q − p] over sampled tokens estimates KL(sampler ‖ learner).
pub(super) const KL: Metric = Metric {
    name: "kl_sampler_learner:sum",
    reduction: Reduction::Sum,
    value: |term| counted(term).then(|| term.inputs[0] - term.logprob),
};
/// Tokens whose ratio is below its lower bound.
pub(super) const CLIPPED_LOW: Metric = Metric {
    name: "clipped_low_tokens:sum",
    reduction: Reduction::Sum,
    value: |term| (counted(term) && ratio(term.logprob, term) < term.inputs[2]).then_some(1.0),
};
/// Tokens whose ratio is above its upper bound.
pub(super) const CLIPPED_HIGH: Metric = Metric {
    name: "clipped_high_tokens:sum",
    reduction: Reduction::Sum,
    value: |term| (counted(term) && ratio(term.logprob, term) > term.inputs[3]).then_some(1.0),
};

pub(super) fn advantage(term: &Term<'_>) -> f64 {
    term.inputs[1]
}

/// Whether a loss looks at the token at all.
pub(super) fn counted(term: &Term<'_>) -> bool {
    advantage(term) != 0.0
}

pub(super) fn ratio(logprob: f64, term: &Term<'_>) -> f64 {
    exp(logprob - term.inputs[0])
}

/// The ratio within the token's bounds.
pub(super) fn clipped(ratio: f64, term: &Term<'_>) -> f64 {
    clip(ratio, bounds_of(term))
}

/// The token's own bounds of the ratio: low, high.
pub(super) fn bounds_of(term: &Term<'_>) -> [f64; 2] {
    [term.inputs[2], term.inputs[3]]
}

/// `−min(ratio · advantage, clip(ratio, low, high) · advantage)`.
pub(super) fn minimum(ratio: f64, advantage: f64, bounds: [f64; 2]) -> f64 {
    -(ratio * advantage).min(clip(ratio, bounds) * advantage)
}

/// The derivative of [`minimum`] with respect to the ratio.
///
/// At a bound itself it is `PyTorch`'s (2.15): the minimum divides it between its two equal sides, and
/// `torch.clamp` lets nothing through there, so that half of it remains.
pub(super) fn slope(ratio: f64, advantage: f64, [low, high]: [f64; 2]) -> f64 {
    // The minimum is constant where the ratio has gone far enough in the direction that pays.
    let constant = if advantage > 0.0 { ratio > high } else { ratio < low };
    if constant {
        return 0.0;
    }
    let share = if ratio == low || ratio == high { 0.5 } else { 1.0 };
    -share * advantage
}

fn clip(ratio: f64, [low, high]: [f64; 2]) -> f64 {
    ratio.max(low).min(high)
}

/// Bounds that no ratio is between.
pub(super) fn crossed(term: &Term<'_>) -> Option<String> {
    let [low, high] = bounds_of(term);
    (low > high).then(|| format!("{} = {low} is above {} = {high}", LOW.name, HIGH.name))
}
