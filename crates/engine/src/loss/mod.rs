//! The losses, by name.
//!
//! A loss is a sum over tokens of a function of the token's logprob; all arithmetic is f64. To add one:
//! a file beside this that holds a [`Loss`], and a line in [`LOSSES`]. A test differentiates every one.

mod cispo;
mod cross_entropy;
mod dro;
mod exp;
mod importance_sampling;
mod policy;
mod ppo;

use std::collections::BTreeMap;

use crate::{Datum, Error, Result};

/// Every loss.
pub(crate) const LOSSES: &[&Loss] = &[
    &cross_entropy::CROSS_ENTROPY,
    &importance_sampling::IMPORTANCE_SAMPLING,
    &ppo::PPO,
    &cispo::CISPO,
    &dro::DRO,
];

/// One loss: what it reads, and its term for one token.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) name: &'static str,
    /// What it reads of a datum's values, in the order of [`Term::inputs`].
    pub(crate) inputs: &'static [Input],
    /// Its constants, in the order of [`Term::options`].
    pub(crate) options: &'static [Constant],
    /// Whether a row may have several candidates.
    pub(crate) candidates: bool,
    /// What is wrong with one token's inputs and constants; its logprob is not known yet.
    pub(crate) problem: fn(term: &Term<'_>) -> Option<String>,
    /// The term as a function whose derivative is the gradient: what a loss holds constant there (a ratio
    /// that only weighs, say) is computed from `term.logprob`, and what it differentiates from `logprob`.
    pub(crate) surrogate: fn(logprob: f64, term: &Term<'_>) -> f64,
    /// Derivative of the surrogate with respect to `logprob`, at `term.logprob`.
    pub(crate) coefficient: fn(term: &Term<'_>) -> f64,
    /// What it reports beside `loss:sum`.
    pub(crate) metrics: &'static [Metric],
}

/// A value that a loss reads for each token.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) name: &'static str,
    /// What stands in where a datum does not have it.
    pub(crate) fill: Fill,
}

/// What stands in for an input that a datum does not have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fill {
    /// Nothing: such a datum is refused.
    Required,
    /// This number.
    Value(f64),
    /// The loss's constant of this place.
    Constant(usize),
}

/// A constant of a loss.
#[derive(Debug)]
pub(crate) struct Constant {
    pub(crate) name: &'static str,
    pub(crate) default: f64,
}

/// What a loss sees of one token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term<'a> {
    pub(crate) logprob: f64,
    pub(crate) inputs: &'a [f64],
    pub(crate) options: &'a [f64],
}

/// A number that a loss reports.
#[derive(Debug)]
pub(crate) struct Metric {
    /// With its reduction, `name:reduction`.
    pub(crate) name: &'static str,
    pub(crate) reduction: Reduction,
    /// `None` where the token does not count.
    pub(crate) value: fn(term: &Term<'_>) -> Option<f64>,
}

/// How a metric's values become one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reduction {
    Sum,
    Max,
}

/// The names of the values that a loss reads of a datum, beside its targets.
///
/// # Errors
/// A loss that is not known.
pub fn loss_inputs(loss: &str) -> Result<impl Iterator<Item = &'static str>> {
    Ok(Loss::find(loss)?.inputs.iter().map(|input| input.name))
}

impl Loss {
    /// The loss of this name.
    pub(crate) fn find(name: &str) -> Result<&'static Self> {
        LOSSES.iter().copied().find(|loss| loss.name == name).ok_or_else(|| {
            let known: Vec<_> = LOSSES.iter().map(|loss| loss.name).collect();
            Error::user(format!("unknown loss {name:?}; the known ones are {}", known.join(", ")))
        })
    }

    /// The term's own value.
    pub(crate) fn value(&self, term: &Term<'_>) -> f64 {
        (self.surrogate)(term.logprob, term)
    }

    /// The loss's constants from a request, defaults filled in.
    pub(crate) fn read_options(&self, config: &BTreeMap<String, f64>) -> Result<Vec<f64>> {
        for (name, value) in config {
            if !self.options.iter().any(|option| option.name == name) {
                let known: Vec<_> = self.options.iter().map(|option| option.name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let message = format!(
                    "loss_fn_config: {} does not take {name:?} (it takes {known})",
                    self.name
                );
                return Err(Error::user(message));
            }
            if !value.is_finite() {
                return Err(Error::user(format!("loss_fn_config: {name} is not finite")));
            }
        }
        let value = |option: &Constant| config.get(option.name).copied().unwrap_or(option.default);
        Ok(self.options.iter().map(value).collect())
    }

    /// A datum's values in the order of [`Loss::inputs`]; an absent optional one is `None`.
    pub(crate) fn columns<'a>(&self, datum: &'a Datum) -> Vec<Option<&'a [f32]>> {
        self.inputs.iter().map(|input| datum.values.get(input.name).map(Vec::as_slice)).collect()
    }

    /// Writes the inputs of one token.
    pub(crate) fn fill(
        &self,
        columns: &[Option<&[f32]>],
        index: usize,
        options: &[f64],
        inputs: &mut Vec<f64>,
    ) {
        inputs.clear();
        for (input, column) in self.inputs.iter().zip(columns) {
            inputs.push(match (column, input.fill) {
                (Some(column), _) => f64::from(column[index]),
                (None, Fill::Value(value)) => value,
                (None, Fill::Constant(place)) => options[place],
                (None, Fill::Required) => unreachable!("datums without it were refused"),
            });
        }
    }
}

/// The metrics of one request as they gather, token after token.
#[derive(Clone, Debug)]
pub(crate) struct Totals {
    loss: &'static Loss,
    loss_sum: f64,
    values: Vec<Option<f64>>,
}

impl Totals {
    pub(crate) fn new(loss: &'static Loss) -> Self {
        Self { loss, loss_sum: 0.0, values: vec![None; loss.metrics.len()] }
    }

    /// Takes in one token whose term has the value `value`.
    pub(crate) fn add(&mut self, value: f64, term: &Term<'_>) {
        self.loss_sum += value;
        for (metric, total) in self.loss.metrics.iter().zip(&mut self.values) {
            if let Some(value) = (metric.value)(term) {
                let merged = total.map_or(value, |total| match metric.reduction {
                    Reduction::Sum => total + value,
                    Reduction::Max => total.max(value),
                });
                *total = Some(merged);
            }
        }
    }

    /// By `name:reduction`; a metric that no token counted in is zero.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let named = |(metric, value): (&Metric, &Option<f64>)| {
            (metric.name.to_owned(), value.unwrap_or_default())
        };
        let mut metrics: BTreeMap<_, _> =
            self.loss.metrics.iter().zip(&self.values).map(named).collect();
        metrics.insert("loss:sum".to_owned(), self.loss_sum);
        metrics
    }
}

#[cfg(test)]
mod tests;
