//! What a penalty looks at, and how its numbers become one.

use super::{super::op::count, failed, matrix, total};
use crate::{Datum, Result, custom::Var};

/// How the numbers of a batch become one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Reduction {
    /// They are added, as the losses of the API are.
    #[default]
    Sum,
    /// They are averaged over all numbers of all datums.
    Mean,
}

/// What a norm is taken of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Target {
    /// Log-probabilities.
    #[default]
    Logprobs,
    /// Probabilities, `exp(logprobs)`.
    Probabilities,
}

impl Target {
    pub(super) fn of(self, logprobs: &[Var]) -> Vec<Var> {
        match self {
            Self::Logprobs => logprobs.to_vec(),
            Self::Probabilities => logprobs.iter().map(Var::exp).collect(),
        }
    }
}

/// The tokens that count, and how.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Scope {
    /// How their numbers become one.
    pub reduction: Reduction,
    /// A loss input (such as `weights`) that is not 0 at the tokens that count; without it, all do.
    pub mask: Option<String>,
}

impl Scope {
    /// All tokens, added.
    #[must_use]
    pub fn sum() -> Self {
        Self::default()
    }

    /// All tokens, averaged.
    #[must_use]
    pub fn mean() -> Self {
        Self { reduction: Reduction::Mean, mask: None }
    }

    /// Only the tokens where this loss input is not 0.
    #[must_use]
    pub fn masked_by(mut self, input: impl Into<String>) -> Self {
        self.mask = Some(input.into());
        self
    }

    /// One number of those of each datum: of each logprob, or of each token.
    pub(super) fn reduce(&self, data: &[Datum], parts: &[Var]) -> Result<Var> {
        let mut sums = Vec::with_capacity(parts.len());
        let mut counted = 0.0;
        for (datum, part) in data.iter().zip(parts) {
            let Some(mask) = &self.mask else {
                counted += count(part.count());
                sums.push(part.sum());
                continue;
            };
            let mask = mask_of(datum, mask, part)?;
            counted += mask.to_vec().iter().sum::<f64>();
            sums.push(mask.choose(part, 0.0).sum());
        }
        let sum = total(&sums)?;
        match self.reduction {
            Reduction::Sum => Ok(sum),
            Reduction::Mean if counted > 0.0 => Ok(sum / counted),
            Reduction::Mean => Err(failed("no token counts, so there is no mean")),
        }
    }
}

/// 1 where the input is not 0; a token with several candidates counts if one of them does.
fn mask_of(datum: &Datum, name: &str, part: &Var) -> Result<Var> {
    let input = part.input(datum, name)?;
    let (shape, expected) = (input.shape(), part.shape());
    let counts = |numbers: &[f64]| f64::from(numbers.iter().any(|number| *number != 0.0));
    if shape == expected {
        return Ok(input.not_equal(0.0));
    }
    let tokens = shape.split_last().filter(|(_, tokens)| **tokens == *expected);
    let Some((candidates, _)) = tokens else {
        return Err(failed(format!(
            "the mask {name} has the shape {shape:?} for values of {expected:?}"
        )));
    };
    let numbers = input.to_vec().chunks((*candidates).max(1)).map(counts).collect();
    matrix(part, expected, numbers)
}
