//! The distance to a reference model.

use super::{Reference, Regularizer, Scope};
use crate::{
    Datum, Result,
    custom::{LossValue, Var},
};

/// The Kullback-Leibler divergence between the model and a reference, with its full gradient.
///
/// With `[t, k]` logprobs it is that of each token's k candidates. With `[t]` logprobs only the target's term is known,
/// and that is what counts: `p (log p - log q)` forward, `q (log q - log p)` in reverse.
#[derive(Clone, Debug)]
pub struct KlDivergence {
    /// The reference's logprobs q; they have no gradient.
    pub reference: Reference,
    /// Which of both is the weight.
    pub direction: Direction,
    /// The tokens that count; averaged by default.
    pub scope: Scope,
}

/// Which of both distributions weighs the logarithms of their ratio.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Direction {
    /// KL(model ‖ reference).
    #[default]
    Forward,
    /// KL(reference ‖ model).
    Reverse,
    /// Half of each.
    Symmetric,
}

impl Direction {
    /// The terms, of the shape of the logprobs.
    pub(super) fn terms(self, p: &Var, q: &Var) -> Var {
        match self {
            Self::Forward => p.exp() * (p - q),
            Self::Reverse => q.exp() * (q - p),
            Self::Symmetric => (p.exp() - q.exp()) * (p - q) * 0.5,
        }
    }

    /// The divergence of each token.
    pub(super) fn of_tokens(self, p: &Var, q: &Var) -> Var {
        let terms = self.terms(p, q);
        if terms.rank() < 2 { terms } else { terms.sum_last() }
    }
}

impl KlDivergence {
    /// KL(model ‖ reference), the mean over all tokens.
    #[must_use]
    pub fn new(reference: Reference) -> Self {
        Self { reference, direction: Direction::default(), scope: Scope::mean() }
    }
}

impl Regularizer for KlDivergence {
    fn name(&self) -> &'static str {
        "kl_divergence"
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        let references = self.reference.beside(data, logprobs)?;
        let pairs = logprobs.iter().zip(&references);
        let tokens: Vec<Var> = pairs.map(|(p, q)| self.direction.of_tokens(p, q)).collect();
        let numbers = tokens.iter().flat_map(Var::to_vec);
        let (least, greatest) = numbers
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), x| {
                (least.min(x), greatest.max(x))
            });
        let value = LossValue::new(self.scope.reduce(data, &tokens)?);
        Ok(value.metric("kl_min", least).metric("kl_max", greatest))
    }
}
