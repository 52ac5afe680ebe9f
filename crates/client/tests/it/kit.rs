//! The test kit itself, over plain HTTP.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tinsmith::{
    Category, QueueState,
    testing::{Answer, MockServer, Recorder, Recording},
};
use tinsmith_types::{
    proto::{self, Chunk, Datum, EncodedTextChunk, Tensor, chunk, pack::pack_i32},
    training::ForwardBackwardOutput,
};

use prost::Message as _;

const SESSION: &str = "00000000-0000-4000-8000-000000000001";

/// HTTP without a client of the SDK.
fn client() -> reqwest::Client {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider);
    let tls = tls.with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap()
}

struct Caller {
    http: reqwest::Client,
    url: String,
}

impl Caller {
    fn new(url: String) -> Self {
        Self { http: client(), url }
    }

    async fn call(&self, endpoint: &str, body: Value) -> (u16, Value) {
        let url = format!("{}/api/v1/{endpoint}", self.url);
        let response = self.http.post(url).json(&body).send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    async fn ok(&self, endpoint: &str, body: Value) -> Value {
        let (status, answer) = self.call(endpoint, body).await;
        assert_eq!(status, 200, "{endpoint}: {answer}");
        answer
    }

    async fn poll(&self, future: &Value) -> (u16, Value) {
        self.call("retrieve_future", json!({ "request_id": future["request_id"] })).await
    }

    /// A run, and its id.
    async fn run(&self) -> String {
        let session = self.ok("create_session", json!({ "tags": [], "sdk_version": "1" })).await;
        assert_eq!(session["session_id"], SESSION);
        let body = json!({ "session_id": SESSION, "model_seq_id": 0, "base_model": "test-model",
            "lora_config": { "rank": 16 } });
        let future = self.ok("create_model", body).await;
        let (_, created) = self.poll(&future).await;
        created["model_id"].as_str().unwrap().to_owned()
    }

    async fn step(&self, run: &str, seq_id: i64) -> Value {
        self.ok("optim_step", json!({ "model_id": run, "seq_id": seq_id })).await
    }
}

fn start() -> (MockServer, Caller) {
    let server = MockServer::start().unwrap();
    let caller = Caller::new(server.url());
    (server, caller)
}

#[tokio::test]
async fn any_model_but_invalid_ones_can_be_trained() {
    let (server, caller) = start();
    let run = caller.run().await;
    let info = caller.ok("get_info", json!({ "model_id": run })).await;
    assert_eq!(info["model_data"]["lora_rank"], 16);
    assert_eq!(info["model_data"]["model_name"], "test-model");
    let body = json!({ "session_id": SESSION, "model_seq_id": 1, "base_model": "invalid-model" });
    let (status, answer) = caller.call("create_model", body).await;
    assert_eq!((status, &answer["detail"]), (400, &json!("unknown base model `invalid-model`")));
    assert_eq!(server.asked("create_model", "base_model"), ["test-model", "invalid-model"]);
}

#[tokio::test]
async fn logprobs_have_the_shape_of_the_targets() {
    let (server, caller) = start();
    let run = caller.run().await;
    let datum = |shape: &[i64]| {
        let cells = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let targets = Tensor::dense_i64(&vec![1; cells], shape.to_vec());
        let tokens = EncodedTextChunk { tokens: pack_i32(&[1, 2]) };
        Datum {
            model_input: vec![Chunk { chunk: Some(chunk::Chunk::EncodedText(tokens)) }],
            loss_fn_inputs: [("target_tokens".to_owned(), targets)].into(),
            ..Datum::default()
        }
    };
    let request = proto::ForwardBackwardRequest {
        model_id: run,
        seq_id: 1,
        data: vec![datum(&[2]), datum(&[2, 3])],
        loss_fn: "cross_entropy".to_owned(),
        ..Default::default()
    };
    let url = format!("{}/api/v1/forward_backward", server.url());
    let compressed = zstd::encode_all(&request.encode_to_vec()[..], 0).unwrap();
    let response = caller.http.post(url).header("content-type", "application/x-protobuf");
    let response = response.header("content-encoding", "zstd").body(compressed);
    let future: Value = response.send().await.unwrap().json().await.unwrap();
    let (_, json) = caller.poll(&future).await;
    let output: ForwardBackwardOutput = serde_json::from_value(json).unwrap();
    let shapes = output.loss_fn_outputs.iter().map(|fields| fields["logprobs"].shape.clone());
    assert_eq!(shapes.collect::<Vec<_>>(), [Some(vec![2]), Some(vec![2, 3])]);
    // 0.25 + 0.5, and 0.25 to 1.5.
    assert_eq!(output.metrics["loss:sum"], 0.75 + 5.25);
    assert_eq!(
        server.seen("forward_backward")[0].body["data"][0]["model_input"][0]["encoded_text"]["tokens(int32)"],
        json!([1, 2])
    );
}

#[tokio::test]
async fn scripts_come_first_and_are_used_up() {
    let (server, caller) = start();
    let run = caller.run().await;
    server.when("optim_step").nth(2).answer(Answer::status(503, "busy").header("retry-after", "2"));
    server.when("optim_step").result().answers([
        Answer::pending(QueueState::PausedCapacity),
        Answer::try_again(QueueState::Active, None),
        Answer::failed(Category::User, "learning_rate is NaN"),
    ]);
    let first = caller.step(&run, 1).await;
    let (status, answer) = caller.call("optim_step", json!({ "model_id": run, "seq_id": 2 })).await;
    assert_eq!((status, answer), (503, json!({ "detail": "busy" })));
    assert_eq!(caller.poll(&first).await, (408, json!({ "queue_state": "paused_capacity" })));
    let (_, again) = caller.poll(&first).await;
    assert_eq!((&again["type"], &again["request_id"]), (&json!("try_again"), &first["request_id"]));
    let (_, failed) = caller.poll(&first).await;
    assert_eq!(failed, json!({ "error": "learning_rate is NaN", "category": "user" }));
    assert_eq!(caller.poll(&first).await.1["metrics"]["grad_norm:mean"], 0.5);
    assert_eq!(server.unused_rules(), [""; 0]);
}

#[tokio::test]
async fn faults_of_the_connection_reach_the_client() {
    let (server, caller) = start();
    let url = format!("{}/api/v1/get_server_capabilities", server.url());
    let get = || async { caller.http.get(&url).send().await?.bytes().await };
    server.when("get_server_capabilities").answer(Answer::dropped());
    assert!(get().await.is_err());
    server.when("get_server_capabilities").answer(Answer::cut_off());
    assert!(get().await.is_err());
    server.when("get_server_capabilities").answer(Answer::garbage());
    assert!(serde_json::from_slice::<Value>(&get().await.unwrap()).is_err());
    let pause = Duration::from_millis(2);
    server.when("get_server_capabilities").answer(Answer::usual().slowly(100, pause));
    assert!(get().await.unwrap().starts_with(b"{"));
}

#[tokio::test]
async fn a_conversation_is_recorded_without_secrets_and_repeated() {
    let (server, _) = start();
    let recorder = Recorder::start(&server.url()).unwrap();
    let caller = Caller::new(recorder.url());
    let run = caller.run().await;
    server.when("optim_step").result().answer(Answer::json(json!({ "metrics": { "loss": 7.0 } })));
    let key = caller.http.post(format!("{}/api/v1/optim_step", recorder.url()));
    let key = key.header("x-api-key", "tml-secret").json(&json!({ "model_id": run, "seq_id": 1 }));
    let future: Value = key.send().await.unwrap().json().await.unwrap();
    let result = caller.poll(&future).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("conversation.jsonl");
    recorder.recording().write(&file).unwrap();
    assert!(!std::fs::read_to_string(&file).unwrap().contains("tml-secret"));
    let recording = Recording::read(&file).unwrap();
    assert_eq!(recording, recorder.recording());

    let (server, caller) = start();
    server.replay(&recording).unwrap();
    let run = caller.run().await;
    let future = caller.step(&run, 1).await;
    assert_eq!(caller.poll(&future).await, result);
    assert_eq!(server.unused_rules(), [""; 0]);
}

#[test]
fn an_unreadable_recording_names_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.jsonl");
    std::fs::write(&file, "\n{\"request\": 1}\n").unwrap();
    let message = Recording::read(&file).unwrap_err().to_string();
    assert!(message.contains("broken.jsonl, line 2: "), "{message}");
}

#[tokio::test]
async fn files_are_served_in_parts() {
    let (server, caller) = start();
    let url = server.add_file("/dl/a.bin", &b"0123456789"[..]);
    let part = caller.http.get(&url).header("range", "bytes=4-").send().await.unwrap();
    assert_eq!((part.status().as_u16(), &part.bytes().await.unwrap()[..]), (206, &b"456789"[..]));
    let (status, _) = caller.call("no_such_thing", json!({})).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn samples_have_what_was_asked_for() {
    let (_server, caller) = start();
    caller.run().await;
    let body = json!({ "session_id": SESSION, "sampling_session_seq_id": 0, "base_model": "m" });
    let sampler = caller.ok("create_sampling_session", body).await;
    let body = json!({
        "sampling_session_id": sampler["sampling_session_id"], "seq_id": 0, "num_samples": 2,
        "prompt": { "chunks": [{ "type": "encoded_text", "tokens": [1, 2, 3] }] },
        "sampling_params": { "max_tokens": 2 }, "prompt_logprobs": true,
        "topk_prompt_logprobs": 1, "prompt_alt_tokens_k": 2, "type": "sample",
    });
    let future = caller.ok("asample", body).await;
    assert_eq!(future["sample_sequence_ids"].as_array().unwrap().len(), 2);
    let (_, result) = caller.poll(&future).await;
    assert_eq!(result["sequences"][1]["tokens"], json!([11, 12]));
    assert_eq!(result["prompt_logprobs"], json!([null, -1.0, -2.0]));
}
