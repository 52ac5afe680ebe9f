//! Recorded datums as this client's.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::Value;
use tinsmith::{
    DataType, Datum, Loss, ModelInput, ModelInputChunk, ProvenanceSpan, TensorData, Values,
};

use super::cases::read;

/// The datums of a decoded `ForwardBackwardRequest`.
pub(super) fn datums(data: &Value) -> Vec<Datum> {
    data.as_array().unwrap().iter().map(datum).collect()
}

fn datum(json: &Value) -> Datum {
    let mut datum = Datum::new(model_input(&json["model_input"]));
    for (name, tensor) in json["loss_fn_inputs"].as_object().unwrap() {
        datum = datum.with_input(name, self::tensor(tensor));
    }
    if json["model_input_spans"].is_array() {
        let spans =
            |field: &str| json[field].as_array().unwrap().iter().map(span).collect::<Vec<_>>();
        datum = datum
            .with_provenance(spans("model_input_spans"), spans("loss_fn_input_spans"))
            .unwrap();
    }
    datum
}

/// Chunks as in JSON or as in decoded protobuf.
pub(super) fn model_input(chunks: &Value) -> ModelInput {
    chunks.as_array().unwrap().iter().map(chunk).collect()
}

fn chunk(json: &Value) -> ModelInputChunk {
    let bytes = |text: &Value| BASE64.decode(text.as_str().unwrap()).unwrap();
    let image = |json: &Value, data: &Value| {
        ModelInputChunk::image(bytes(data), read(&json["expected_tokens"])).unwrap()
    };
    if json["type"] == "encoded_text" {
        return ModelInputChunk::EncodedText { tokens: read(&json["tokens"]) };
    }
    if json["type"] == "image" {
        return image(json, &json["data"]);
    }
    let (kind, json) = json.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "encoded_text" => ModelInputChunk::EncodedText { tokens: read(&json["tokens(int32)"]) },
        "image" => image(json, &json["data_b64"]),
        _ => ModelInputChunk::Dmel { dmel: bytes(&json["dmel_b64"]).into() },
    }
}

/// An array as in JSON or as in decoded protobuf.
pub(super) fn tensor(json: &Value) -> TensorData {
    let is_int = json["dtype"] == "int64" || json["dtype"] == "DTYPE_INT64";
    let csr = &json["sparse_csr"];
    let numbers = [&json["data"], &json["dense"], &csr["values"]];
    let numbers = numbers.into_iter().find(|numbers| numbers.is_array()).unwrap();
    let values = if is_int { Values::Int64(read(numbers)) } else { Values::Float32(read(numbers)) };
    let shape: Vec<usize> = read(&json["shape"]);
    let indices = [
        (&json["sparse_crow_indices"], &json["sparse_col_indices"]),
        (&csr["crow_indices(int64)"], &csr["col_indices(int64)"]),
    ];
    let tensor = match indices.into_iter().find(|(rows, _)| rows.is_array()) {
        Some((rows, columns)) => {
            TensorData::from_csr(values, read(rows), read(columns), [shape[0], shape[1]]).unwrap()
        }
        None => TensorData::new(values, shape).unwrap(),
    };
    assert_eq!(tensor.dtype() == DataType::Int64, is_int);
    tensor
}

fn span(json: &Value) -> ProvenanceSpan {
    let (kind, span) = json.as_object().unwrap().iter().next().unwrap();
    let number = |field: &str| span[field].as_str().map_or(0, |text| text.parse().unwrap());
    let (id, offset, length) =
        (span["sequence_id"].as_str().unwrap(), number("offset"), number("length"));
    if kind == "prompt_tokens" {
        ProvenanceSpan::prompt(id, offset, length)
    } else {
        ProvenanceSpan::sampled(id, offset, length)
    }
}

/// A loss with its settings.
pub(super) fn loss(body: &Value) -> Loss {
    let mut loss = Loss::from(body["loss_fn"].as_str().unwrap());
    for (name, value) in body["loss_fn_config_v2"].as_object().into_iter().flatten() {
        // The only recorded text is made up, and no setting of its loss.
        if let Some(number) = value["number"].as_f64() {
            loss = loss.with_setting(name, number);
        }
    }
    loss
}
