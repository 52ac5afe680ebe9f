//! The losses, by name.
//!
//! A loss is a sum over tokens of a function of the token's logprob; all arithmetic is f64. To add one:
//! a file beside this that holds a [`Loss`], and a line in [`LOSSES`]. A test differentiates every one.

mod cross_entropy;
mod importance_sampling;

use std::collections::BTreeMap;

use crate::{Datum, Error, Result};

/// Every loss.
pub(crate) const LOSSES: &[&Loss] =
    &[&cross_entropy::CROSS_ENTROPY, &importance_sampling::IMPORTANCE_SAMPLING];

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
    /// Taken where a datum does not have it; `None` refuses such a datum.
    pub(crate) default: Option<f32>,
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
    #[expect(dead_code, reason = "the losses here so far have no constants")]
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
    pub(crate) fn fill(&self, columns: &[Option<&[f32]>], index: usize, inputs: &mut Vec<f64>) {
        inputs.clear();
        for (input, column) in self.inputs.iter().zip(columns) {
            let value = column.map(|column| column[index]).or(input.default);
            inputs.push(f64::from(value.expect("required inputs were checked at submission")));
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
mod tests {
    use super::*;

    /// Central differences of the surrogate, over every loss and a grid of inputs.
    #[test]
    fn coefficients_are_the_derivatives_of_the_surrogates() {
        const STEP: f64 = 1e-5;
        const TOLERANCE: f64 = 1e-6;
        let grid = [-3.0, -1.25, -0.125, 0.0, 0.5, 2.0];
        for loss in LOSSES {
            let options: Vec<f64> = loss.options.iter().map(|option| option.default).collect();
            for &logprob in &[-6.0, -1.5, -0.01] {
                for case in 0..grid.len().pow(u32::try_from(loss.inputs.len()).unwrap()) {
                    let pick = |place: u32| grid[case / grid.len().pow(place) % grid.len()];
                    let places = 0..u32::try_from(loss.inputs.len()).unwrap();
                    let inputs: Vec<f64> = places.map(pick).collect();
                    let term = Term { logprob, inputs: &inputs, options: &options };
                    let up = (loss.surrogate)(logprob + STEP, &term);
                    let down = (loss.surrogate)(logprob - STEP, &term);
                    let numeric = (up - down) / (2.0 * STEP);
                    let exact = (loss.coefficient)(&term);
                    let error = (numeric - exact).abs() / exact.abs().max(1.0);
                    assert!(error < TOLERANCE, "{}: {term:?}: {numeric} {exact}", loss.name);
                }
            }
        }
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let message = Loss::find("cross_entropie").unwrap_err().to_string();
        let expected = "unknown loss \"cross_entropie\"; the known ones are cross_entropy, importance_sampling";
        assert_eq!(message, expected);
        let config = BTreeMap::from([("beta".to_owned(), 0.5)]);
        let message =
            Loss::find("cross_entropy").unwrap().read_options(&config).unwrap_err().to_string();
        assert_eq!(message, "loss_fn_config: cross_entropy does not take \"beta\" (it takes none)");
    }

    #[test]
    fn totals_reduce_by_name() {
        let loss = Loss::find("importance_sampling").unwrap();
        let mut totals = Totals::new(loss);
        for (logprob, q, advantage) in [(-1.0, -1.0, 2.0), (-0.5, -1.0, -1.0), (-9.0, -1.0, 0.0)] {
            let inputs = [q, advantage];
            let term = Term { logprob, inputs: &inputs, options: &[] };
            totals.add(loss.value(&term), &term);
        }
        let metrics = totals.metrics();
        assert_eq!(metrics["loss:sum"], -2.0 + 0.5f64.exp());
        assert_eq!(metrics["tokens:sum"], 2.0);
        assert_eq!(metrics["ratio:max"], 0.5f64.exp());
        assert_eq!(metrics["kl_sampler_learner:sum"], -0.5);
    }
}
