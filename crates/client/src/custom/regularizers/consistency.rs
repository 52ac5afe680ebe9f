//! Like predictions for like inputs.

use super::{super::evaluate::failed, Direction, Reference, Regularizer, Scope, total};
use crate::{
    Datum, Result,
    custom::{LossValue, Var},
};

/// The distance between a datum's logprobs and those of its partner, with its full gradient.
#[derive(Clone, Debug)]
pub struct Consistency {
    /// What is compared.
    pub partner: Partner,
    /// How it is compared.
    pub distance: Distance,
    /// The tokens that count; averaged by default. For the cosine distance, which is one number a datum, only the
    /// reduction is used.
    pub scope: Scope,
}

/// What a datum is compared with.
#[derive(Clone, Debug)]
pub enum Partner {
    /// Given logprobs, which have no gradient.
    Reference(Reference),
    /// Datum 2i with datum 2i + 1, such as a text and its variant: both are drawn to each other.
    Neighbour,
}

/// How two datums' logprobs are compared.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Distance {
    /// Squared differences.
    #[default]
    Squared,
    /// Absolute differences.
    Absolute,
    /// `1 - cos` of the angle between both, a number a datum.
    Cosine,
    /// The symmetric Kullback-Leibler divergence of each token.
    Kl,
}

impl Default for Consistency {
    /// Squared differences to the loss input `original_logprobs`.
    fn default() -> Self {
        let partner = Partner::Reference(Reference::Input("original_logprobs".to_owned()));
        Self { partner, distance: Distance::default(), scope: Scope::mean() }
    }
}

impl Distance {
    fn between(self, x: &Var, y: &Var) -> Var {
        match self {
            Self::Squared => (x - y).square(),
            Self::Absolute => (x - y).abs(),
            Self::Kl => Direction::Symmetric.of_tokens(x, y),
            Self::Cosine => {
                // A zero vector has no angle: its norm counts as tiny, not as 0.
                let norm = |x: &Var| (x.square().sum() + 1e-16).sqrt();
                (1.0 - x.dot(y) / (norm(x) * norm(y))).unsqueeze()
            }
        }
    }
}

impl Regularizer for Consistency {
    fn name(&self) -> &'static str {
        "consistency"
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        let (firsts, seconds) = match &self.partner {
            Partner::Reference(reference) => (logprobs.to_vec(), reference.beside(data, logprobs)?),
            Partner::Neighbour => {
                if !logprobs.len().is_multiple_of(2) {
                    let datums = logprobs.len();
                    return Err(failed(format!("{datums} datums cannot be compared in pairs")));
                }
                let of = |which: usize| {
                    logprobs.iter().skip(which).step_by(2).cloned().collect::<Vec<_>>()
                };
                (of(0), of(1))
            }
        };
        let pairs = firsts.iter().zip(&seconds);
        let parts: Vec<Var> = pairs.map(|(x, y)| self.distance.between(x, y)).collect();
        if self.distance == Distance::Cosine {
            let sum = total(&parts.iter().map(Var::sum).collect::<Vec<_>>())?;
            let divisor = match self.scope.reduction {
                super::Reduction::Sum => 1.0,
                super::Reduction::Mean => super::super::op::count(parts.len()),
            };
            return Ok(LossValue::new(sum / divisor));
        }
        let masks: Vec<Datum> = match self.partner {
            Partner::Reference(_) => data.to_vec(),
            Partner::Neighbour => data.iter().step_by(2).cloned().collect(),
        };
        Ok(LossValue::new(self.scope.reduce(&masks, &parts)?))
    }
}
