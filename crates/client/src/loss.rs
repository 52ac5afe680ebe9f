//! Losses by name, with their settings; what each of them reads is in `loss/table.rs`.

use std::{collections::BTreeMap, fmt};

use tinsmith_types::training::LossConfigValue;

mod check;
mod inputs;
mod settings;
mod table;

pub use inputs::{
    ClippedInputs, CrossEntropyInputs, GspoInputs, LossInputs, PolicyInputs, SoftTargetInputs,
    StableReinforceInputs,
};
pub use settings::{Cispo, Dro, Gspo, Ppo, StableReinforce};

/// The setting that names a custom loss.
const LOSS_ID: &str = "loss_id";

/// A loss by name.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum LossFn {
    /// −Σ w · logp.
    CrossEntropy,
    /// −Σ r · A.
    ImportanceSampling,
    /// −Σ min(r · A, clip(r) · A).
    Ppo,
    /// −Σ constant(clip(r)) · logp · A.
    Cispo,
    /// −Σ (logp · A − ½ · beta · (logp − q)²).
    Dro,
    /// −Σ min(s · A, clip(s) · A), s being the ratio of the whole sequence.
    Gspo,
    /// REINFORCE with logprobs that the server has recorded.
    StableReinforce,
    /// A loss that was sent to the server as a graph.
    Custom,
    /// A loss of the server that this library does not know: nothing of its inputs is checked.
    Other(String),
}

impl LossFn {
    /// As on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::CrossEntropy => "cross_entropy",
            Self::ImportanceSampling => "importance_sampling",
            Self::Ppo => "ppo",
            Self::Cispo => "cispo",
            Self::Dro => "dro",
            Self::Gspo => "gspo",
            Self::StableReinforce => "stable_reinforce",
            Self::Custom => "custom",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for LossFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<&str> for LossFn {
    fn from(name: &str) -> Self {
        let known = table::SPECS.iter().map(|spec| &spec.name);
        let found = known.into_iter().find(|known| known.as_str() == name);
        found.cloned().unwrap_or_else(|| Self::Other(name.to_owned()))
    }
}

impl From<String> for LossFn {
    fn from(name: String) -> Self {
        Self::from(name.as_str())
    }
}

/// A loss with its settings; settings that are not set are the server's.
///
/// ```
/// use tinsmith::{Loss, LossFn};
///
/// let clipped: Loss = Loss::ppo().clip(0.9, 1.1).into();
/// assert_eq!(clipped.name(), "ppo");
/// assert_eq!(Loss::from("cross_entropy"), LossFn::CrossEntropy.into());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    function: LossFn,
    config: BTreeMap<String, LossConfigValue>,
    /// What a custom loss reads beside logprobs, where that is known.
    custom_inputs: Option<Vec<CustomInput>>,
}

/// An array that a custom loss reads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CustomInput {
    /// Its name among the inputs of a datum.
    pub name: String,
    /// Its number of dimensions: 0, 1 or 2.
    pub rank: usize,
}

impl Loss {
    /// A loss without settings.
    pub fn new(function: impl Into<LossFn>) -> Self {
        Self { function: function.into(), config: BTreeMap::new(), custom_inputs: None }
    }

    /// Cross entropy, with weights, hard or soft targets.
    pub fn cross_entropy() -> Self {
        Self::new(LossFn::CrossEntropy)
    }

    /// Importance sampling, the policy gradient with a ratio.
    pub fn importance_sampling() -> Self {
        Self::new(LossFn::ImportanceSampling)
    }

    /// PPO's clipped objective.
    pub fn ppo() -> Ppo {
        Ppo::default()
    }

    /// CISPO, whose clipped ratio is a weight.
    pub fn cispo() -> Cispo {
        Cispo::default()
    }

    /// Direct reward optimization, with a quadratic penalty.
    pub fn dro() -> Dro {
        Dro::default()
    }

    /// PPO with one ratio for a sequence.
    pub fn gspo() -> Gspo {
        Gspo::default()
    }

    /// REINFORCE with logprobs that the server has recorded.
    pub fn stable_reinforce() -> StableReinforce {
        StableReinforce::default()
    }

    /// A custom loss by the id that the server gave it, and what it reads beside `logprobs`.
    pub fn custom_by_id(loss_id: impl Into<String>, inputs: Vec<CustomInput>) -> Self {
        let mut loss = Self::new(LossFn::Custom).with_text(LOSS_ID, loss_id);
        loss.custom_inputs = Some(inputs);
        loss
    }

    /// The same with a setting by name.
    #[must_use]
    pub fn with_setting(mut self, name: impl Into<String>, number: f64) -> Self {
        self.config.insert(name.into(), LossConfigValue::Number(number));
        self
    }

    /// The same with a setting by name that is a text.
    #[must_use]
    pub fn with_text(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.config.insert(name.into(), LossConfigValue::Text(text.into()));
        self
    }

    /// The same with all of these settings.
    #[must_use]
    pub fn with_settings(mut self, settings: BTreeMap<String, f64>) -> Self {
        let settings = settings.into_iter();
        self.config.extend(settings.map(|(name, number)| (name, LossConfigValue::Number(number))));
        self
    }

    /// Which loss it is.
    pub fn function(&self) -> &LossFn {
        &self.function
    }

    /// As on the wire.
    pub fn name(&self) -> &str {
        self.function.as_str()
    }

    /// The settings that differ from the server's.
    pub fn config(&self) -> &BTreeMap<String, LossConfigValue> {
        &self.config
    }
}

impl From<LossFn> for Loss {
    fn from(function: LossFn) -> Self {
        Self::new(function)
    }
}

impl From<&str> for Loss {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for Loss {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests;
