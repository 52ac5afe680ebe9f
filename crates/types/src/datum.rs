//! One training example.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::model_input::ModelInput;
use crate::proto;
use crate::tensor::TensorData;

/// A training example in JSON. Provenance exists in protobuf only.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Datum {
    /// What the model reads.
    pub model_input: ModelInput,
    /// Arrays that the loss reads, by name.
    pub loss_fn_inputs: BTreeMap<String, TensorData>,
}

impl TryFrom<Datum> for proto::Datum {
    type Error = Error;

    fn try_from(datum: Datum) -> Result<Self, Error> {
        let model_input = (datum.model_input.chunks.into_iter().enumerate())
            .map(|(i, chunk)| {
                chunk.try_into().map_err(|e: Error| e.within(|| format!("model_input.chunks[{i}]")))
            })
            .collect::<Result<_, _>>()?;
        let loss_fn_inputs = (datum.loss_fn_inputs.into_iter())
            .map(|(name, tensor)| match tensor.try_into() {
                Ok(tensor) => Ok((name, tensor)),
                Err(error) => {
                    let error: Error = error;
                    Err(error.within(|| format!("loss_fn_inputs.{name}")))
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            model_input,
            loss_fn_inputs,
            model_input_spans: Vec::new(),
            loss_fn_input_spans: Vec::new(),
        })
    }
}
