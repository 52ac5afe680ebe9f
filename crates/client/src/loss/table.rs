//! What each loss reads, and what can be set. A new loss is a line here and a variant of [`LossFn`].

use super::LossFn;

/// A loss, and the arrays that it reads besides `target_tokens`, each of its shape and float32.
pub(super) struct Spec {
    pub(super) name: LossFn,
    pub(super) required: &'static [&'static str],
    pub(super) optional: &'static [&'static str],
    /// What can be set, with the server's default; only documentation and tests read that.
    pub(super) settings: &'static [(&'static str, f64)],
    /// Whether `target_tokens` may have several candidates a token.
    pub(super) candidates: bool,
    /// Whether every datum has to say where its tokens come from.
    pub(super) provenance: bool,
}

const SAMPLED: &[&str] = &["logprobs", "advantages"];
const BOUNDS: &[&str] = &["clip_low_threshold", "clip_high_threshold"];

/// Every loss whose inputs are checked here.
pub(super) const SPECS: [Spec; 8] = [
    Spec {
        name: LossFn::CrossEntropy,
        required: &[],
        optional: &["weights"],
        settings: &[],
        candidates: true,
        provenance: false,
    },
    Spec {
        name: LossFn::ImportanceSampling,
        required: SAMPLED,
        optional: &[],
        settings: &[],
        candidates: false,
        provenance: false,
    },
    Spec {
        name: LossFn::Ppo,
        required: SAMPLED,
        optional: BOUNDS,
        settings: &[("clip_low_threshold", 0.8), ("clip_high_threshold", 1.2)],
        candidates: false,
        provenance: false,
    },
    Spec {
        name: LossFn::Cispo,
        required: SAMPLED,
        optional: BOUNDS,
        settings: &[("clip_low_threshold", 0.0), ("clip_high_threshold", 4.0)],
        candidates: false,
        provenance: false,
    },
    Spec {
        name: LossFn::Dro,
        required: SAMPLED,
        optional: &[],
        settings: &[("beta", 0.05)],
        candidates: false,
        provenance: false,
    },
    Spec {
        name: LossFn::Gspo,
        required: SAMPLED,
        optional: &["clip_low_threshold", "clip_high_threshold", "sequence_ratio_mask"],
        settings: &[("clip_low_threshold", 0.9997), ("clip_high_threshold", 1.0004)],
        candidates: false,
        provenance: false,
    },
    Spec {
        name: LossFn::StableReinforce,
        required: &["advantages"],
        optional: &[],
        settings: &[("kl_coeff", 0.0), ("clip_high_threshold", 2.0)],
        candidates: false,
        provenance: true,
    },
    Spec {
        name: LossFn::Custom,
        required: &[],
        optional: &[],
        settings: &[],
        candidates: true,
        provenance: false,
    },
];

/// Every array that some loss reads.
pub(super) const NAMES: [&str; 6] = [
    "weights",
    "logprobs",
    "advantages",
    "clip_low_threshold",
    "clip_high_threshold",
    "sequence_ratio_mask",
];
