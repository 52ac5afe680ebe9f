//! The squared L2 norm.

use super::{Reduction, Regularizer, Scope, Target, failed};
use crate::{
    Datum, Result,
    custom::{LossValue, Var},
};

/// `Σ (x - center)²`: draws numbers to the center, those that are far with more force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct L2 {
    /// What x is.
    pub target: Target,
    /// What it is drawn to.
    pub center: Center,
    /// Differences beyond `±clip` count as the bound and have no gradient.
    pub clip: Option<f64>,
    /// The tokens that count; added by default.
    pub scope: Scope,
}

/// What [`L2`] draws to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Center {
    /// 0.
    #[default]
    Zero,
    /// The mean of the numbers that count, through which the gradient goes too.
    Mean,
    /// This number.
    At(f64),
}

impl Regularizer for L2 {
    fn name(&self) -> &'static str {
        "l2"
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        if let Some(clip) = self.clip.filter(|clip| clip.is_nan() || *clip <= 0.0) {
            return Err(failed(format!("clip is {clip}; it must be above 0")));
        }
        let values = self.target.of(logprobs);
        let centered: Vec<Var> = match self.center {
            Center::Zero => values,
            Center::At(center) => values.iter().map(|x| x - center).collect(),
            Center::Mean => {
                let mean = Scope { reduction: Reduction::Mean, ..self.scope.clone() };
                let mean = mean.reduce(data, &values)?;
                values.iter().map(|x| x - &mean).collect()
            }
        };
        let square =
            |x: &Var| self.clip.map_or_else(|| x.clone(), |clip| x.clamp(-clip, clip)).square();
        let squares: Vec<Var> = centered.iter().map(square).collect();
        Ok(LossValue::new(self.scope.reduce(data, &squares)?))
    }
}
