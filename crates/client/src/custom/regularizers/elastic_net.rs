//! L1 and L2 together.

use super::{super::evaluate::failed, L1, L2, Regularizer, Scope, Target};
use crate::{
    Datum, Result,
    custom::{LossValue, Var},
};

/// `l1_ratio · Σ |x| + (1 - l1_ratio) · Σ x²` (Zou and Hastie 2005, as a convex combination).
#[derive(Clone, Debug, PartialEq)]
pub struct ElasticNet {
    /// What x is.
    pub target: Target,
    /// The part of the L1 norm, from 0 to 1.
    pub l1_ratio: f64,
    /// The tokens that count; added by default.
    pub scope: Scope,
}

impl Default for ElasticNet {
    fn default() -> Self {
        Self { target: Target::default(), l1_ratio: 0.5, scope: Scope::default() }
    }
}

impl Regularizer for ElasticNet {
    fn name(&self) -> &'static str {
        "elastic_net"
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        if !(0.0..=1.0).contains(&self.l1_ratio) {
            return Err(failed(format!("l1_ratio is {}; it goes from 0 to 1", self.l1_ratio)));
        }
        let (target, scope) = (self.target, self.scope.clone());
        let l1 = L1 { target, scope: scope.clone() }.compute(data, logprobs)?;
        let l2 = L2 { target, scope, ..L2::default() }.compute(data, logprobs)?;
        let sum = l1.loss() * self.l1_ratio + l2.loss() * (1.0 - self.l1_ratio);
        Ok(LossValue::new(sum).metric("l1", l1.loss()).metric("l2", l2.loss()))
    }
}
