//! Protobuf messages as JSON for people and for comparison, in the form in which recorded conversations hold
//! them: arrays unpacked, NaN as null, bytes in base64, 64-bit span numbers as text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::pack::{unpack_f32, unpack_i32, unpack_i64};
use super::{Dtype, chunk, loss_config_value, provenance_span, tensor};
use crate::{Error, proto};

/// A request, as `ForwardBackwardRequest`.
///
/// # Errors
///
/// Arrays whose bytes are no whole number of elements, a chunk of no kind.
pub fn request(message: &proto::ForwardBackwardRequest) -> Result<Value, Error> {
    let data = message.data.iter().map(datum).collect::<Result<Vec<_>, Error>>()?;
    let mut json = json!({
        "model_id": message.model_id,
        "seq_id": message.seq_id,
        "data": data,
        "loss_fn": message.loss_fn,
        "forward_only": message.forward_only,
    });
    if !message.loss_fn_config.is_empty() {
        json["loss_fn_config"] = json!(message.loss_fn_config);
    }
    if !message.loss_fn_config_v2.is_empty() {
        let settings = message.loss_fn_config_v2.iter().map(|(name, setting)| {
            let value = match &setting.value {
                Some(loss_config_value::Value::Number(number)) => json!({"number": number}),
                Some(loss_config_value::Value::Text(text)) => json!({"text": text}),
                None => json!({}),
            };
            (name.clone(), value)
        });
        json["loss_fn_config_v2"] = settings.collect();
    }
    Ok(json)
}

fn datum(datum: &proto::Datum) -> Result<Value, Error> {
    let model_input = datum.model_input.iter().map(piece).collect::<Result<Vec<_>, Error>>()?;
    let mut inputs = Map::new();
    for (name, array) in &datum.loss_fn_inputs {
        inputs.insert(name.clone(), tensor(array)?);
    }
    let mut json = json!({"model_input": model_input, "loss_fn_inputs": inputs});
    for (name, spans) in [
        ("model_input_spans", &datum.model_input_spans),
        ("loss_fn_input_spans", &datum.loss_fn_input_spans),
    ] {
        if !spans.is_empty() {
            json[name] = spans.iter().map(span).collect();
        }
    }
    Ok(json)
}

fn piece(piece: &proto::Chunk) -> Result<Value, Error> {
    Ok(
        match piece
            .chunk
            .as_ref()
            .ok_or_else(|| Error::value("model_input", "has an empty chunk"))?
        {
            chunk::Chunk::EncodedText(text) => {
                json!({"encoded_text": {"tokens(int32)": unpack_i32(&text.tokens)?}})
            }
            chunk::Chunk::Image(image) => json!({"image": {
                "data_b64": BASE64.encode(&image.data),
                "format": image.format,
                "expected_tokens": image.expected_tokens,
            "override_dimensions": image.override_dimensions.map(|dimensions| {
                json!({"width": dimensions.width, "height": dimensions.height})
            }),
            }}),
            chunk::Chunk::Dmel(audio) => json!({"dmel": {"dmel_b64": BASE64.encode(&audio.dmel)}}),
        },
    )
}

/// 64-bit numbers are texts here, and zero is left out.
fn span(span: &proto::ProvenanceSpan) -> Value {
    let json = |sequence_id: &str, offset: i64, length: i64| {
        let number = |value: i64| (value != 0).then(|| value.to_string());
        json!({"sequence_id": sequence_id, "offset": number(offset), "length": number(length)})
    };
    match &span.span {
        Some(provenance_span::Span::PromptTokens(span)) => {
            json!({"prompt_tokens": json(&span.sequence_id, span.offset, span.length)})
        }
        Some(provenance_span::Span::SampledTokens(span)) => {
            json!({"sampled_tokens": json(&span.sequence_id, span.offset, span.length)})
        }
        None => json!({}),
    }
}

fn tensor(array: &proto::Tensor) -> Result<Value, Error> {
    let mut json = json!({"dtype": array.dtype().as_str_name(), "shape": array.shape});
    let values = values(array.stored(), array.dtype())?;
    match &array.encoding {
        Some(tensor::Encoding::SparseCsr(csr)) => {
            json["sparse_csr"] = json!({
                "values": values,
                "crow_indices(int64)": unpack_i64(&csr.crow_indices)?,
                "col_indices(int64)": unpack_i64(&csr.col_indices)?,
            });
        }
        Some(tensor::Encoding::Dense(_)) => json["dense"] = values,
        None => {}
    }
    Ok(json)
}

fn values(bytes: &[u8], dtype: Dtype) -> Result<Value, Error> {
    match dtype {
        Dtype::Float32 => floats(bytes),
        Dtype::Int64 => Ok(json!(unpack_i64(bytes)?)),
        Dtype::Int32 => Ok(json!(unpack_i32(bytes)?)),
        Dtype::Unspecified | Dtype::Bfloat16 => {
            Err(Error::value("dtype", format!("cannot be described: {}", dtype.as_str_name())))
        }
    }
}

/// NaN is null; the digits are those of the exact value.
fn floats(bytes: &[u8]) -> Result<Value, Error> {
    Ok(unpack_f32(bytes)?.into_iter().map(|value| json!(f64::from(value))).collect())
}

/// A result, as `ForwardBackwardOutput`.
///
/// # Errors
///
/// Arrays whose bytes are no whole number of elements.
pub fn output(message: &proto::ForwardBackwardOutput) -> Result<Value, Error> {
    let mut records = Vec::new();
    for record in &message.loss_fn_outputs {
        let mut fields = Map::new();
        for (name, batch) in &record.fields {
            let field = json!({
                "dtype": batch.dtype().as_str_name(),
                "data": values(&batch.data, batch.dtype())?,
                "offsets(int64 bytes)": unpack_i64(&batch.offsets)?,
                "trailing_shape": batch.trailing_shape,
            });
            fields.insert(name.clone(), field);
        }
        let (type_tag, num_datums) = (&record.type_tag, record.num_datums);
        records.push(json!({"type_tag": type_tag, "num_datums": num_datums, "fields": fields}));
    }
    Ok(json!({
        "loss_fn_output_type": message.loss_fn_output_type,
        "loss_fn_outputs": records,
        "metrics": message.metrics,
    }))
}

/// A result, as `SampleResponse`.
///
/// # Errors
///
/// Arrays whose bytes are no whole number of elements.
pub fn sample(message: &proto::SampleResponse) -> Result<Value, Error> {
    let mut sequences = Vec::new();
    for sequence in &message.sequences {
        sequences.push(json!({
            "stop_reason": sequence.stop_reason().as_str_name(),
            "tokens(int32)": unpack_i32(&sequence.tokens)?,
            "logprobs(float32)": sequence.logprobs.as_deref().map(floats).transpose()?,
            "topk_sampled_logprobs": sequence.topk_sampled_logprobs.as_ref().map(topk).transpose()?,
        }));
    }
    let alternatives =
        message.prompt_alt_tokens.as_ref().map(|alternatives| -> Result<Value, Error> {
            let array = |array: &Option<proto::Tensor>| array.as_ref().map(tensor).transpose();
            let (tokens, logprobs) = (array(&alternatives.tokens)?, array(&alternatives.logprobs)?);
            Ok(json!({"tokens": tokens, "logprobs": logprobs}))
        });
    Ok(json!({
        "sequences": sequences,
        "prompt_logprobs(float32, null=NaN)":
            message.prompt_logprobs.as_deref().map(floats).transpose()?,
        "topk_prompt_logprobs": message.topk_prompt_logprobs.as_ref().map(topk).transpose()?,
        "prompt_cache_hit_tokens": message.prompt_cache_hit_tokens,
        "target_prompt_logprobs": message.target_prompt_logprobs.as_ref().map(tensor).transpose()?,
        "prompt_alt_tokens": alternatives.transpose()?,
    }))
}

fn topk(topk: &proto::TopkLogprobs) -> Result<Value, Error> {
    Ok(json!({
        "k": topk.k,
        "length": topk.length,
        "token_ids(int32)": unpack_i32(&topk.token_ids)?,
        "logprobs(float32)": floats(&topk.logprobs)?,
    }))
}
