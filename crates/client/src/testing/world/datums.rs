//! Forward passes that compute nothing: logprobs of the right shapes, and the loss that follows from them.

use tinsmith_types::{
    proto::{self, ArrayRecord, Tensor, pack::unpack_f32},
    training::{ForwardBackwardRequest, ForwardRequest},
};

use super::{Reply, Seen};

/// Values of an array that a mock server makes up.
const CELLS_MAX: i64 = 1 << 24;

/// The request in a body of any form.
pub(super) fn request(seen: &Seen) -> Result<proto::ForwardBackwardRequest, Reply> {
    let unreadable = |error: &dyn std::fmt::Display| Reply::refused(422, error.to_string());
    if let Some(request) = seen.forward_backward() {
        return Ok(request);
    }
    let converted = if seen.body.get("forward_input").is_some() {
        serde_json::from_value::<ForwardRequest>(seen.body.clone())
            .map_err(|error| unreadable(&error))?
            .try_into()
    } else {
        serde_json::from_value::<ForwardBackwardRequest>(seen.body.clone())
            .map_err(|error| unreadable(&error))?
            .try_into()
    };
    converted.map_err(|error: tinsmith_types::Error| unreadable(&error))
}

/// For each datum, `logprobs` in the shape of its `target_tokens`: -0.25, -0.5, … -2, and again. The loss is the
/// weighted sum.
pub(super) fn output(
    request: &proto::ForwardBackwardRequest,
) -> Result<proto::ForwardBackwardOutput, Reply> {
    if request.data.is_empty() {
        return Err(Reply::refused(400, "`data` is empty"));
    }
    let mut arrays = Vec::with_capacity(request.data.len());
    let mut loss = 0.0;
    for (i, datum) in request.data.iter().enumerate() {
        let shape = match datum.loss_fn_inputs.get("target_tokens") {
            Some(targets) => targets.shape.clone(),
            None => vec![length(datum)],
        };
        let cells = shape.iter().try_fold(1_i64, |cells, extent| cells.checked_mul(*extent));
        let cells = cells.filter(|cells| (1..=CELLS_MAX).contains(cells));
        let cells = cells.and_then(|cells| usize::try_from(cells).ok()).ok_or_else(|| {
            Reply::refused(400, format!("data[{i}] has targets of the shape {shape:?}"))
        })?;
        let logprobs: Vec<f32> =
            (-8_i8..0).rev().map(|k| f32::from(k) / 4.0).cycle().take(cells).collect();
        loss -= weighted(&logprobs, datum.loss_fn_inputs.get("weights"));
        arrays.push((logprobs, shape));
    }
    let trailing =
        arrays.iter().map(|(values, shape)| (&values[..], shape.get(1..).unwrap_or(&[])));
    let mut records = ArrayRecord::of_f32("logprobs", trailing);
    for record in &mut records {
        "ArrayRecord".clone_into(&mut record.type_tag);
    }
    Ok(proto::ForwardBackwardOutput {
        loss_fn_output_type: "ArrayRecord".to_owned(),
        loss_fn_outputs: records,
        metrics: [("loss:sum".to_owned(), loss)].into(),
    })
}

/// Each logprob with its weight, where there are dense ones, and 1 otherwise.
fn weighted(logprobs: &[f32], weights: Option<&Tensor>) -> f64 {
    let weights = weights.and_then(|weights| unpack_f32(weights.stored()).ok());
    let weight = |i: usize| weights.as_ref().and_then(|weights| weights.get(i)).copied();
    let terms = logprobs.iter().enumerate();
    terms.map(|(i, logprob)| f64::from(*logprob) * f64::from(weight(i).unwrap_or(1.0))).sum()
}

/// Tokens of a datum's input.
fn length(datum: &proto::Datum) -> i64 {
    let chunks = datum.model_input.iter().filter_map(|chunk| chunk.chunk.as_ref());
    chunks
        .map(|chunk| match chunk {
            proto::chunk::Chunk::EncodedText(text) => {
                i64::try_from(text.tokens.len() / 4).unwrap_or(i64::MAX)
            }
            proto::chunk::Chunk::Image(image) => image.expected_tokens.unwrap_or(1).into(),
            proto::chunk::Chunk::Dmel(_) => 1,
        })
        .sum()
}
