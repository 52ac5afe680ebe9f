//! What a policy read and did, in turns: one datum for the losses on sampled tokens.

use crate::{Advantages, Datum, Error, Result};

use super::TARGETS;

/// Tokens that an environment gave, and tokens that the policy answered, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trajectory {
    tokens: Vec<u32>,
    /// Of each token; 0 for those that were read.
    logprobs: Vec<f32>,
    advantages: Vec<f32>,
    /// 1 for tokens that the policy drew.
    mask: Vec<f32>,
}

impl Trajectory {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens that the policy reads and is not trained on: a prompt, the result of a tool.
    #[must_use]
    pub fn observe(mut self, tokens: &[u32]) -> Self {
        self.tokens.extend(tokens);
        for values in [&mut self.logprobs, &mut self.advantages, &mut self.mask] {
            values.resize(self.tokens.len(), 0.0);
        }
        self
    }

    /// Tokens that the policy drew, each with the logprob that it had then.
    ///
    /// # Errors
    ///
    /// Logprobs or advantages that are not one for each token.
    pub fn act(
        mut self,
        tokens: &[u32],
        logprobs: &[f32],
        advantages: impl Into<Advantages>,
    ) -> Result<Self> {
        if logprobs.len() != tokens.len() {
            let (logprobs, tokens) = (logprobs.len(), tokens.len());
            return Err(Error::validation(format!(
                "there are {logprobs} logprobs for {tokens} tokens"
            )));
        }
        self.advantages.extend(advantages.into().each(tokens.len())?);
        self.tokens.extend(tokens);
        self.logprobs.extend(logprobs);
        self.mask.resize(self.tokens.len(), 1.0);
        Ok(self)
    }

    /// The datum, with `logprobs` and `advantages`.
    ///
    /// # Errors
    ///
    /// Fewer than two tokens, or none that the policy drew after the first.
    pub fn datum(&self) -> Result<Datum> {
        let Some((last, read)) = self.tokens.split_last().filter(|(_, read)| !read.is_empty())
        else {
            return Err(Error::validation("a trajectory needs at least two tokens"));
        };
        if self.mask[1..].iter().all(|mask| *mask == 0.0) {
            let message = "a trajectory needs tokens that the policy drew after the first";
            return Err(Error::validation(message));
        }
        let mut targets = read[1..].to_vec();
        targets.push(*last);
        Ok(Datum::new(read)
            .with_input(TARGETS, targets)
            .with_input("logprobs", &self.logprobs[1..])
            .with_input("advantages", &self.advantages[1..]))
    }

    /// [`Trajectory::datum`] with the array of `gspo` that says which tokens the sequence's ratio is of: all that
    /// the policy drew, those with advantage 0 too.
    ///
    /// # Errors
    ///
    /// As [`Trajectory::datum`].
    pub fn datum_with_mask(&self) -> Result<Datum> {
        Ok(self.datum()?.with_input("sequence_ratio_mask", &self.mask[1..]))
    }
}
