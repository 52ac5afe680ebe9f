//! Losses that see one datum as a whole, and the choice of a request's loss.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{DatumRule, Loss, Reduction, Rule, Term, Terms, TokenRule};
use crate::{Datum, Result, train::f32_of};

/// A loss of one datum as a whole, given from outside. What a request computes is the sum over its datums.
///
/// Both methods must give the same for the same arguments, to the bit: replay depends on it.
pub trait SequenceLoss: fmt::Debug + Send + Sync {
    /// Refuses a datum before it is queued; its tokens, targets and their number were checked.
    ///
    /// # Errors
    /// What is wrong, for the caller to read; the datum's number is put in front.
    fn check(&self, datum: &Datum) -> Result<(), String>;

    /// The value of the loss, with `dloss/dlogprob` written to `coefficients`, which are zero before.
    /// `logprobs` and `coefficients` have the layout of the datum's targets, `[n * per_row]`.
    ///
    /// # Errors
    /// What is wrong, for the caller to read; the request fails and leaves the run's gradient as it was.
    /// Values and coefficients that are not finite are refused without the loss's doing.
    fn evaluate(
        &self,
        datum: &Datum,
        logprobs: &[f32],
        coefficients: &mut [f32],
    ) -> Result<Evaluation, String>;
}

/// What a loss of one datum came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// The loss's value.
    pub loss: f64,
    /// By `name:reduction`, the reduction being `sum`, `mean`, `max` or `min` over the request's datums.
    pub metrics: Vec<(String, f64)>,
}

/// Which loss a request asks for.
#[derive(Clone, Debug)]
pub enum LossChoice {
    /// A name of the loss registry.
    Named(String),
    /// A loss from outside; it takes no constants.
    Custom(Arc<dyn SequenceLoss>),
}

impl From<&str> for LossChoice {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

/// The loss of one request, ready to run.
#[derive(Clone, Debug)]
pub(crate) enum Chosen {
    /// Of the registry, with its constants.
    Named {
        loss: &'static Loss,
        options: Vec<f64>,
    },
    Custom(Arc<dyn SequenceLoss>),
}

impl Chosen {
    /// Refuses names and constants that are not known.
    pub(crate) fn new(choice: LossChoice, config: &BTreeMap<String, f64>) -> Result<Self> {
        match choice {
            LossChoice::Named(name) => {
                let loss = Loss::find(&name)?;
                Ok(Self::Named { loss, options: loss.read_options(config)? })
            }
            LossChoice::Custom(loss) => Ok(Self::Custom(loss)),
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        match self {
            Self::Named { loss, options } => match &loss.rule {
                Rule::Token(rule) => View::Tokens(TokenLoss { loss, rule, options }),
                Rule::Datum(rule) => View::Datum(DatumLoss::Named { loss, rule, options }),
            },
            Self::Custom(loss) => View::Datum(DatumLoss::Custom(&**loss)),
        }
    }
}

/// A loss by how much of a datum it looks at.
#[derive(Debug)]
pub(crate) enum View<'a> {
    Tokens(TokenLoss<'a>),
    Datum(DatumLoss<'a>),
}

/// A loss that is a sum over tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenLoss<'a> {
    loss: &'static Loss,
    pub(crate) rule: &'static TokenRule,
    options: &'a [f64],
}

impl TokenLoss<'_> {
    /// What it reads of a datum.
    pub(crate) fn columns<'d>(&self, datum: &'d Datum) -> Vec<Option<&'d [f32]>> {
        self.loss.columns(datum)
    }

    /// What it sees of one token; `inputs` is overwritten.
    pub(crate) fn term<'i>(
        &'i self,
        columns: &[Option<&[f32]>],
        index: usize,
        logprob: f32,
        inputs: &'i mut Vec<f64>,
    ) -> Term<'i> {
        self.loss.fill(columns, index, self.options, inputs);
        Term { logprob: f64::from(logprob), inputs, options: self.options }
    }
}

/// A loss that is a sum over datums.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DatumLoss<'a> {
    Named { loss: &'static Loss, rule: &'static DatumRule, options: &'a [f64] },
    Custom(&'a dyn SequenceLoss),
}

impl DatumLoss<'_> {
    /// The value of a datum's loss; `coefficients` are overwritten, with zeros where there is an error.
    pub(crate) fn evaluate(
        &self,
        datum: &Datum,
        logprobs: &[f32],
        coefficients: &mut [f32],
    ) -> Result<Evaluation, String> {
        coefficients.fill(0.0);
        let evaluated = match self {
            Self::Named { loss, rule, options } => {
                let terms = Terms::new(loss, options, datum, Some(logprobs));
                let mut exact = vec![0.0; coefficients.len()];
                let evaluation = (rule.evaluate)(&terms, &mut exact);
                for (coefficient, exact) in coefficients.iter_mut().zip(exact) {
                    *coefficient = f32_of(exact);
                }
                Ok(evaluation)
            }
            Self::Custom(loss) => loss.evaluate(datum, logprobs, coefficients),
        };
        let checked = evaluated.and_then(|evaluation| {
            check(&evaluation, datum.per_row, logprobs, coefficients)?;
            Ok(evaluation)
        });
        if checked.is_err() {
            coefficients.fill(0.0);
        }
        checked
    }
}

/// Refuses what would spoil the weights, and metrics that nobody could add up. Metrics may be anything: a mean of
/// nothing is not a number.
fn check(
    evaluation: &Evaluation,
    per_row: usize,
    logprobs: &[f32],
    coefficients: &[f32],
) -> Result<(), String> {
    if let Some(at) = logprobs.iter().position(|logprob| !logprob.is_finite()) {
        let (token, logprob) = (at / per_row, logprobs[at]);
        return Err(format!("the logprob of token {token} is not finite: {logprob}"));
    }
    if !evaluation.loss.is_finite() {
        return Err(format!("the loss is not finite: {}", evaluation.loss));
    }
    if let Some(at) = coefficients.iter().position(|coefficient| !coefficient.is_finite()) {
        let (token, coefficient) = (at / per_row, coefficients[at]);
        return Err(format!("the loss's gradient is not finite at token {token}: {coefficient}"));
    }
    for (name, _) in &evaluation.metrics {
        if Reduction::of(name).is_none() {
            return Err(format!("the metric {name} does not end in :sum, :mean, :max or :min"));
        }
    }
    Ok(())
}
