//! Logprobs of datums and, unless forward-only, their gradients.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use tinsmith_engine::{Backend, Datum, LossChoice, Work};
use tinsmith_store::{Digest, Failure};
use tinsmith_types::{
    ids::ModelId,
    proto::{self, ArrayRecord, ForwardBackwardOutput, ForwardBackwardRequest},
};

use crate::{
    convert,
    custom_loss::{self, CustomLoss},
    worker::{Worker, server_failure, user_failure},
};

const TARGETS: &str = "target_tokens";
const WEIGHTS: &str = "weights";

pub(crate) fn work<B: Backend>(
    worker: &Worker<B>,
    id: &ModelId,
    request: &ForwardBackwardRequest,
    forward_only: bool,
) -> Result<Work, Failure> {
    let run = worker.runs.get(id).ok_or_else(|| server_failure("the run is gone".to_owned()))?;
    if request.loss_fn == custom_loss::NAME {
        let loss = CustomLoss::of(request, worker.config.custom_loss_limits)?;
        let read = |datum: &proto::Datum| {
            let arrays = loss.arrays(datum)?;
            Ok(Datum { arrays, ..read(datum, &[])? })
        };
        let datums = all(request, read)?;
        let (loss, config) = (LossChoice::Custom(Arc::new(loss)), BTreeMap::new());
        return Ok(Work::ForwardBackward { run: run.key, datums, loss, config, forward_only });
    }
    let inputs: Vec<_> = tinsmith_engine::loss_inputs(&request.loss_fn)
        .map_err(|error| user_failure(error.to_string()))?
        .collect();
    let datums = all(request, |datum| read(datum, &inputs))?;
    Ok(Work::ForwardBackward {
        run: run.key,
        datums,
        loss: request.loss_fn.as_str().into(),
        config: config(request)?,
        forward_only,
    })
}

/// Tokens of a batch's inputs.
pub(crate) fn tokens(request: &ForwardBackwardRequest) -> u64 {
    let chunks = request.data.iter().flat_map(|datum| &datum.model_input);
    let tokens = chunks.map(|chunk| match &chunk.chunk {
        Some(proto::chunk::Chunk::EncodedText(text)) => text.tokens.len() / size_of::<i32>(),
        Some(proto::chunk::Chunk::Image(_) | proto::chunk::Chunk::Dmel(_)) | None => 0,
    });
    tokens.sum::<usize>() as u64
}

/// All datums of a request; what is wrong with one names it.
fn all(
    request: &ForwardBackwardRequest,
    read: impl Fn(&proto::Datum) -> Result<Datum, String>,
) -> Result<Vec<Datum>, Failure> {
    let one = |(index, datum)| {
        read(datum).map_err(|message| user_failure(format!("data[{index}].{message}")))
    };
    request.data.iter().enumerate().map(one).collect()
}

/// A datum with the values that its loss reads; others may be anything.
fn read(datum: &proto::Datum, inputs: &[&str]) -> Result<Datum, String> {
    let tokens = convert::tokens(&datum.model_input)?;
    let tensor =
        datum.loss_fn_inputs.get(TARGETS).ok_or("loss_fn_inputs: target_tokens is missing")?;
    let targets = convert::token_ids(TARGETS, tensor)?;
    let per_row = targets.len().checked_div(tokens.len()).unwrap_or(1).max(1);
    let mut values = BTreeMap::new();
    for name in inputs {
        if let Some(tensor) = datum.loss_fn_inputs.get(*name) {
            values.insert((*name).to_owned(), convert::floats(name, tensor)?);
        }
    }
    // A target that a sparse tensor does not list has weight 0, whether or not weights are given.
    if inputs.contains(&WEIGHTS)
        && !values.contains_key(WEIGHTS)
        && let Some(weights) = convert::listed(tensor)
    {
        values.insert(WEIGHTS.to_owned(), weights);
    }
    Ok(Datum { tokens, targets, per_row, values, arrays: Vec::new() })
}

/// The newer map wins; older clients fill only the one that holds numbers.
fn config(request: &ForwardBackwardRequest) -> Result<BTreeMap<String, f64>, Failure> {
    let mut config = request.loss_fn_config.clone();
    for (name, value) in &request.loss_fn_config_v2 {
        match &value.value {
            Some(proto::loss_config_value::Value::Number(number)) => {
                config.insert(name.clone(), *number);
            }
            Some(proto::loss_config_value::Value::Text(_)) | None => {
                let loss = &request.loss_fn;
                let message = format!("loss_fn_config.{name}: {loss} takes numbers only");
                return Err(user_failure(message));
            }
        }
    }
    Ok(config)
}

/// Protobuf: logprobs in the shape of the targets; its bytes are what a replay has to meet.
pub(crate) fn result(
    request: &ForwardBackwardRequest,
    logprobs: &[Vec<f32>],
    metrics: BTreeMap<String, f64>,
) -> (Bytes, Option<Digest>) {
    let arrays = logprobs.iter().map(Vec::as_slice).zip(request.data.iter().map(trailing_shape));
    let output = ForwardBackwardOutput {
        loss_fn_output_type: "ArrayRecord".to_owned(),
        loss_fn_outputs: ArrayRecord::of_f32("logprobs", arrays),
        metrics,
    };
    let bytes = Bytes::from(output.encode_to_vec());
    let digest = convert::digest(&bytes);
    (bytes, Some(digest))
}

/// The shape of a datum's targets without their first dimension.
fn trailing_shape(datum: &proto::Datum) -> &[i64] {
    let shape = datum.loss_fn_inputs.get(TARGETS).map(|tensor| tensor.shape.as_slice());
    shape.and_then(|shape| shape.get(1..)).unwrap_or_default()
}
