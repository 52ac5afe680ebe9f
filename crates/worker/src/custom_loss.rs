//! Runs a loss that a client sent, inside the engine.

use std::sync::Arc;

use tinsmith_engine::{Array, Datum, Evaluation, SequenceLoss};
use tinsmith_graph::{Dtype, Input, Limits, Loss, Tensor};
use tinsmith_store::Failure;
use tinsmith_types::{
    custom_losses::CreateCustomLossRequest,
    proto::{self, ForwardBackwardRequest, loss_config_value::Value},
};

use crate::{
    convert,
    worker::{server_failure, user_failure},
};

/// The `loss_fn` that asks for one.
pub(crate) const NAME: &str = "custom";
/// Where the server has put a copy of the loss into the request.
const LOSS: &str = "loss";

/// A loss that a client sent.
#[derive(Debug)]
pub(crate) struct CustomLoss {
    loss: Loss,
    limits: Limits,
}

impl CustomLoss {
    /// The loss of a request.
    pub(crate) fn of(request: &ForwardBackwardRequest, limits: Limits) -> Result<Self, Failure> {
        let sent = request.loss_fn_config_v2.get(LOSS).and_then(|value| value.value.as_ref());
        let Some(Value::Text(sent)) = sent else {
            return Err(server_failure("the request has no copy of its custom loss".to_owned()));
        };
        let sent: CreateCustomLossRequest = serde_json::from_str(sent)
            .map_err(|error| server_failure(format!("the custom loss is damaged: {error}")))?;
        let input = |input: &tinsmith_types::custom_losses::CustomLossInput| Input {
            name: input.name.clone(),
            rank: input.rank,
        };
        let inputs = sent.inputs.iter().map(input).collect();
        let loss = Loss::new(inputs, &sent.graph, &limits)
            .map_err(|error| user_failure(error.to_string()))?;
        Ok(Self { loss, limits })
    }

    /// What it reads of a datum beside the logprobs.
    pub(crate) fn arrays(&self, datum: &proto::Datum) -> Result<Vec<Array>, String> {
        let array = |input: &Input| {
            let tensor = datum.loss_fn_inputs.get(&input.name);
            let tensor =
                tensor.ok_or_else(|| format!("loss_fn_inputs.{} is missing", input.name))?;
            convert::array(&input.name, tensor)
        };
        self.loss.inputs().iter().skip(1).map(array).collect()
    }

    /// The logprobs in the shape that the loss declared.
    fn shape(&self, datum: &Datum) -> Vec<usize> {
        let rows = datum.tokens.len();
        let rank = self.loss.inputs().first().map_or(1, |logprobs| logprobs.rank);
        if rank == 1 { vec![rows] } else { vec![rows, datum.per_row] }
    }
}

impl SequenceLoss for CustomLoss {
    fn check(&self, datum: &Datum) -> Result<(), String> {
        let shape = self.shape(datum);
        if shape.len() == 1 && datum.per_row > 1 {
            let per_row = datum.per_row;
            return Err(format!(
                "target_tokens has {per_row} candidates a token, but the loss declared logprobs with rank 1"
            ));
        }
        for (input, array) in self.loss.inputs().iter().skip(1).zip(&datum.arrays) {
            if array.shape.len() != usize::from(input.rank) {
                return Err(format!(
                    "{} has the shape {:?}, but the loss declared it with rank {}",
                    input.name, array.shape, input.rank
                ));
            }
        }
        Ok(())
    }

    fn evaluate(
        &self,
        datum: &Datum,
        logprobs: &[f32],
        coefficients: &mut [f32],
    ) -> Result<Evaluation, String> {
        let logprobs = logprobs.iter().map(|logprob| f64::from(*logprob)).collect();
        let mut tensors = Vec::with_capacity(1 + datum.arrays.len());
        tensors.push(Tensor::new(Dtype::Float32, self.shape(datum), logprobs));
        for array in &datum.arrays {
            let dtype = if array.whole { Dtype::Int64 } else { Dtype::Float32 };
            tensors.push(Tensor::shared(dtype, array.shape.clone(), Arc::clone(&array.values)));
        }
        let tensors = tensors.into_iter().collect::<Result<Vec<_>, _>>();
        let evaluated = tensors.and_then(|tensors| self.loss.evaluate(&tensors, &self.limits));
        let evaluated = evaluated.map_err(|error| format!("custom loss: {error}"))?;
        for (coefficient, gradient) in coefficients.iter_mut().zip(&evaluated.gradient) {
            *coefficient = convert::float(*gradient);
        }
        let names = self.loss.metrics().map(|(name, _)| name.to_owned());
        Ok(Evaluation { loss: evaluated.loss, metrics: names.zip(evaluated.metrics).collect() })
    }
}
