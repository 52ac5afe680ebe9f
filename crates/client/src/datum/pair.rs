//! Two answers to one prompt, of which one is preferred: what DPO and reward models learn from.

use crate::{Datum, Error, Keep, Result};

/// A preferred and a rejected answer, each as a datum that weighs the answer's tokens with 1.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferencePair {
    /// With the preferred answer.
    pub chosen: Datum,
    /// With the rejected one.
    pub rejected: Datum,
}

impl PreferencePair {
    /// Both answers after one prompt.
    ///
    /// # Errors
    ///
    /// An empty prompt or answer.
    pub fn new(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> Result<Self> {
        Ok(Self {
            chosen: Datum::completion(prompt, chosen)?,
            rejected: Datum::completion(prompt, rejected)?,
        })
    }

    /// Both cut to a length.
    ///
    /// # Errors
    ///
    /// As [`Datum::truncated`].
    pub fn truncated(&self, tokens_max: usize, keep: Keep) -> Result<Self> {
        Ok(Self {
            chosen: self.chosen.truncated(tokens_max, keep)?,
            rejected: self.rejected.truncated(tokens_max, keep)?,
        })
    }

    /// The datums of one request: the chosen ones have even places, each rejected one follows its own.
    pub fn interleaved(pairs: &[Self]) -> Vec<Datum> {
        pairs.iter().flat_map(|pair| [pair.chosen.clone(), pair.rejected.clone()]).collect()
    }

    /// What belongs to each pair, of something that has one value for each datum of [`Self::interleaved`].
    ///
    /// # Errors
    ///
    /// An odd number of values.
    pub fn paired<T>(values: Vec<T>) -> Result<Vec<(T, T)>> {
        if values.len() % 2 == 1 {
            let values = values.len();
            return Err(Error::validation(format!(
                "{values} values are not two for each preference pair"
            )));
        }
        let mut values = values.into_iter();
        Ok(std::iter::from_fn(|| values.next().zip(values.next())).collect())
    }
}
