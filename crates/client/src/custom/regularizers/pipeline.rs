//! A loss with regularizers: their weighted sum, and what each contributes.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{
    super::evaluate::{failed, guarded},
    Regularizer,
};
use crate::{
    Datum, Result,
    custom::{CustomLoss, LossValue, Var},
};

/// `base + Σ weight · regularizer`, a [`CustomLoss`] itself.
///
/// ```
/// use tinsmith::{Datum, custom::{LossValue, Var, regularizers::{Entropy, EntropyMode, L2, Regularized}}};
///
/// let nll = |_: &[Datum], logprobs: &[Var]| Ok(LossValue::new(-logprobs[0].sum()));
/// let sought = Entropy { mode: EntropyMode::Maximize, ..Entropy::default() };
/// let loss = Regularized::new(nll).with(0.01, L2::default()).with(0.1, sought).with_gradient_norms();
///
/// // Without a server; with one, it is what `forward_backward_regularized` takes.
/// let datum = Datum::next_token(&[1, 2], &[2, 3], &[1.0, 1.0])?;
/// let output = loss.output(&[datum], &[vec![-0.5, -1.5]])?;
/// assert!((output.base_loss.value - 2.0).abs() < 1e-12);
/// assert!((output.regularizers["l2"].contribution - 0.01 * 2.5).abs() < 1e-12);
/// assert!(output.total_grad_norm.is_some());
/// # Ok::<(), tinsmith::Error>(())
/// ```
pub struct Regularized {
    base: Box<dyn CustomLoss>,
    terms: Vec<(f64, Box<dyn Regularizer>)>,
    gradient_norms: bool,
}

/// What a regularized loss is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CustomLossOutput {
    /// `base_loss.value + regularizer_total`.
    pub loss_total: f64,
    /// The loss without regularizers.
    pub base_loss: BaseLossOutput,
    /// By name.
    pub regularizers: BTreeMap<String, RegularizerOutput>,
    /// The sum of the contributions.
    pub regularizer_total: f64,
    /// Norm of the gradient of `loss_total`, if norms were asked for.
    pub total_grad_norm: Option<f64>,
}

/// The loss without regularizers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BaseLossOutput {
    /// The loss.
    pub value: f64,
    /// Norm of its gradient by the logprobs of the batch, if norms were asked for.
    pub grad_norm: Option<f64>,
    /// Its own metrics.
    pub custom: BTreeMap<String, f64>,
}

/// What one regularizer contributes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RegularizerOutput {
    /// The penalty, without its weight.
    pub value: f64,
    /// The weight.
    pub weight: f64,
    /// `weight · value`.
    pub contribution: f64,
    /// Norm of the penalty's gradient by the logprobs of the batch, if norms were asked for.
    pub grad_norm: Option<f64>,
    /// `weight · grad_norm`.
    pub grad_norm_weighted: Option<f64>,
    /// Its own metrics.
    pub custom: BTreeMap<String, f64>,
}

impl Regularized {
    /// A loss to which regularizers can be added.
    pub fn new(base: impl CustomLoss + 'static) -> Self {
        Self { base: Box::new(base), terms: Vec::new(), gradient_norms: false }
    }

    /// With one more regularizer. Weights are finite and at least 0, names differ.
    #[must_use]
    pub fn with(mut self, weight: f64, regularizer: impl Regularizer + 'static) -> Self {
        self.terms.push((weight, Box::new(regularizer)));
        self
    }

    /// With the norms of the gradients, one more backward pass over the calculation for each regularizer.
    #[must_use]
    pub fn with_gradient_norms(mut self) -> Self {
        self.gradient_norms = true;
        self
    }

    /// The weighted sum, and what it is made of.
    pub(in crate::custom) fn composed(
        &self,
        data: &[Datum],
        logprobs: &[Var],
    ) -> Result<(LossValue, CustomLossOutput)> {
        self.check()?;
        let base = self.base.compute(data, logprobs)?;
        let mut output = CustomLossOutput {
            base_loss: BaseLossOutput {
                value: base.loss().item(),
                grad_norm: self.norm(base.loss(), logprobs),
                custom: numbers(&base),
            },
            ..CustomLossOutput::default()
        };
        let mut total = base.loss().clone();
        for (weight, regularizer) in &self.terms {
            let name = regularizer.name();
            let value = regularizer
                .compute(data, logprobs)
                .map_err(|error| failed(format!("the regularizer {name}: {error}")))?;
            let weighted = value.loss() * *weight;
            let grad_norm = self.norm(value.loss(), logprobs);
            let part = RegularizerOutput {
                value: value.loss().item(),
                weight: *weight,
                contribution: weighted.item(),
                grad_norm,
                grad_norm_weighted: grad_norm.map(|norm| norm * weight),
                custom: numbers(&value),
            };
            let (value, contribution) = (part.value, part.contribution);
            tracing::debug!(target: "tinsmith::custom_loss", name, value, contribution, "regularizer");
            output.regularizer_total += part.contribution;
            output.regularizers.insert(name.to_owned(), part);
            total = total + weighted;
        }
        output.loss_total = total.item();
        output.total_grad_norm = self.norm(&total, logprobs);
        let mut value = LossValue::new(total);
        for (name, number) in output.metrics() {
            value = value.metric(name, number);
        }
        Ok((value, output))
    }

    fn check(&self) -> Result<()> {
        for (place, (weight, regularizer)) in self.terms.iter().enumerate() {
            let name = regularizer.name();
            if !(weight.is_finite() && *weight >= 0.0) {
                return Err(failed(format!(
                    "the regularizer {name} has the weight {weight}; weights are at least 0"
                )));
            }
            if self.terms[..place].iter().any(|(_, other)| other.name() == name) {
                return Err(failed(format!(
                    "two regularizers are called {name}: give one another name with Named"
                )));
            }
        }
        Ok(())
    }

    fn norm(&self, value: &Var, logprobs: &[Var]) -> Option<f64> {
        let squares = |gradient: &Var| gradient.to_vec().iter().map(|x| x * x).sum::<f64>();
        self.gradient_norms
            .then(|| value.gradient(logprobs).iter().map(squares).sum::<f64>().sqrt())
    }

    /// Computes the loss and what it is made of on logprobs that are already there, without a server.
    /// `logprobs[i]` are those of `data[i]`.
    ///
    /// # Errors
    /// What [`crate::custom::evaluate`] fails with.
    pub fn output(&self, data: &[Datum], logprobs: &[Vec<f64>]) -> Result<CustomLossOutput> {
        let output = std::sync::Mutex::new(None);
        let loss = |data: &[Datum], logprobs: &[Var]| {
            let (value, composed) = self.composed(data, logprobs)?;
            *output.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(composed);
            Ok(value)
        };
        guarded(|| crate::custom::evaluate(&loss, data, logprobs))?;
        let output = output.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        output.ok_or_else(|| failed("it was not computed"))
    }
}

impl CustomLoss for Regularized {
    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        Ok(self.composed(data, logprobs)?.0)
    }
}

impl fmt::Debug for Regularized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: Vec<_> = self.terms.iter().map(|(weight, term)| (term.name(), weight)).collect();
        f.debug_struct("Regularized").field("terms", &terms).finish_non_exhaustive()
    }
}

impl CustomLossOutput {
    /// The total.
    pub fn loss(&self) -> f64 {
        self.loss_total
    }

    /// As metrics: the base loss's own, `base_loss:sum`, `regularizer_total:sum`, and for each regularizer
    /// `regularizer/NAME:sum` (its contribution); norms, where there are any, are `…grad_norm:sum`.
    fn metrics(&self) -> Vec<(String, f64)> {
        let own = self.base_loss.custom.iter().map(|(name, number)| (name.clone(), *number));
        let mut metrics: Vec<(String, f64)> = own.collect();
        metrics.push(("base_loss:sum".to_owned(), self.base_loss.value));
        metrics.push(("regularizer_total:sum".to_owned(), self.regularizer_total));
        let base =
            self.base_loss.grad_norm.map(|norm| ("base_loss/grad_norm:sum".to_owned(), norm));
        metrics.extend(base);
        metrics.extend(self.total_grad_norm.map(|norm| ("grad_norm:sum".to_owned(), norm)));
        for (name, part) in &self.regularizers {
            metrics.push((format!("regularizer/{name}:sum"), part.contribution));
            let norm = part.grad_norm_weighted;
            metrics.extend(norm.map(|norm| (format!("regularizer/{name}/grad_norm:sum"), norm)));
        }
        metrics
    }
}

fn numbers(value: &LossValue) -> BTreeMap<String, f64> {
    value.numbers().map(|(name, number)| (name.to_owned(), number)).collect()
}
