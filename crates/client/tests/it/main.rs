//! The client against a server of a few lines that answers as it is told.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod custom_losses;
mod kit;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use serde_json::{Value, json};
use tinsmith::{
    AdamParams, Category, Config, Datum, Error, LoraOptions, RetryPolicy, SamplingParams,
    ServiceClient, TrainingClient,
};

/// What the server was asked, and what it answers to polls, in order.
#[derive(Clone, Default)]
struct Script {
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    polls: Arc<Mutex<VecDeque<(u16, Value)>>>,
    refusals: Arc<Mutex<VecDeque<(u16, Value)>>>,
}

impl Script {
    fn poll(&self, status: u16, body: Value) {
        self.polls.lock().unwrap().push_back((status, body));
    }

    fn refuse(&self, status: u16, body: Value) {
        self.refusals.lock().unwrap().push_back((status, body));
    }

    /// The values of `field` in the bodies of one endpoint.
    fn asked(&self, name: &str, field: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|(asked, _)| asked == name)
            .map(|(_, body)| body[field].clone())
            .collect()
    }
}

async fn answer(
    State(script): State<Script>,
    Path(name): Path<String>,
    body: axum::body::Bytes,
) -> (StatusCode, Json<Value>) {
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    script.asked.lock().unwrap().push((name.clone(), body));
    let (status, answer) =
        match name.as_str() {
            "create_session" => (200, json!({ "session_id": "s" })),
            "get_info" => (200, json!({ "model_data": {}, "model_id": "s:train:0" })),
            "create_sampling_session" => (200, json!({ "sampling_session_id": "s:sample:0" })),
            "retrieve_future" => script
                .polls
                .lock()
                .unwrap()
                .pop_front()
                .unwrap_or_else(|| (500, json!({ "detail": "no script" }))),
            _ => script.refusals.lock().unwrap().pop_front().unwrap_or_else(|| {
                (200, json!({ "request_id": name, "sample_sequence_ids": ["q"] }))
            }),
        };
    (StatusCode::from_u16(status).unwrap(), Json(answer))
}

async fn start() -> (Script, ServiceClient) {
    let script = Script::default();
    let router = Router::new().route("/api/v1/{name}", post(answer)).with_state(script.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config =
        Config::builder().base_url(url).retry_timeout(Duration::from_secs(20)).build().unwrap();
    (script, ServiceClient::connect(config).await.unwrap())
}

async fn training(script: &Script, service: &ServiceClient) -> TrainingClient {
    script.poll(200, json!({ "type": "create_model", "model_id": "s:train:0" }));
    service.create_lora_training_client(LoraOptions::new("base").rank(4).seed(7)).await.unwrap()
}

fn output(loss: f64) -> Value {
    let logprobs = json!({ "data": [-0.5], "dtype": "float32", "shape": [1] });
    json!({
        "loss_fn_output_type": "x",
        "loss_fn_outputs": [{ "logprobs": logprobs }],
        "metrics": { "loss:sum": loss },
    })
}

#[tokio::test]
async fn pending_polls_are_repeated_until_the_result() {
    let (script, service) = start().await;
    let training = training(&script, &service).await;
    script.poll(408, json!({ "queue_state": "active" }));
    script.poll(200, json!({ "type": "try_again", "request_id": "x", "queue_state": "active" }));
    script.poll(503, json!({ "detail": "starting" }));
    script.poll(200, output(1.5));
    let datum = Datum::completion(&[1], &[2]).unwrap();
    let result = training.forward_backward(vec![datum], "cross_entropy").await.unwrap();
    assert_eq!(result.metrics["loss:sum"], 1.5);
    assert_eq!(result.logprobs(0).unwrap(), [-0.5]);
}

#[tokio::test]
async fn calls_are_submitted_in_order_without_waiting_for_results() {
    let (script, service) = start().await;
    let training = training(&script, &service).await;
    for _ in 0..4 {
        script.poll(200, json!({ "metrics": {} }));
    }
    let steps: Vec<_> = (0..4).map(|_| training.optim_step(AdamParams::default())).collect();
    for step in steps {
        step.await.unwrap();
    }
    assert_eq!(script.asked("optim_step", "seq_id"), [1, 2, 3, 4]);
}

#[tokio::test]
async fn failures_say_whose_fault_they_are() {
    let (script, service) = start().await;
    let training = training(&script, &service).await;
    script.poll(200, json!({ "error": "learning_rate is NaN", "category": "user" }));
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    let Error::RequestFailed { category, message, .. } = &error else { panic!("{error}") };
    assert_eq!((*category, message.as_str()), (Category::User, "learning_rate is NaN"));
    script.refuse(400, json!({ "detail": "no such thing" }));
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "get a good answer: status 400: no such thing");
    // A refused call does not hold up the next one.
    script.poll(200, json!({ "metrics": {} }));
    training.optim_step(AdamParams::default()).await.unwrap();
}

#[tokio::test]
async fn a_call_that_was_never_sent_ends_the_client() {
    let (script, service) = start().await;
    let training = training(&script, &service).await;
    let datum = Datum::completion(&[u32::MAX], &[2]).unwrap();
    let error = training.forward_backward(vec![datum], "cross_entropy").await.unwrap_err();
    assert!(matches!(error, Error::Validation { .. }), "{error}");
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert!(matches!(error, Error::Broken), "{error}");
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let (script, service) = start().await;
    let training = training(&script, &service).await;
    script.refuse(429, json!({ "detail": "full" }));
    script.poll(200, json!({ "metrics": { "a": 1.0 } }));
    let step = training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(step.metrics.unwrap()["a"], 1.0);
    assert_eq!(script.asked("optim_step", "seq_id"), [1, 1]);
}

#[tokio::test]
async fn a_forgotten_sample_is_submitted_anew() {
    let (script, service) = start().await;
    let sampler = service.create_sampling_client("base").await.unwrap();
    let sample = json!({
        "type": "sample",
        "sequences": [{ "stop_reason": "stop", "tokens": [5], "logprobs": [-1.0] }],
        "prompt_logprobs": null,
    });
    script.poll(410, json!({ "detail": "gone" }));
    script.poll(200, sample);
    let result = sampler.sample(&[1, 2], 1, SamplingParams::default()).await.unwrap();
    assert_eq!(result.sequences[0].tokens, [5]);
    assert_eq!(script.asked("asample", "seq_id"), [0, 1]);
}

#[tokio::test]
async fn nobody_there_is_a_connection_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let config = Config::builder().base_url(url).retry(RetryPolicy::none()).build().unwrap();
    let error = ServiceClient::connect(config).await.unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
}
