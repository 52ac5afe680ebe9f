//! What a datum gives to its loss, as arrays.

use tinsmith_types::tensor::Values;

use super::{array::Array, evaluate::failed};
use crate::{Datum, Error, Result, TensorData, datum::TARGETS};

/// The input of this name; what a sparse one does not list is 0.
pub(super) fn input(datum: &Datum, name: &str) -> Result<Array> {
    let Some(tensor) = datum.input(name) else {
        let message = format!("a datum has no loss input {name:?}, which the loss reads");
        return Err(Error::Validation { message });
    };
    array(tensor).map_err(|message| failed(format!("the loss input {name:?}: {message}")))
}

/// A tensor with all its values.
pub(super) fn array(tensor: &TensorData) -> Result<Array, String> {
    let dense = tensor.to_dense(0).map_err(|error| error.to_string())?;
    let numbers = match dense.values() {
        Values::Float32(values) => values.iter().map(|value| f64::from(*value)).collect(),
        Values::Int64(values) => values.iter().map(|value| wide(*value)).collect(),
    };
    Array::new(tensor.shape().to_vec(), numbers)
}

#[expect(clippy::cast_precision_loss, reason = "token ids and counts are far below 2^53")]
fn wide(value: i64) -> f64 {
    value as f64
}

/// Given logprobs of each datum in the shape of its `target_tokens`.
pub(super) fn shaped(data: &[Datum], logprobs: &[Vec<f64>]) -> Result<Vec<Array>> {
    if data.len() != logprobs.len() {
        let (datums, logprobs) = (data.len(), logprobs.len());
        return Err(failed(format!("{datums} datums with the logprobs of {logprobs}")));
    }
    let shaped = |(datum, logprobs): (&Datum, &Vec<f64>)| {
        let shape = datum.input(TARGETS).map(|targets| targets.shape().to_vec());
        let shape = shape.unwrap_or_else(|| vec![logprobs.len()]);
        Array::new(shape, logprobs.clone())
            .map_err(|message| failed(format!("logprobs in the shape of target_tokens: {message}")))
    };
    data.iter().zip(logprobs).map(shaped).collect()
}
