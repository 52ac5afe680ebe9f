//! Training examples.

use std::collections::BTreeMap;

use tinsmith_types::proto::{self, Chunk, EncodedTextChunk, Tensor, chunk, pack::pack_i32};

use crate::{Error, Result};

/// One training example: position `t` of the input predicts row `t` of the loss's inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Datum {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    values: BTreeMap<String, Vec<f32>>,
}

impl Datum {
    /// For `cross_entropy`. All `[n]`; `targets` are already shifted: `targets[t]` follows `tokens[t]`.
    ///
    /// # Errors
    ///
    /// Lengths that differ, or no tokens.
    pub fn next_token(tokens: &[u32], targets: &[u32], weights: &[f32]) -> Result<Self> {
        Self::new(tokens, targets, [("weights", weights)])
    }

    /// A completion that follows a prompt, in one: shifts, and weighs the completion's tokens with 1.
    ///
    /// # Errors
    ///
    /// An empty prompt or completion.
    pub fn completion(prompt: &[u32], completion: &[u32]) -> Result<Self> {
        if prompt.is_empty() || completion.is_empty() {
            return Err(invalid("a prompt and a completion need at least one token each"));
        }
        let tokens: Vec<u32> = prompt.iter().chain(completion).copied().collect();
        let mut weights = vec![0.0; prompt.len() - 1];
        weights.resize(tokens.len() - 1, 1.0);
        Self::next_token(&tokens[..tokens.len() - 1], &tokens[1..], &weights)
    }

    /// For `importance_sampling`. All `[n]`: the sampler's logprobs of the targets, and advantages.
    ///
    /// # Errors
    ///
    /// Lengths that differ, or no tokens.
    pub fn policy(
        tokens: &[u32],
        targets: &[u32],
        logprobs: &[f32],
        advantages: &[f32],
    ) -> Result<Self> {
        Self::new(tokens, targets, [("logprobs", logprobs), ("advantages", advantages)])
    }

    fn new<const N: usize>(
        tokens: &[u32],
        targets: &[u32],
        values: [(&str, &[f32]); N],
    ) -> Result<Self> {
        if tokens.is_empty() {
            return Err(invalid("a datum needs at least one token"));
        }
        let lengths = values.iter().map(|(name, values)| (*name, values.len()));
        for (name, length) in lengths.chain([("target_tokens", targets.len())]) {
            if length != tokens.len() {
                let message = format!("{name} has {length} values for {} tokens", tokens.len());
                return Err(Error::Validation { message });
            }
        }
        let values = values.map(|(name, values)| (name.to_owned(), values.to_vec()));
        Ok(Self { tokens: tokens.to_vec(), targets: targets.to_vec(), values: values.into() })
    }

    /// Its wire form.
    pub(crate) fn into_proto(self) -> Result<proto::Datum> {
        let length =
            i64::try_from(self.tokens.len()).map_err(|_| invalid("a datum is too long"))?;
        let targets: Vec<i64> = self.targets.iter().map(|token| i64::from(*token)).collect();
        let shape = vec![length];
        let mut inputs: BTreeMap<String, Tensor> = (self.values.iter())
            .map(|(name, values)| (name.clone(), Tensor::dense_f32(values, shape.clone())))
            .collect();
        inputs.insert("target_tokens".to_owned(), Tensor::dense_i64(&targets, shape));
        Ok(proto::Datum {
            model_input: vec![text(&self.tokens)?],
            loss_fn_inputs: inputs,
            model_input_spans: Vec::new(),
            loss_fn_input_spans: Vec::new(),
        })
    }
}

fn text(tokens: &[u32]) -> Result<Chunk> {
    let tokens = EncodedTextChunk { tokens: pack_i32(&signed(tokens)?) };
    Ok(Chunk { chunk: Some(chunk::Chunk::EncodedText(tokens)) })
}

/// Token ids travel as i32.
pub(crate) fn signed(tokens: &[u32]) -> Result<Vec<i32>> {
    let convert = |token: &u32| i32::try_from(*token);
    tokens
        .iter()
        .map(convert)
        .collect::<Result<_, _>>()
        .map_err(|_| invalid("a token id is too large"))
}

fn invalid(message: &str) -> Error {
    Error::Validation { message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_is_shifted_and_weighed() {
        let datum = Datum::completion(&[1, 2], &[3, 4]).unwrap();
        assert_eq!(datum, Datum::next_token(&[1, 2, 3], &[2, 3, 4], &[0.0, 1.0, 1.0]).unwrap());
    }

    #[test]
    fn wrong_lengths_stay_here() {
        let message = Datum::next_token(&[1, 2], &[2], &[1.0, 1.0]).unwrap_err().to_string();
        assert_eq!(message, "send the request: target_tokens has 1 values for 2 tokens");
        assert!(Datum::completion(&[], &[1]).is_err());
        assert!(Datum::policy(&[1], &[2], &[0.0], &[]).is_err());
    }
}
