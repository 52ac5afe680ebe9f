//! What `forward` and `forward_backward` give.

use std::collections::BTreeMap;

use tinsmith_types::training as wire;

use crate::{Error, Result, TensorData};

/// What `forward` and `forward_backward` give.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardBackwardOutput {
    /// The named outputs of each datum, in the order of the datums; `logprobs` `[n]` (or `[n, k]`) is one.
    pub outputs: Vec<BTreeMap<String, TensorData>>,
    /// By `name:reduction`; `loss:sum` is always there.
    pub metrics: BTreeMap<String, f64>,
}

impl ForwardBackwardOutput {
    /// The sum of the datums' losses.
    pub fn loss(&self) -> Option<f64> {
        self.metrics.get("loss:sum").or_else(|| self.metrics.get("loss:mean")).copied()
    }

    /// Logprobs of one datum's targets, row after row.
    ///
    /// # Errors
    ///
    /// There is no such datum, or it has none.
    pub fn logprobs(&self, datum: usize) -> Result<Vec<f32>> {
        let outputs = self.outputs.get(datum).ok_or_else(|| {
            Error::validation(format!(
                "there is no datum {datum}: there are {}",
                self.outputs.len()
            ))
        })?;
        outputs
            .get("logprobs")
            .and_then(TensorData::as_f32)
            .map(<[f32]>::to_vec)
            .ok_or_else(|| Error::response(format!("datum {datum} has no logprobs in float32")))
    }

    /// Logprobs of every datum's targets.
    ///
    /// # Errors
    ///
    /// One has none.
    pub fn all_logprobs(&self) -> Result<Vec<Vec<f32>>> {
        (0..self.outputs.len()).map(|datum| self.logprobs(datum)).collect()
    }
}

impl TryFrom<wire::ForwardBackwardOutput> for ForwardBackwardOutput {
    type Error = Error;

    fn try_from(output: wire::ForwardBackwardOutput) -> Result<Self> {
        let outputs = output.loss_fn_outputs.into_iter().map(|outputs| {
            let outputs = outputs.into_iter().map(|(name, tensor)| {
                let tensor = tensor
                    .try_into()
                    .map_err(|error| Error::response(format!("output `{name}`: {error}")))?;
                Ok((name, tensor))
            });
            outputs.collect::<Result<BTreeMap<_, _>>>()
        });
        Ok(Self { outputs: outputs.collect::<Result<_>>()?, metrics: output.metrics })
    }
}
