//! Logprobs of datums and, unless forward-only, their gradients.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use tinsmith_engine::{Backend, Datum, Work};
use tinsmith_store::{Digest, Failure};
use tinsmith_types::{
    ids::ModelId,
    proto::{self, ArrayRecord, BatchedTensor, ForwardBackwardOutput, ForwardBackwardRequest},
};

use crate::{
    convert,
    worker::{Worker, server_failure, user_failure},
};

pub(crate) fn work<B: Backend>(
    worker: &Worker<B>,
    id: &ModelId,
    request: &ForwardBackwardRequest,
    forward_only: bool,
) -> Result<Work, Failure> {
    let run = worker.runs.get(id).ok_or_else(|| server_failure("the run is gone".to_owned()))?;
    let mut datums = Vec::with_capacity(request.data.len());
    for (index, datum) in request.data.iter().enumerate() {
        let place = |message: String| user_failure(format!("data[{index}].{message}"));
        datums.push(read(datum).map_err(place)?);
    }
    Ok(Work::ForwardBackward {
        run: run.key,
        datums,
        loss: request.loss_fn.clone(),
        config: config(request)?,
        forward_only,
    })
}

fn read(datum: &proto::Datum) -> Result<Datum, String> {
    let tokens = convert::tokens(&datum.model_input)?;
    let targets = datum
        .loss_fn_inputs
        .get("target_tokens")
        .ok_or("loss_fn_inputs: target_tokens is missing")?;
    let targets = convert::token_ids("target_tokens", targets)?;
    let per_row = targets.len().checked_div(tokens.len()).unwrap_or(1).max(1);
    let mut values = BTreeMap::new();
    for (name, tensor) in &datum.loss_fn_inputs {
        if name != "target_tokens" {
            values.insert(name.clone(), convert::floats(name, tensor)?);
        }
    }
    Ok(Datum { tokens, targets, per_row, values })
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

/// Protobuf, one record of logprobs; its bytes are what a replay has to meet.
pub(crate) fn result(
    logprobs: &[Vec<f32>],
    metrics: BTreeMap<String, f64>,
) -> (Bytes, Option<Digest>) {
    let tensor = BatchedTensor::from_f32(logprobs.iter().map(Vec::as_slice), Vec::new());
    let record = ArrayRecord {
        type_tag: String::new(),
        fields: BTreeMap::from([("logprobs".to_owned(), tensor)]),
        num_datums: i64::try_from(logprobs.len()).unwrap_or(i64::MAX),
    };
    let output = ForwardBackwardOutput {
        loss_fn_output_type: "ArrayRecord".to_owned(),
        loss_fn_outputs: vec![record],
        metrics,
    };
    let bytes = Bytes::from(output.encode_to_vec());
    let digest = convert::digest(&bytes);
    (bytes, Some(digest))
}
