//! The L1 norm.

use super::{Regularizer, Scope, Target};
use crate::{
    Datum, Result,
    custom::{LossValue, Var},
};

/// `Σ |x|`: draws numbers to 0, all with the same force. At 0 the gradient is 0.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct L1 {
    /// What x is.
    pub target: Target,
    /// The tokens that count; added by default.
    pub scope: Scope,
}

impl Regularizer for L1 {
    fn name(&self) -> &'static str {
        "l1"
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        let sizes: Vec<Var> = self.target.of(logprobs).iter().map(Var::abs).collect();
        Ok(LossValue::new(self.scope.reduce(data, &sizes)?))
    }
}
