use insta::assert_snapshot;
use prost::Message;
use serde_json::{Value, json};
use tinsmith_types::proto::{self, pack};

use crate::harness::{Server, datum, forward_backward};

#[tokio::test]
async fn create_model_checks_what_it_is_given() {
    let server = Server::start();
    let session = server.session().await;
    let check = async |change: Value| {
        let mut body = json!({
            "session_id": session, "model_seq_id": 0, "base_model": "nano", "lora_config": {"rank": 8},
        });
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        server.post("create_model", body).await.line()
    };
    assert_snapshot!(check(json!({"session_id": "unknown"})).await, @r#"404 {"code":"not_found","detail":"session unknown not found"}"#);
    assert_snapshot!(check(json!({"base_model": "gpt"})).await, @r#"400 {"code":"unknown_base_model","detail":"base_model \"gpt\" is not offered; known: nano, Qwen/Qwen3-8B"}"#);
    assert_snapshot!(check(json!({"base_model": null})).await, @r#"400 {"code":"missing_field","detail":"base_model is required"}"#);
    assert_snapshot!(check(json!({"session_id": null})).await, @r#"400 {"code":"missing_field","detail":"session_id is required. The version of the Tinker SDK you are using is no longer supported."}"#);
    assert_snapshot!(check(json!({"model_seq_id": -1})).await, @r#"400 {"code":"invalid_model_seq_id","detail":"model_seq_id must not be negative"}"#);
    assert_snapshot!(check(json!({"lora_config": {"rank": 0}})).await, @r#"400 {"code":"invalid_lora_config","detail":"lora_config.rank must be positive"}"#);
    assert_snapshot!(check(json!({"lora_config": {"rank": 65}})).await, @r#"400 {"code":"invalid_lora_config","detail":"lora_config.rank must be at most 64"}"#);
    let off = json!({"rank": 8, "train_attn": false, "train_mlp": false, "train_unembed": false});
    assert_snapshot!(check(json!({"lora_config": off})).await, @r#"400 {"code":"invalid_lora_config","detail":"At least one of train_unembed, train_mlp, or train_attn must be True"}"#);
    let dimuon = json!({"type": "dimuon", "version": 1});
    assert_snapshot!(check(json!({"optimizer_config": dimuon})).await, @r#"400 {"code":"unsupported_optimizer","detail":"optimizer_config.type \"dimuon\" is not supported: its algorithm is not published; known: adamw"}"#);
    assert_snapshot!(check(json!({"user_metadata": {"a": "x".repeat(2000)}})).await, @r#"400 {"code":"metadata_too_large","detail":"user_metadata has more than 1000 bytes as JSON"}"#);
}

#[tokio::test]
async fn create_model_is_idempotent() {
    let server = Server::start();
    let session = server.session().await;
    let create = async |rank: u32| {
        let body = json!({
            "session_id": session, "model_seq_id": 0, "base_model": "nano", "lora_config": {"rank": rank},
        });
        server.post("create_model", body).await
    };
    let first = create(8).await;
    assert_eq!(first.text("model_id"), format!("{session}:train:0"));
    // The seed that is drawn is no part of the identity.
    assert_eq!(create(8).await.text("request_id"), first.text("request_id"));
    assert_eq!(create(16).await.status, 422);
    let result = server.result(&first.text("request_id"), "application/json").await;
    assert_eq!(
        result.json(),
        json!({"model_id": format!("{session}:train:0"), "type": "create_model"})
    );
}

#[tokio::test]
async fn walk_of_a_step() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let submitted = server.post("forward_backward", forward_backward(&model, 1, &[datum()])).await;
    assert_eq!(submitted.text("model_id"), model);
    let id = submitted.text("request_id");
    assert_snapshot!(server.result(&id, "application/json").await.line(), @r#"200 {"loss_fn_output_type":"ArrayRecord","loss_fn_outputs":[{"logprobs":{"data":[-0.5,-0.5,-0.5],"dtype":"float32","shape":[3]}}],"metrics":{"loss:sum":1.5}}"#);
    let reply = server.result(&id, "application/x-protobuf, application/json").await;
    assert_eq!(reply.headers["content-type"], "application/x-protobuf");
    let step = json!({"model_id": model, "seq_id": 2, "adam_params": {"learning_rate": 0.001}});
    assert_snapshot!(server.done("optim_step", step).await.line(), @r#"200 {"metrics":{},"type":"optim_step"}"#);
    let mut forward = forward_backward(&model, 3, &[datum()]);
    forward["forward_input"] = forward["forward_backward_input"].take();
    forward.as_object_mut().unwrap().remove("forward_backward_input");
    assert_eq!(server.done("forward", forward).await.status, 200);
    let reply =
        server.done("unload_model", json!({"model_id": model, "type": "unload_model"})).await;
    assert_eq!(reply.json()["model_id"], json!(model));
}

#[tokio::test]
async fn retries_find_the_first_request() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let send = async |seq_id: i64, tokens: Value| {
        let mut datum = datum();
        datum["loss_fn_inputs"]["target_tokens"]["data"] = tokens;
        server.post("forward_backward", forward_backward(&model, seq_id, &[datum])).await
    };
    let later = send(2, json!([1, 2, 3])).await.text("request_id");
    let first = send(1, json!([1, 2, 3])).await.text("request_id");
    assert_ne!(first, later);
    assert_eq!(send(2, json!([1, 2, 3])).await.text("request_id"), later);
    let conflict = send(2, json!([1, 2, 4])).await;
    assert_eq!((conflict.status.as_u16(), conflict.text("code").as_str()), (422, "conflict"));
    assert_eq!(server.result(&later, "application/json").await.status, 200);
    assert_eq!(send(2, json!([1, 2, 3])).await.text("request_id"), later);
}

#[tokio::test]
async fn faults_of_datums_fail_their_future() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let mut seq_id = 0;
    let mut check = async |change: fn(&mut Value)| {
        seq_id += 1;
        let mut body = forward_backward(&model, seq_id, &[datum(), datum()]);
        change(&mut body["forward_backward_input"]);
        server.done("forward_backward", body).await.line()
    };
    assert_snapshot!(check(|input| input["data"] = json!([])).await, @r#"200 {"category":"user","error":"data is empty"}"#);
    assert_snapshot!(check(|input| input["loss_fn"] = json!("mse")).await, @r#"200 {"category":"user","error":"loss_fn \"mse\" is unknown; known: cross_entropy, importance_sampling, ppo, cispo, dro, gspo, stable_reinforce, custom"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["model_input"]["chunks"][0]["tokens"] = json!([1, 2, 1000]);
    }).await, @r#"200 {"category":"user","error":"data[1].model_input.chunks[0].tokens[2] is the token 1000, which is out of the vocabulary of 1000"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["model_input"]["chunks"][0]["tokens"] = json!([1, -2, 3]);
    }).await, @r#"200 {"category":"user","error":"data[1].model_input.chunks[0].tokens[1] is the token -2, which is out of the vocabulary of 1000"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["loss_fn_inputs"]["target_tokens"]["data"] = json!([1, 2, 1000]);
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.target_tokens[2] is the token 1000, which is out of the vocabulary of 1000"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["loss_fn_inputs"]["target_tokens"]["data"] = json!([1, 2]);
        input["data"][1]["loss_fn_inputs"]["target_tokens"]["shape"] = json!([2]);
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.target_tokens has the shape [2]; expected is [3] or [3, K], as the datum's model_input has 3 tokens"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["loss_fn_inputs"]["target_tokens"]["shape"] = json!([4]);
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.target_tokens has the shape [4]; expected is [3] or [3, K], as the datum's model_input has 3 tokens"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["loss_fn_inputs"]["weights"]["data"] = json!([1.0]);
        input["data"][1]["loss_fn_inputs"]["weights"]["shape"] = json!([1]);
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.weights has the shape [1]; expected is [3], as the datum's model_input has 3 tokens"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["loss_fn_inputs"].as_object_mut().unwrap().remove("target_tokens");
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.target_tokens is missing"}"#);
    assert_snapshot!(check(|input| input["data"][1]["model_input"]["chunks"] = json!([])).await, @r#"200 {"category":"user","error":"data[1].model_input has no tokens"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["model_input"]["chunks"][0]["tokens"] = json!(vec![1; 81]);
        input["data"][1]["loss_fn_inputs"] =
            json!({"target_tokens": {"data": vec![1; 81], "dtype": "int64", "shape": [81]}});
    }).await, @r#"200 {"category":"user","error":"data[1].model_input has 81 tokens; a datum of this model may have 80"}"#);
    assert_snapshot!(check(|input| input["loss_fn"] = json!("importance_sampling")).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.logprobs is missing; importance_sampling needs it"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["model_input"]["chunks"][0] =
            json!({"type": "image", "data": "iVBORw0K", "format": "png"});
    }).await, @r#"200 {"category":"user","error":"data[1].model_input.chunks[0] is an image; this server's models read text only"}"#);
    assert_snapshot!(check(|input| {
        input["loss_fn"] = json!("importance_sampling");
        for name in ["logprobs", "advantages"] {
            for index in 0..2 {
                input["data"][index]["loss_fn_inputs"][name] =
                    input["data"][index]["loss_fn_inputs"]["weights"].clone();
            }
        }
        input["data"][1]["loss_fn_inputs"]["target_tokens"]["shape"] = json!([3, 1]);
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.target_tokens has the shape [3, 1]; expected is [3], as the datum's model_input has 3 tokens"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["loss_fn_inputs"]["target_tokens"]["shape"] = json!([3, 0]);
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.target_tokens has the shape [3, 0]; expected is [3] or [3, K], as the datum's model_input has 3 tokens"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["loss_fn_inputs"]["target_tokens"] =
            json!({"data": [1, 2, 3, 4, 5, 6], "dtype": "int64", "shape": [3, 2]});
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.weights has the shape [3]; expected is [3, 2], as the datum's model_input has 3 tokens"}"#);
    assert_snapshot!(check(|input| {
        input["data"][1]["loss_fn_inputs"]["weights"]["shape"] = json!([1, 3]);
    }).await, @r#"200 {"category":"user","error":"data[1].loss_fn_inputs.weights has the shape [1, 3]; expected is [3], as the datum's model_input has 3 tokens"}"#);
    // The places in the order were taken.
    let next =
        server.done("forward_backward", forward_backward(&model, seq_id + 1, &[datum()])).await;
    assert!(next.json()["error"].is_null(), "{}", next.line());
}

/// Sparse and dense arrays in any mixture; the answers have the shapes of the targets.
#[tokio::test]
async fn candidates_may_be_dense_and_sparse() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let tokens = json!({"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]});
    let dense = |dtype: &str| json!({"data": [1, 2, 3, 0, 5, 6], "dtype": dtype, "shape": [3, 2]});
    let sparse = |dtype: &str| {
        json!({"data": [4, 5], "dtype": dtype, "shape": [3, 2],
            "sparse_crow_indices": [0, 1, 1, 2], "sparse_col_indices": [1, 0]})
    };
    let with = |inputs: Value| json!({"model_input": tokens, "loss_fn_inputs": inputs});
    let data = [
        with(json!({"target_tokens": dense("int64"), "weights": sparse("float32")})),
        with(json!({"target_tokens": sparse("int64"), "weights": dense("float32")})),
        with(json!({"target_tokens": sparse("int64")})),
        datum(),
        with(json!({
            "target_tokens": {"data": [1, 2, 3], "dtype": "int64", "shape": [3, 1]},
            "weights": {"data": [1, 0, 1], "dtype": "float32", "shape": [3]},
        })),
    ];
    let reply = server.done("forward_backward", forward_backward(&model, 1, &data)).await;
    let shapes: Vec<_> = reply.json()["loss_fn_outputs"]
        .as_array()
        .unwrap_or_else(|| panic!("{}", reply.line()))
        .iter()
        .map(|outputs| outputs["logprobs"]["shape"].clone())
        .collect();
    assert_eq!(json!(shapes), json!([[3, 2], [3, 2], [3, 2], [3], [3, 1]]));
    assert!(!reply.line().contains("sparse"), "older clients refuse the keys");
}

#[tokio::test]
async fn malformed_sparse_arrays_fail_their_future() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let mut seq_id = 0;
    let mut check = async |change: fn(&mut Value)| {
        seq_id += 1;
        let mut body = forward_backward(&model, seq_id, &[datum()]);
        let inputs = &mut body["forward_backward_input"]["data"][0]["loss_fn_inputs"];
        *inputs = json!({
            "target_tokens": {"data": [4, 5], "dtype": "int64", "shape": [3, 2],
                "sparse_crow_indices": [0, 1, 1, 2], "sparse_col_indices": [1, 0]},
            "weights": {"data": [0.5], "dtype": "float32", "shape": [3, 2],
                "sparse_crow_indices": [0, 0, 0, 1], "sparse_col_indices": [1]},
        });
        change(inputs);
        server.done("forward_backward", body).await.line()
    };
    assert_snapshot!(check(|inputs| {
        inputs["target_tokens"]["sparse_crow_indices"] = json!([0, 2, 1, 2]);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens: failed to read sparse_crow_indices: must ascend from 0 to 2, the number of sparse_col_indices"}"#);
    assert_snapshot!(check(|inputs| {
        inputs["weights"]["sparse_crow_indices"] = json!([0, 1]);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights: failed to read sparse_crow_indices: has 2 values; 3 rows need one more than that"}"#);
    assert_snapshot!(check(|inputs| {
        inputs["weights"]["sparse_col_indices"] = json!([2]);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights: failed to read sparse_col_indices: row 2 lists column 2 of 2"}"#);
    assert_snapshot!(check(|inputs| {
        inputs["target_tokens"]["sparse_crow_indices"] = json!([0, 2, 2, 2]);
        inputs["target_tokens"]["sparse_col_indices"] = json!([1, 1]);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens: failed to read sparse_col_indices: row 0 lists column 1 twice"}"#);
    assert_snapshot!(check(|inputs| inputs["target_tokens"]["data"] = json!([4])).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens has 1 values for 2 sparse_col_indices"}"#);
    assert_snapshot!(check(|inputs| inputs["target_tokens"]["data"] = json!([4, 1000])).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens[1] is the token 1000, which is out of the vocabulary of 1000"}"#);
    assert_snapshot!(check(|inputs| inputs["target_tokens"]["shape"] = json!([-3, 2])).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens has the shape [-3, 2]; expected is [3] or [3, K], as the datum's model_input has 3 tokens"}"#);
    assert_snapshot!(check(|inputs| inputs["target_tokens"]["shape"] = json!([3])).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens: failed to read shape: [3] of a sparse tensor must have two dimensions"}"#);
    // A few bytes that would be 3 TB.
    assert_snapshot!(check(|inputs| {
        inputs["target_tokens"]["shape"] = json!([3, 1_i64 << 40]);
        inputs.as_object_mut().unwrap().remove("weights");
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens: the data has more than 1000 target_tokens in all, those that sparse tensors do not list included; send it in parts"}"#);
}

#[tokio::test]
async fn faults_of_a_losss_settings_fail_their_future() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let mut seq_id = 0;
    let mut check = async |loss: &str, config: Value| {
        seq_id += 1;
        let mut datum = datum();
        let values = json!({"data": [0.5, 0.5, 0.5], "dtype": "float32"});
        for name in ["logprobs", "advantages"] {
            datum["loss_fn_inputs"][name] = values.clone();
        }
        let mut body = forward_backward(&model, seq_id, &[datum]);
        body["forward_backward_input"]["loss_fn"] = json!(loss);
        body["forward_backward_input"]["loss_fn_config"] = config;
        server.done("forward_backward", body).await.line()
    };
    for (loss, config) in [
        ("ppo", json!({"clip_low_threshold": 0.9, "clip_high_threshold": 0.9})),
        ("cispo", json!({"clip_high_threshold": 5})),
        ("dro", json!({"beta": 0})),
        ("dro", Value::Null),
    ] {
        let line = check(loss, config).await;
        assert!(line.contains("loss:sum"), "{line}");
    }
    assert_snapshot!(check("ppo", json!({"beta": 0.1})).await, @r#"200 {"category":"user","error":"loss_fn_config.beta is no setting of ppo; known: clip_low_threshold, clip_high_threshold"}"#);
    assert_snapshot!(check("cross_entropy", json!({"beta": 0.1})).await, @r#"200 {"category":"user","error":"loss_fn_config.beta is no setting of cross_entropy; it has none"}"#);
    assert_snapshot!(check("dro", json!({"beta": "0.1"})).await, @r#"200 {"category":"user","error":"loss_fn_config.beta is \"0.1\", not a number"}"#);
    assert_snapshot!(
        check("cispo", json!({"clip_low_threshold": 1.2, "clip_high_threshold": 0.8})).await,
        @r#"200 {"category":"user","error":"loss_fn_config.clip_low_threshold is 1.2, above clip_high_threshold, which is 0.8"}"#
    );
}

/// Numbers that JSON has no words for.
#[tokio::test]
async fn faults_in_protobuf_fail_their_future() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let mut seq_id = 0;
    let mut check = async |change: fn(&mut proto::ForwardBackwardRequest)| {
        seq_id += 1;
        let tokens = proto::EncodedTextChunk { tokens: pack::pack_i32(&[1, 2]) };
        let chunk = proto::Chunk { chunk: Some(proto::chunk::Chunk::EncodedText(tokens)) };
        let inputs = [
            ("target_tokens".to_owned(), proto::Tensor::dense_i64(&[2, 3], vec![2])),
            ("weights".to_owned(), proto::Tensor::dense_f32(&[1.0, 1.0], vec![2])),
        ];
        let datum = proto::Datum {
            model_input: vec![chunk],
            loss_fn_inputs: inputs.into(),
            ..Default::default()
        };
        let mut request = proto::ForwardBackwardRequest {
            model_id: model.clone(),
            seq_id,
            data: vec![datum],
            loss_fn: "cross_entropy".to_owned(),
            ..Default::default()
        };
        change(&mut request);
        let headers = [("content-type", "application/x-protobuf")];
        let reply = server.post_bytes("forward_backward", &headers, request.encode_to_vec()).await;
        server.result(&reply.text("request_id"), "application/json").await.line()
    };
    assert_snapshot!(check(|request| {
        let tensor = proto::Tensor::dense_f32(&[1.0, f32::NAN], vec![2]);
        request.data[0].loss_fn_inputs.insert("weights".to_owned(), tensor);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights[1] is NaN"}"#);
    assert_snapshot!(check(|request| {
        let tensor = proto::Tensor::dense_f32(&[f32::NEG_INFINITY, 1.0], vec![2]);
        request.data[0].loss_fn_inputs.insert("weights".to_owned(), tensor);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights[0] is -inf"}"#);
    assert_snapshot!(check(|request| {
        let tensor = proto::Tensor::dense_i64(&[1, i64::MIN], vec![2]);
        request.data[0].loss_fn_inputs.insert("weights".to_owned(), tensor);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights[1] is -9223372036854775808, too large to be exact in float32"}"#);
    assert_snapshot!(check(|request| {
        let tensor = proto::Tensor::dense_i64(&[1], vec![2]);
        request.data[0].loss_fn_inputs.insert("weights".to_owned(), tensor);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights has 1 values; its shape says 2"}"#);
    assert_snapshot!(check(|request| {
        let mut tensor = proto::Tensor::dense_f32(&[1.0, 1.0], vec![2]);
        tensor.dtype = proto::Dtype::Int32.into();
        request.data[0].loss_fn_inputs.insert("weights".to_owned(), tensor);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights has another dtype than float32 or int64"}"#);
    assert_snapshot!(check(|request| {
        let tensor = proto::Tensor::dense_f32(&[1.0], vec![2]);
        request.data[0].loss_fn_inputs.insert("weights".to_owned(), tensor);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights has 1 values; its shape says 2"}"#);
    assert_snapshot!(check(|request| {
        let tensor = proto::Tensor::dense_f32(&[1.0, 2.0], vec![2]);
        request.data[0].loss_fn_inputs.insert("target_tokens".to_owned(), tensor);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens has another dtype than int64"}"#);
    assert_snapshot!(check(|request| {
        let tensor = proto::Tensor { shape: vec![2], ..Default::default() };
        request.data[0].loss_fn_inputs.insert("weights".to_owned(), tensor);
    }).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights has no data"}"#);
    assert_snapshot!(check(|request| {
        request.data[0].model_input[0].chunk = None;
    }).await, @r#"200 {"category":"user","error":"data[0].model_input.chunks[0] is of an unknown kind; this server's models read text only"}"#);
    assert_snapshot!(check(|request| {
        request.loss_fn = "dro".to_owned();
        request.loss_fn_config.insert("beta".to_owned(), f64::INFINITY);
    }).await, @r#"200 {"category":"user","error":"loss_fn_config.beta is inf"}"#);
}

#[tokio::test]
async fn whole_numbers_will_do_for_weights() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let mut datum = datum();
    let weights = json!({"data": [0, 1, -1], "dtype": "int64", "shape": [3]});
    datum["loss_fn_inputs"]["weights"] = weights;
    let reply = server.done("forward_backward", forward_backward(&model, 1, &[datum])).await;
    assert_eq!(reply.json()["loss_fn_output_type"], "ArrayRecord", "{}", reply.line());
}

#[tokio::test]
async fn faults_of_adam_params_fail_their_future() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let mut seq_id = 0;
    let mut check = async |params: Value| {
        seq_id += 1;
        let body = json!({"model_id": model, "seq_id": seq_id, "adam_params": params});
        server.done("optim_step", body).await.line()
    };
    assert_snapshot!(check(json!({"learning_rate": -1.0})).await, @r#"200 {"category":"user","error":"adam_params.learning_rate is -1; it must be finite and at least 0"}"#);
    assert_snapshot!(check(json!({"beta1": 1.0})).await, @r#"200 {"category":"user","error":"adam_params.beta1 is 1; it must be at least 0 and below 1"}"#);
    assert_snapshot!(check(json!({"beta2": -0.1})).await, @r#"200 {"category":"user","error":"adam_params.beta2 is -0.1; it must be at least 0 and below 1"}"#);
    assert_snapshot!(check(json!({"eps": -1e-8})).await, @r#"200 {"category":"user","error":"adam_params.eps is -0.00000001; it must be finite and above 0"}"#);
    assert_snapshot!(check(json!({"eps": 0})).await, @r#"200 {"category":"user","error":"adam_params.eps is 0; it must be finite and above 0"}"#);
    assert_snapshot!(check(json!({"beta2": 0.999_999_999_999})).await, @r#"200 {"category":"user","error":"adam_params.beta2 is 0.999999999999; it must be at least 0 and below 1"}"#);
    assert_snapshot!(check(json!({"weight_decay": -1})).await, @r#"200 {"category":"user","error":"adam_params.weight_decay is -1; it must be finite and at least 0"}"#);
    assert_snapshot!(check(json!({})).await, @r#"200 {"metrics":{},"type":"optim_step"}"#);
    let body = json!({"model_id": model, "seq_id": 9, "optimizer_params": {"type": "dimuon", "learning_rate": 1}});
    assert_snapshot!(server.done("optim_step", body).await.line(), @r#"200 {"category":"user","error":"optimizer_params.type is \"dimuon\", and the run's optimizer is adamw: send adam_params"}"#);
    let body = json!({"model_id": model, "seq_id": 10});
    assert_snapshot!(server.done("optim_step", body).await.line(), @r#"200 {"category":"user","error":"adam_params is missing"}"#);
}

#[tokio::test]
async fn unknown_run() {
    let server = Server::without_worker();
    let reply = server.post("forward_backward", forward_backward("unknown", 1, &[datum()])).await;
    assert_snapshot!(reply.line(), @r#"404 {"code":"not_found","detail":"run unknown not found"}"#);
}

#[tokio::test]
async fn full_queue_asks_to_wait() {
    let server = Server::without_worker();
    let (_, model) = server.run().await;
    let mut last = None;
    for seq_id in 1..=101 {
        let body = json!({"model_id": model, "seq_id": seq_id, "adam_params": {}});
        last = Some(server.post("optim_step", body).await);
    }
    let last = last.unwrap();
    assert_snapshot!(last.line(), @r#"429 {"code":"full","detail":"the queue is full; try again"}"#);
    assert_eq!(last.headers["retry-after"], "1");
}
