use serde_json::json;

use super::*;
use crate::json;
use crate::proto::pack::{pack_f32, pack_i32};
use crate::proto::{BatchedTensor, Tensor, chunk};

fn read<T: Request>(body: &Value) -> T {
    json::read(body.to_string().as_bytes()).expect("the test's body is right").request
}

#[test]
fn create_model_fills_in_defaults() {
    let bare = json!({"session_id": "s", "model_seq_id": 0, "base_model": "m"});
    let request: CreateModelRequest = read(&bare);
    assert_eq!(request.lora_config, LoraConfig::default());
    assert_eq!(request.lora_config.rank, 32);
    assert_eq!(request.optimizer_config.kind(), "adamw");
    let nulls = json!({"session_id": "s", "model_seq_id": 0, "base_model": "m",
        "user_metadata": null, "lora_config": null, "optimizer_config": null});
    assert_eq!(read::<CreateModelRequest>(&nulls), request);
    let partial = json!({"session_id": "s", "model_seq_id": 0, "base_model": "m",
        "lora_config": {"rank": 4, "train_mlp": false, "train_attn": null}});
    assert_eq!(
        read::<CreateModelRequest>(&partial).lora_config,
        LoraConfig { rank: 4, train_mlp: false, ..LoraConfig::default() }
    );
}

#[test]
fn adam_params_fill_in_defaults() {
    let check = |params: Value, expected| {
        let request: OptimStepRequest = read(&json!({"model_id": "m", "adam_params": params}));
        assert_eq!(request.adam_params, Some(expected));
    };
    let defaults = AdamParams {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-12,
        weight_decay: 0.0,
        grad_clip_norm: 0.0,
    };
    check(json!({}), defaults);
    check(json!({"learning_rate": 1}), AdamParams { learning_rate: 1.0, ..defaults });
}

#[test]
fn null_is_a_clients_nan() {
    let params = json!({"learning_rate": null, "grad_clip_norm": null});
    let request: OptimStepRequest = read(&json!({"model_id": "m", "adam_params": params}));
    let params = request.adam_params.unwrap();
    assert!(params.learning_rate.is_nan() && params.grad_clip_norm.is_nan());
    assert!(!params.beta1.is_nan());
}

#[test]
fn other_optimizers_parse_with_their_settings() {
    let config = json!({"type": "dimuon", "version": 1});
    let request: CreateModelRequest = read(&json!({
        "session_id": "s", "model_seq_id": 0, "base_model": "m", "optimizer_config": config,
    }));
    assert_eq!(request.optimizer_config.kind(), "dimuon");
    assert_eq!(serde_json::to_value(&request.optimizer_config).unwrap(), config);
}

fn input() -> Value {
    json!({
        "data": [{
            "model_input": {"chunks": [{"tokens": [1, 2]}]},
            "loss_fn_inputs": {
                "target_tokens": {"data": [2, 3], "dtype": "int64"},
                "weights": {"data": [0, 1.5], "dtype": "float32", "shape": [2]},
            },
        }],
        "loss_fn": "ppo",
        "loss_fn_config": {"clip_low_threshold": 0.8, "mode": "text"},
    })
}

#[test]
fn json_batch_turns_into_protobuf() {
    let body = json!({"forward_backward_input": input(), "model_id": "m", "seq_id": 7});
    let request = read::<ForwardBackwardRequest>(&body);
    let message = proto::ForwardBackwardRequest::try_from(request).unwrap();
    let tokens = proto::EncodedTextChunk { tokens: pack_i32(&[1, 2]) };
    let datum = proto::Datum {
        model_input: vec![proto::Chunk { chunk: Some(chunk::Chunk::EncodedText(tokens)) }],
        loss_fn_inputs: BTreeMap::from([
            ("target_tokens".into(), Tensor::dense_i64(&[2, 3], vec![2])),
            ("weights".into(), Tensor::dense_f32(&[0.0, 1.5], vec![2])),
        ]),
        ..Default::default()
    };
    assert_eq!((message.model_id.as_str(), message.order()), ("m", Some(SeqId(7))));
    assert_eq!(message.data, [datum]);
    assert!(!message.forward_only);
    let config = BTreeMap::from([
        ("clip_low_threshold".into(), LossConfigValue::Number(0.8)),
        ("mode".into(), LossConfigValue::Text("text".into())),
    ]);
    assert_eq!(message.loss_config(), config);

    // A client that fills the first map only.
    let numbers_only =
        proto::ForwardBackwardRequest { loss_fn_config_v2: BTreeMap::new(), ..message };
    let config = BTreeMap::from([("clip_low_threshold".into(), LossConfigValue::Number(0.8))]);
    assert_eq!(numbers_only.loss_config(), config);
}

#[test]
fn forward_is_the_same_without_gradient() {
    let body = json!({"forward_input": input(), "model_id": "m", "seq_id": null});
    let message = proto::ForwardBackwardRequest::try_from(read::<ForwardRequest>(&body)).unwrap();
    assert!(message.forward_only);
    assert_eq!(message.order(), None);
}

#[test]
fn faults_of_a_batch_are_named_with_their_place() {
    let check = |pointer: &str, value: Value, expected: &str| {
        let mut body = json!({"forward_backward_input": input(), "model_id": "m"});
        *body.pointer_mut(pointer).unwrap() = value;
        let request = read::<ForwardBackwardRequest>(&body);
        let error = proto::ForwardBackwardRequest::try_from(request).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        "/forward_backward_input/data/0/loss_fn_inputs/weights",
        json!({"data": [1.0], "dtype": "float32", "sparse_col_indices": [0]}),
        "read forward_backward_input.data[0].loss_fn_inputs.weights.tensor: has one of \
         `sparse_crow_indices` and `sparse_col_indices`, and needs both",
    );
    check(
        "/forward_backward_input/data/0/model_input/chunks/0",
        json!({"location": "l", "format": "png"}),
        "read forward_backward_input.data[0].model_input.chunks[0].chunk: \
         `image_asset_pointer` cannot be trained on",
    );
}

#[test]
fn misplaced_batch_is_refused_with_its_place() {
    let body = json!({"data": [], "loss_fn": "ppo", "model_id": "m"}).to_string();
    let error = json::read::<ForwardBackwardRequest>(body.as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "read the JSON body: `data` is not a field here; use `forward_backward_input.data`"
    );
}

fn record(num_datums: i64, logprobs: BatchedTensor) -> proto::ForwardBackwardOutput {
    proto::ForwardBackwardOutput {
        loss_fn_output_type: "ArrayRecord".into(),
        loss_fn_outputs: vec![proto::ArrayRecord {
            type_tag: "ArrayRecord".into(),
            fields: BTreeMap::from([("logprobs".into(), logprobs)]),
            num_datums,
        }],
        metrics: BTreeMap::from([("loss:sum".into(), 3.0)]),
    }
}

#[test]
fn result_turns_into_json() {
    let logprobs = BatchedTensor::from_f32([&[-0.5, -1.0][..], &[-2.0]], Vec::new());
    let json = ForwardBackwardOutput::try_from(&record(2, logprobs)).unwrap();
    assert_eq!(
        serde_json::to_value(&json).unwrap(),
        json!({
            "loss_fn_output_type": "ArrayRecord",
            "loss_fn_outputs": [
                {"logprobs": {"data": [-0.5, -1.0], "dtype": "float32", "shape": [2]}},
                {"logprobs": {"data": [-2.0], "dtype": "float32", "shape": [1]}},
            ],
            "metrics": {"loss:sum": 3.0},
        })
    );
}

#[test]
fn result_keeps_trailing_shapes() {
    let logprobs = BatchedTensor::from_f32([&[-0.5, -1.0][..], &[]], vec![2]);
    let json = ForwardBackwardOutput::try_from(&record(2, logprobs)).unwrap();
    let shapes: Vec<_> = json.loss_fn_outputs.iter().map(|o| o["logprobs"].shape.clone()).collect();
    assert_eq!(shapes, [Some(vec![1, 2]), Some(vec![0, 2])]);
}

#[test]
fn result_without_arrays_still_counts_datums() {
    let mut output = record(3, BatchedTensor::default());
    output.loss_fn_outputs[0].fields.clear();
    let json = ForwardBackwardOutput::try_from(&output).unwrap();
    assert_eq!(json.loss_fn_outputs, vec![BTreeMap::new(); 3]);
}

#[test]
fn faulty_results_are_named() {
    let check = |output, expected: &str| {
        let error = ForwardBackwardOutput::try_from(&output).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    let logprobs =
        |trailing_shape| BatchedTensor::from_f32([&[-0.5, -1.0, -2.0][..]], trailing_shape);
    check(
        record(2, logprobs(Vec::new())),
        "read loss_fn_outputs[0].fields.logprobs: has 1 datums of 2",
    );
    check(
        record(1, logprobs(vec![2])),
        "read loss_fn_outputs[0].array: 3 values do not fill rows of 2",
    );
    let untyped = BatchedTensor { dtype: 0, ..logprobs(Vec::new()) };
    check(record(1, untyped), "read loss_fn_outputs[0].tensor: has the unknown dtype 0");
    let short = BatchedTensor { data: pack_f32(&[1.0]), ..logprobs(Vec::new()) };
    check(record(1, short), "read loss_fn_outputs[0].offsets: do not divide 4 bytes: [0, 12]");
}
