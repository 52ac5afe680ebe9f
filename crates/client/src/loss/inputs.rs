//! What each loss reads of a datum, as types: [`Datum::with_inputs`](crate::Datum::with_inputs) takes any of them.

use crate::{ProvenanceSpan, TensorData, datum::TARGETS};

/// Arrays for a loss, by the names that the loss knows them by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossInputs {
    pub(crate) arrays: Vec<(&'static str, TensorData)>,
    pub(crate) spans: Option<(Vec<ProvenanceSpan>, Vec<ProvenanceSpan>)>,
}

/// For `cross_entropy`. All `[n]`, as long as the input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CrossEntropyInputs {
    /// What follows each token.
    pub target_tokens: Vec<u32>,
    /// How much each counts; ones where absent.
    pub weights: Option<Vec<f32>>,
}

/// For `cross_entropy` with several candidates a token. Both `[n, K]`, each dense or sparse.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftTargetInputs {
    /// int64.
    pub target_tokens: TensorData,
    /// float32; ones where absent, but for what a sparse `target_tokens` does not list.
    pub weights: Option<TensorData>,
}

/// For `importance_sampling` and `dro`. All `[n]`, as long as the input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyInputs {
    /// What follows each token.
    pub target_tokens: Vec<u32>,
    /// The sampler's, of each target; 0 where it was not sampled.
    pub logprobs: Vec<f32>,
    /// How much better than expected each was; 0 where it was not sampled.
    pub advantages: Vec<f32>,
}

/// For `ppo` and `cispo`. All `[n]`, as long as the input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClippedInputs {
    /// Targets, logprobs and advantages.
    pub policy: PolicyInputs,
    /// A lower bound for each token's ratio, in place of the setting.
    pub clip_low_threshold: Option<Vec<f32>>,
    /// An upper bound for each token's ratio, in place of the setting.
    pub clip_high_threshold: Option<Vec<f32>>,
}

/// For `gspo`. All `[n]`, as long as the input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GspoInputs {
    /// Targets, logprobs, advantages and bounds.
    pub clipped: ClippedInputs,
    /// Weight of each token in the sequence's ratio; where absent, tokens with an advantage count.
    pub sequence_ratio_mask: Option<Vec<f32>>,
}

/// For `stable_reinforce`. Arrays are `[n]`, as long as the input; spans tile it, and the targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StableReinforceInputs {
    /// What follows each token.
    pub target_tokens: Vec<u32>,
    /// How much better than expected each was; 0 where it was not sampled.
    pub advantages: Vec<f32>,
    /// Where the tokens of the input come from.
    pub model_input_spans: Vec<ProvenanceSpan>,
    /// Where the targets come from.
    pub target_spans: Vec<ProvenanceSpan>,
}

impl LossInputs {
    fn of(target_tokens: &[u32]) -> Self {
        Self { arrays: vec![(TARGETS, TensorData::from_tokens(target_tokens))], spans: None }
    }

    fn and(mut self, name: &'static str, tensor: Option<impl Into<TensorData>>) -> Self {
        self.arrays.extend(tensor.map(|tensor| (name, tensor.into())));
        self
    }
}

impl From<CrossEntropyInputs> for LossInputs {
    fn from(inputs: CrossEntropyInputs) -> Self {
        Self::of(&inputs.target_tokens).and("weights", inputs.weights)
    }
}

impl From<SoftTargetInputs> for LossInputs {
    fn from(inputs: SoftTargetInputs) -> Self {
        let arrays = vec![(TARGETS, inputs.target_tokens)];
        Self { arrays, spans: None }.and("weights", inputs.weights)
    }
}

impl From<PolicyInputs> for LossInputs {
    fn from(inputs: PolicyInputs) -> Self {
        Self::of(&inputs.target_tokens)
            .and("logprobs", Some(inputs.logprobs))
            .and("advantages", Some(inputs.advantages))
    }
}

impl From<ClippedInputs> for LossInputs {
    fn from(inputs: ClippedInputs) -> Self {
        Self::from(inputs.policy)
            .and("clip_low_threshold", inputs.clip_low_threshold)
            .and("clip_high_threshold", inputs.clip_high_threshold)
    }
}

impl From<GspoInputs> for LossInputs {
    fn from(inputs: GspoInputs) -> Self {
        Self::from(inputs.clipped).and("sequence_ratio_mask", inputs.sequence_ratio_mask)
    }
}

impl From<StableReinforceInputs> for LossInputs {
    fn from(inputs: StableReinforceInputs) -> Self {
        let spans = Some((inputs.model_input_spans, inputs.target_spans));
        let made = Self::of(&inputs.target_tokens).and("advantages", Some(inputs.advantages));
        Self { spans, ..made }
    }
}
