//! A request that is answered 400 has used its number up: the client goes on with the next.

use axum::http::StatusCode;
use prost::Message;
use serde_json::{Value, json};
use tinsmith_types::proto;

use crate::harness::{Server, datum, forward_backward};

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");

fn step(model: &str, seq_id: i64) -> Value {
    json!({"model_id": model, "seq_id": seq_id, "adam_params": {}})
}

/// Checks that the request after a refused number 1 is not kept waiting for it.
async fn next_runs(server: &Server, model: &str) {
    let done = server.done("optim_step", step(model, 2)).await;
    assert_eq!(done.json()["error"], Value::Null, "{}", done.line());
}

#[tokio::test]
async fn json_that_is_no_such_request() {
    for (endpoint, body) in [
        ("optim_step", json!({"adam_params": {"beta1": "x"}})),
        ("optim_step", json!({"adam_params": {"lr": 1}})),
        ("optim_step", json!({"adam_params": [[[1]]]})),
        ("save_weights", json!({"path": 7})),
        ("save_weights_for_sampler", json!({"kind": "other"})),
        ("load_weights", json!({})),
        ("load_weights", json!({"path": "tinker://a/weights/b", "load_optimizer": true})),
        ("load_weights", json!({"path": "tinker://a/weights/b", "session_id": "s"})),
        ("forward", json!({"forward_input": null})),
        ("forward_backward", json!({"forward_backward_input": {"data": 3, "loss_fn": "x"}})),
        ("forward_backward", json!({"data": [], "loss_fn": "cross_entropy"})),
    ] {
        let server = Server::start();
        let (_, model) = server.run().await;
        let mut body = body;
        body["model_id"] = json!(model);
        body["seq_id"] = json!(1);
        for _ in 0..2 {
            let reply = server.post(endpoint, body.clone()).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{endpoint} {}", reply.line());
        }
        next_runs(&server, &model).await;
    }
}

#[tokio::test]
async fn tensors_that_do_not_fit_their_form() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let mut datum = datum();
    datum["loss_fn_inputs"]["weights"]["dtype"] = json!("float64");
    let reply = server.post("forward_backward", forward_backward(&model, 1, &[datum])).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.line());
    next_runs(&server, &model).await;
}

#[tokio::test]
async fn protobuf_that_is_broken_or_has_too_many_parts() {
    let broken = [0x1a, 0xff, 0xff].to_vec();
    let many = [0x1a, 0].repeat(100_000);
    for tail in [broken, many] {
        let server = Server::start();
        let (_, model) = server.run().await;
        let head = proto::ForwardBackwardRequest {
            model_id: model.clone(),
            seq_id: 1,
            ..Default::default()
        };
        let body = [head.encode_to_vec(), tail].concat();
        let reply = server.post_bytes("forward_backward", &[PROTOBUF], body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.line());
        next_runs(&server, &model).await;
    }
}

#[tokio::test]
async fn protobuf_that_is_too_large() {
    for is_compressed in [false, true] {
        let server = Server::start();
        let (_, model) = server.run().await;
        let head = proto::ForwardBackwardRequest {
            model_id: model.clone(),
            seq_id: 1,
            ..Default::default()
        };
        let mut body = [head.encode_to_vec(), vec![0; 5 << 20]].concat();
        let mut headers = vec![PROTOBUF];
        if is_compressed {
            headers.push(("content-encoding", "zstd"));
            body = zstd::bulk::compress(&body, 3).unwrap();
        }
        let reply = server.post_bytes("forward_backward", &headers, body).await;
        assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", reply.line());
        next_runs(&server, &model).await;
    }
}

#[tokio::test]
async fn a_refusal_changes_nothing_that_was_submitted() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let first = server.post("optim_step", step(&model, 1)).await;
    let bad = json!({"model_id": model, "seq_id": 1, "adam_params": 3});
    assert_eq!(server.post("optim_step", bad).await.status, StatusCode::BAD_REQUEST);
    let again = server.post("optim_step", step(&model, 1)).await;
    assert_eq!(first.text("request_id"), again.text("request_id"));
    next_runs(&server, &model).await;
}

#[tokio::test]
async fn numbers_that_are_none() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let check = async |seq_id: Value| {
        let body = json!({"model_id": model, "seq_id": seq_id, "adam_params": {}});
        server.post("optim_step", body).await.line()
    };
    for number in [json!(0), json!(-1), json!(i64::MAX), json!(i64::from(i32::MAX) + 1)] {
        let refusal = check(number).await;
        assert!(refusal.contains("seq_id must be from 1 to 2147483647"), "{refusal}");
    }
    for number in [json!("1"), json!(1.5), json!(1e99), json!([1])] {
        assert!(check(number).await.starts_with("400"));
    }
    let done = server.done("optim_step", step(&model, 1)).await;
    assert_eq!(done.json()["error"], Value::Null, "{}", done.line());
}

#[tokio::test]
async fn runs_of_others_keep_their_numbers() {
    let server = Server::start();
    let bad = json!({"model_id": "unknown:train:0", "seq_id": 1, "adam_params": 3});
    assert_eq!(server.post("optim_step", bad).await.status, StatusCode::BAD_REQUEST);
}
