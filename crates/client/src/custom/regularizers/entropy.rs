//! Entropy, sought or avoided.

use super::{
    super::{evaluate::failed, op::count},
    Regularizer, Scope,
};
use crate::{
    Datum, Result,
    custom::{LossValue, Var},
};

/// The entropy `-Σ p log p` of each token, as a penalty.
///
/// With `[t, k]` logprobs the k candidates are a token's distribution. With `[t]` logprobs only the target's share
/// `-p log p` is known, and that is what counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Entropy {
    /// Whether entropy is sought or avoided.
    pub mode: EntropyMode,
    /// Logprobs are divided by it and normalised again; 1 leaves them alone. Needs candidates.
    pub temperature: f64,
    /// Divides by the greatest entropy possible, `log k`. Needs candidates.
    pub normalize: bool,
    /// The tokens that count; averaged by default.
    pub scope: Scope,
}

/// Whether entropy is sought or avoided.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum EntropyMode {
    /// The penalty is the negative entropy: predictions stay open.
    Maximize,
    /// The penalty is the entropy: predictions become sure.
    #[default]
    Minimize,
}

impl Default for Entropy {
    fn default() -> Self {
        let (mode, scope) = (EntropyMode::default(), Scope::mean());
        Self { mode, temperature: 1.0, normalize: false, scope }
    }
}

impl Entropy {
    fn of(&self, logprobs: &Var) -> Result<Var> {
        let plain = self.temperature == 1.0 && !self.normalize;
        if logprobs.rank() < 2 {
            if plain {
                return Ok(-(logprobs.exp() * logprobs));
            }
            return Err(failed("temperature and normalize need candidates, [t, k] target_tokens"));
        }
        let scaled;
        let logprobs = if self.temperature == 1.0 {
            logprobs
        } else {
            scaled = (logprobs / self.temperature).log_softmax();
            &scaled
        };
        let entropy = -(logprobs.exp() * logprobs).sum_last();
        let candidates = logprobs.shape().last().copied().unwrap_or(1);
        Ok(if self.normalize && candidates > 1 {
            entropy / count(candidates).ln()
        } else {
            entropy
        })
    }
}

impl Regularizer for Entropy {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(failed(format!(
                "the temperature is {}; it must be above 0",
                self.temperature
            )));
        }
        let entropies =
            logprobs.iter().map(|logprobs| self.of(logprobs)).collect::<Result<Vec<_>>>()?;
        let entropy = self.scope.reduce(data, &entropies)?;
        let penalty = match self.mode {
            EntropyMode::Maximize => -&entropy,
            EntropyMode::Minimize => entropy.clone(),
        };
        Ok(LossValue::new(penalty).metric("entropy", &entropy))
    }
}
