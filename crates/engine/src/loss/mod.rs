//! The losses, by name.
//!
//! A loss is a sum over tokens of a function of the token's logprob, or over datums of a function of all
//! their logprobs; all arithmetic is f64. To add one: a file beside this that holds a [`Loss`], and a line in
//! [`LOSSES`]. A test differentiates every one.

mod cispo;
mod cross_entropy;
mod dro;
mod exp;
mod gspo;
mod importance_sampling;
mod policy;
mod ppo;
mod sequence;
mod stable_reinforce;
mod totals;

use std::collections::BTreeMap;

pub(crate) use sequence::{Chosen, TokenLoss, View};
pub use sequence::{Evaluation, LossChoice, SequenceLoss};
pub(crate) use totals::Totals;

use crate::{Datum, Error, Result};

/// Every loss.
pub(crate) const LOSSES: &[&Loss] = &[
    &cross_entropy::CROSS_ENTROPY,
    &importance_sampling::IMPORTANCE_SAMPLING,
    &ppo::PPO,
    &cispo::CISPO,
    &dro::DRO,
    &gspo::GSPO,
    &stable_reinforce::STABLE_REINFORCE,
];

/// One loss: what it reads, and what it makes of that.
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
    pub(crate) rule: Rule,
}

/// How much of a datum a loss looks at to give one token its gradient.
#[derive(Debug)]
pub(crate) enum Rule {
    /// The token alone.
    Token(TokenRule),
    /// All tokens of the datum.
    Datum(DatumRule),
}

/// The loss as a sum over tokens.
#[derive(Debug)]
pub(crate) struct TokenRule {
    /// The term as a function whose derivative is the gradient: what a loss holds constant there (a ratio
    /// that only weighs, say) is computed from `term.logprob`, and what it differentiates from `logprob`.
    pub(crate) surrogate: fn(logprob: f64, term: &Term<'_>) -> f64,
    /// Derivative of the surrogate with respect to `logprob`, at `term.logprob`.
    pub(crate) coefficient: fn(term: &Term<'_>) -> f64,
    /// What it reports beside `loss:sum`.
    pub(crate) metrics: &'static [Metric],
}

/// The loss as a sum over datums.
#[derive(Debug)]
pub(crate) struct DatumRule {
    /// What is wrong with the inputs of a datum's tokens together; no logprob is known yet.
    pub(crate) problem: fn(terms: &Terms<'_>) -> Option<String>,
    /// Writes `dloss/dlogprob` of each token, which are zero before, and gives the value and the metrics.
    pub(crate) evaluate: fn(terms: &Terms<'_>, coefficients: &mut [f64]) -> Evaluation,
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

/// What a loss sees of one datum.
#[derive(Debug)]
pub(crate) struct Terms<'a> {
    /// `[tokens]`.
    logprobs: Vec<f64>,
    /// `[tokens, inputs]`.
    inputs: Vec<f64>,
    options: &'a [f64],
}

impl<'a> Terms<'a> {
    /// Without `logprobs`, they are zero.
    pub(crate) fn new(
        loss: &Loss,
        options: &'a [f64],
        datum: &Datum,
        logprobs: Option<&[f32]>,
    ) -> Self {
        let columns = loss.columns(datum);
        let (mut inputs, mut of_token) = (Vec::new(), Vec::new());
        for index in 0..datum.targets.len() {
            loss.fill(&columns, index, options, &mut of_token);
            inputs.extend_from_slice(&of_token);
        }
        let logprobs = match logprobs {
            Some(logprobs) => logprobs.iter().copied().map(f64::from).collect(),
            None => vec![0.0; datum.targets.len()],
        };
        Self { logprobs, inputs, options }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Term<'_>> + Clone {
        let width = self.inputs.len().checked_div(self.logprobs.len()).unwrap_or(0).max(1);
        let tokens = self.logprobs.iter().zip(self.inputs.chunks_exact(width));
        tokens.map(|(&logprob, inputs)| Term { logprob, inputs, options: self.options })
    }
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
    Min,
    Mean,
}

impl Reduction {
    /// Of a metric named `name:reduction`.
    pub(crate) fn of(name: &str) -> Option<Self> {
        match name.rsplit_once(':')?.1 {
            "sum" => Some(Self::Sum),
            "max" => Some(Self::Max),
            "min" => Some(Self::Min),
            "mean" => Some(Self::Mean),
            _ => None,
        }
    }
}

/// The names of the values that a loss reads of a datum, beside its targets.
///
/// # Errors
/// A loss that is not known.
pub fn loss_inputs(loss: &str) -> Result<impl Iterator<Item = &'static str>> {
    Ok(Loss::find(loss)?.inputs.iter().map(|input| input.name))
}

impl TokenRule {
    /// The term's own value.
    pub(crate) fn value(&self, term: &Term<'_>) -> f64 {
        (self.surrogate)(term.logprob, term)
    }
}

impl Loss {
    /// The loss of this name.
    pub(crate) fn find(name: &str) -> Result<&'static Self> {
        LOSSES.iter().copied().find(|loss| loss.name == name).ok_or_else(|| {
            let known: Vec<_> = LOSSES.iter().map(|loss| loss.name).collect();
            Error::user(format!("unknown loss {name:?}; the known ones are {}", known.join(", ")))
        })
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

#[cfg(test)]
mod tests;
