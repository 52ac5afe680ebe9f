//! Penalties that are added to a loss, each with a weight, and an account of what each contributes.
//!
//! A new one is a file here that implements [`Regularizer`], and a line in `tests.rs`, which compares its gradient with
//! finite differences.

mod consistency;
mod elastic_net;
mod entropy;
mod gradient_penalty;
mod kl_divergence;
mod l1;
mod l2;
mod orthogonality;
mod pipeline;
mod scope;

use std::sync::Arc;

use super::{CustomLoss, LossValue, Var, array::Array, evaluate::failed};
use crate::{Datum, Result};

pub use self::{
    consistency::{Consistency, Distance, Partner},
    elastic_net::ElasticNet,
    entropy::{Entropy, EntropyMode},
    gradient_penalty::GradientPenalty,
    kl_divergence::{Direction, KlDivergence},
    l1::L1,
    l2::{Center, L2},
    orthogonality::{Axis, Orthogonality, OrthogonalityMode},
    pipeline::{BaseLossOutput, CustomLossOutput, Regularized, RegularizerOutput},
    scope::{Reduction, Scope, Target},
};

/// A penalty on the logprobs of a batch.
///
/// ```
/// use tinsmith::{Datum, Result, custom::{LossValue, Var, regularizers::Regularizer}};
///
/// /// Draws each text's mean logprob to a target.
/// struct Level(f64);
///
/// impl Regularizer for Level {
///     fn name(&self) -> &str {
///         "level"
///     }
///
///     fn compute(&self, _data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
///         let parts: Vec<Var> = logprobs.iter().map(|x| (x.mean() - self.0).square()).collect();
///         Ok(LossValue::new(Var::stack(&parts)?.sum()))
///     }
/// }
/// ```
pub trait Regularizer: Send + Sync {
    /// What it is called in metrics and errors.
    fn name(&self) -> &str;

    /// The penalty, a scalar; its metrics are reported beside it.
    ///
    /// # Errors
    /// Whatever it finds wrong with the batch.
    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue>;
}

impl<R: Regularizer + ?Sized> Regularizer for Box<R> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        (**self).compute(data, logprobs)
    }
}

/// Any loss as a regularizer, by a name.
#[derive(Clone, Debug)]
pub struct Named<L> {
    name: String,
    loss: L,
}

impl<L: CustomLoss> Named<L> {
    /// A loss, or a closure `|data: &[Datum], logprobs: &[Var]| -> Result<LossValue>`.
    pub fn new(name: impl Into<String>, loss: L) -> Self {
        Self { name: name.into(), loss }
    }
}

impl<L: CustomLoss> Regularizer for Named<L> {
    fn name(&self) -> &str {
        &self.name
    }

    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        self.loss.compute(data, logprobs)
    }
}

/// Where the logprobs to compare with come from; they have the shapes of the model's.
#[derive(Clone)]
pub enum Reference {
    /// A loss input of each datum.
    Input(String),
    /// Given for each datum, row after row.
    Logprobs(Vec<Vec<f64>>),
    /// Computed from the datums, for each of them.
    Computed(Arc<ComputeReference>),
}

/// The logprobs to compare with, computed from the datums.
pub type ComputeReference = dyn Fn(&[Datum]) -> Result<Vec<Vec<f64>>> + Send + Sync;

impl std::fmt::Debug for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Input(name) => f.debug_tuple("Input").field(name).finish(),
            Self::Logprobs(logprobs) => f.debug_tuple("Logprobs").field(logprobs).finish(),
            Self::Computed(_) => f.debug_tuple("Computed").finish_non_exhaustive(),
        }
    }
}

impl Reference {
    /// A constant beside each datum's logprobs, of the same shape.
    fn beside(&self, data: &[Datum], logprobs: &[Var]) -> Result<Vec<Var>> {
        let computed;
        let given = match self {
            Self::Input(name) => {
                let input = |(datum, logprobs): (&Datum, &Var)| -> Result<Var> {
                    let reference = logprobs.input(datum, name)?;
                    let (shape, expected) = (reference.shape(), logprobs.shape());
                    if shape == expected {
                        return Ok(reference);
                    }
                    Err(failed(format!(
                        "{name} has the shape {shape:?}, the logprobs {expected:?}"
                    )))
                };
                return data.iter().zip(logprobs).map(input).collect();
            }
            Self::Logprobs(given) => given,
            Self::Computed(compute) => {
                computed = compute(data)?;
                &computed
            }
        };
        if given.len() != logprobs.len() {
            let (given, datums) = (given.len(), logprobs.len());
            return Err(failed(format!(
                "reference logprobs of {given} datums for a batch of {datums}"
            )));
        }
        logprobs
            .iter()
            .zip(given)
            .map(|(logprobs, given)| constant_like(logprobs, given.clone()))
            .collect()
    }
}

/// A constant of the shape of `var`.
fn constant_like(var: &Var, numbers: Vec<f64>) -> Result<Var> {
    matrix(var, var.shape(), numbers)
}

/// A constant of this shape in the calculation of `var`.
fn matrix(var: &Var, shape: Vec<usize>, numbers: Vec<f64>) -> Result<Var> {
    let array =
        Array::new(shape, numbers).map_err(|message| failed(format!("a reference: {message}")))?;
    Ok(var.tape().leaf(array))
}

/// The sum of scalars.
fn total(scalars: &[Var]) -> Result<Var> {
    Ok(Var::stack(scalars)?.sum())
}

#[cfg(test)]
mod tests;
