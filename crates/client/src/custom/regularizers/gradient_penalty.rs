//! Losses that are not too steep.

use std::{fmt, sync::Arc};

use super::{super::evaluate::failed, Reference, Regularizer, total};
use crate::{
    Datum, Result,
    custom::{CustomLoss, LossValue, Var},
};

/// `(‖∂loss/∂logprobs‖ - target_norm)²` over the whole batch (Gulrajani et al. 2017), differentiated twice.
#[derive(Clone)]
pub struct GradientPenalty {
    loss: Arc<dyn CustomLoss>,
    target_norm: f64,
    /// And the model's part.
    between: Option<(Reference, f64)>,
}

impl GradientPenalty {
    /// Of this loss, with the target norm 1, at the model's logprobs.
    pub fn new(loss: impl CustomLoss + 'static) -> Self {
        Self { loss: Arc::new(loss), target_norm: 1.0, between: None }
    }

    /// With another norm that costs nothing.
    #[must_use]
    pub fn target_norm(mut self, target_norm: f64) -> Self {
        self.target_norm = target_norm;
        self
    }

    /// Differentiated between the model's logprobs (part 1) and the reference's (part 0). The usual random part is for
    /// the caller to draw, so that the same call gives the same number.
    #[must_use]
    pub fn between(mut self, reference: Reference, part: f64) -> Self {
        self.between = Some((reference, part));
        self
    }
}

impl fmt::Debug for GradientPenalty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("GradientPenalty");
        shown.field("target_norm", &self.target_norm).field("between", &self.between);
        shown.finish_non_exhaustive()
    }
}

impl Regularizer for GradientPenalty {
    fn name(&self) -> &'static str {
        "gradient_penalty"
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        let points = match &self.between {
            None => logprobs.to_vec(),
            Some((reference, part)) => {
                if !(0.0..=1.0).contains(part) {
                    return Err(failed(format!("the part is {part}; it goes from 0 to 1")));
                }
                let references = reference.beside(data, logprobs)?;
                let pairs = logprobs.iter().zip(&references);
                pairs.map(|(p, q)| p * *part + q * (1.0 - part)).collect()
            }
        };
        let loss = self.loss.compute(data, &points)?;
        let gradients = loss.loss().gradient(&points);
        let squares: Vec<Var> = gradients.iter().map(|gradient| gradient.square().sum()).collect();
        // Where the gradient is 0 its norm has a kink: a hair above it, the gradient of the norm is 0.
        let norm = (total(&squares)? + 1e-24).sqrt();
        let penalty = (&norm - self.target_norm).square();
        Ok(LossValue::new(penalty).metric("gradient_norm", &norm))
    }
}
