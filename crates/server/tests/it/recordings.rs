//! Recorded conversations of the official SDK, sent again to this server with its own ids in place of
//! the recorded ones. What is answered otherwise than it was recorded is listed, and why is to be seen.

use std::{collections::BTreeMap, fs, path::PathBuf};

use axum::http::{Method, Request};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use insta::assert_snapshot;
use prost::Message;
use serde_json::{Value, json};
use tinsmith_types::proto::ForwardBackwardRequest;

use crate::harness::{Reply, Server};

/// The sessions of all recordings, all but the last digit.
const SESSION: &str = "00000000-0000-4000-8000-00000000000";

/// Recordings with answers that are wrong on purpose, or of endpoints that this server does not have.
const LEFT_OUT: [&str; 20] = [
    "admin.",
    "behaviour.cancel.",
    "behaviour.clone.",
    "behaviour.future.",
    "behaviour.heartbeat.410",
    "behaviour.jwt.",
    "behaviour.loss.",
    "behaviour.misc.client_config_404",
    "behaviour.misc.dynamic_config_404",
    "behaviour.poison.",
    "behaviour.poller.",
    "behaviour.pool.",
    "behaviour.retry.",
    "behaviour.sample.",
    "behaviour.status.",
    "behaviour.train.after_400",
    "behaviour.train.create_model_",
    "behaviour.train.optim_submit_",
    "behaviour.train.save_weights_",
    "cli.",
];

#[tokio::test]
async fn recordings_of_0_38_0_are_answered_alike() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../recordings/0.38.0");
    let mut names: Vec<String> = fs::read_dir(folder.clone())
        .expect("the golden files of the wire")
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !LEFT_OUT.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    let mut differences = Vec::new();
    for name in &names {
        let recording = fs::read_to_string(folder.join(name)).unwrap();
        let recording: Value = serde_json::from_str(&recording).unwrap();
        let name = name.trim_end_matches(".json");
        let lines = Replay::new(name, &recording).await.run().await;
        differences.extend(lines.into_iter().map(|line| format!("{name}: {line}")));
    }
    // So that looking at nothing does not pass.
    assert!(names.len() > 70, "{names:?}");
    assert_snapshot!(differences.join("\n"), @r#"
    behaviour.misc.session_messages: create_session 200 without error_message, info_message, warning_message
    create_lora_training_client_dimuon: create_model 400 {"code":"unsupported_optimizer","detail":"optimizer_config.type \"dimuon\" is not supported; known: adamw"}
    create_lora_training_client_dimuon: get_info 404 {"code":"not_found","detail":"run 00000000-0000-4000-8000-000000000001:train:2 not found"}
    create_training_client_from_state_full: load_weights 400 {"code":"invalid_load","detail":"weights_access_token is not supported by this server; publish the checkpoint instead"}
    create_training_client_from_state_full: get_info 404 {"code":"not_found","detail":"run 00000000-0000-4000-8000-000000000001:train:5 not found"}
    forward_backward.dmel: retrieve_future 200 {"category":"user","error":"data[0].model_input.chunks[1] is audio; this server's models read text only"}
    forward_backward.gspo: retrieve_future 200 {"category":"user","error":"loss_fn \"gspo\" is unknown; known: cross_entropy, importance_sampling, ppo, cispo, dro"}
    forward_backward.image: retrieve_future 200 {"category":"user","error":"data[0].model_input.chunks[1] is an image; this server's models read text only"}
    forward_backward.stable_reinforce: retrieve_future 200 {"category":"user","error":"loss_fn \"stable_reinforce\" is unknown; known: cross_entropy, importance_sampling, ppo, cispo, dro"}
    optim_step_dimuon: optim_step 404 {"code":"not_found","detail":"run 00000000-0000-4000-8000-000000000001:train:2 not found"}
    rest.assign_session_project: sessions/session-a/project 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/sessions/00000000-0000-4000-8000-000000000001/project; GET / lists all"}
    rest.copy_weights: copy_weights 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/copy_weights; GET / lists all"}
    rest.export_session_trace: sessions/session-a/trace_export 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/sessions/00000000-0000-4000-8000-000000000001/trace_export; GET / lists all"}
    rest.export_session_trace: sessions/session-a/trace_export 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/sessions/00000000-0000-4000-8000-000000000001/trace_export; GET / lists all"}
    rest.get_audit_log: audit 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/audit; GET / lists all"}
    rest.get_billing_usage: billing/usage/events 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/billing/usage/events; GET / lists all"}
    rest.get_external_weights_urls: training_runs/run-1/checkpoints/external_weights/final/external_weights_urls 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/training_runs/00000000-0000-4000-8000-000000000001:train:0/checkpoints/external_weights/final/external_weights_urls; GET / lists all"}
    rest.get_session: sessions/session-a 200 without display_name
    rest.search_sessions: sessions/search 405 {"code":"method_not_allowed","detail":"method POST is not allowed on /api/v1/sessions/search; GET / lists all endpoints"}
    sample_image_prompt: asample 400 {"code":"unsupported","detail":"prompt.chunks[1] is an image; this server's models read text only"}
    save_weights_and_get_sampling_client.inflight: retrieve_future 200 {"category":"user","error":"kind \"inflight\" is not supported by this server; use \"snapshot\""}
    save_weights_external: save_weights_external 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/save_weights_external; GET / lists all"}
    service_client.copy_weights: copy_weights 404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/copy_weights; GET / lists all"}
    "#);
}

/// One conversation under way.
struct Replay<'a> {
    server: Server,
    exchanges: &'a [Value],
    /// Recorded text to ours, in paths and bodies.
    texts: Vec<(String, String)>,
    /// Recorded request ids to ours.
    requests: BTreeMap<String, String>,
    /// The last number that our run had before the recording.
    order: i64,
    /// The first number that the recording's run has in it: recordings begin in the middle.
    first_order: i64,
}

/// The number of a training request.
fn order(exchange: &Value) -> Option<i64> {
    let body = &exchange["request"]["body"];
    let body = if body["json"].is_object() { &body["json"] } else { &body["decoded"] };
    body["model_id"].as_str().and_then(|_| body["seq_id"].as_i64())
}

impl<'a> Replay<'a> {
    /// A server that has what the recording takes for granted.
    async fn new(name: &str, recording: &'a Value) -> Self {
        let server = Server::start();
        let session = server.session().await;
        let model = format!("{session}:train:0");
        let mut texts: Vec<(String, String)> =
            (1..6).map(|digit| (format!("{SESSION}{digit}"), session.clone())).collect();
        texts.push(("session-a".to_owned(), session.clone()));
        texts.push(("run-1".to_owned(), model.clone()));
        let exchanges = recording["exchanges"].as_array().unwrap();
        let mut replay = Self {
            server,
            exchanges,
            texts,
            requests: BTreeMap::new(),
            order: 0,
            first_order: exchanges.iter().filter_map(order).min().unwrap_or(1),
        };
        if !name.starts_with("create_lora") {
            replay.prepare_run(&session).await;
            // What saves makes these itself.
            if !name.starts_with("save_") {
                replay.prepare_checkpoints(&model).await;
            }
        }
        replay.prepare_samplers(&session).await;
        replay
    }

    async fn prepare_run(&self, session: &str) {
        let body = json!({
            "session_id": session, "model_seq_id": 0, "base_model": "Qwen/Qwen3-8B",
            "lora_config": {"rank": 32}, "user_metadata": {"k": "v"},
        });
        assert_eq!(self.server.done("create_model", body).await.status, 200);
    }

    async fn prepare_checkpoints(&mut self, model: &str) {
        let saves = [
            ("save_weights", "step-1"),
            ("save_weights_for_sampler", "step-1"),
            ("save_weights_for_sampler", "s-1"),
        ];
        for (endpoint, name) in saves {
            self.order += 1;
            let body = json!({"model_id": model, "seq_id": self.order, "path": name});
            self.server.post(endpoint, body).await;
        }
        // The last one is done when all are.
        self.order += 1;
        let body = json!({"model_id": model, "seq_id": self.order, "adam_params": {}});
        self.server.done("optim_step", body).await;
    }

    /// Samplers that are used and not made in the recording.
    async fn prepare_samplers(&self, session: &str) {
        let makes = |exchange: &&Value| {
            exchange["request"]["path"] == json!("/api/v1/create_sampling_session")
        };
        if self.exchanges.iter().any(|exchange| makes(&exchange)) {
            return;
        }
        for number in [0, 3, 5] {
            let used = format!(":sample:{number}");
            if self.exchanges.iter().any(|exchange| exchange["request"].to_string().contains(&used))
            {
                let body = json!({
                    "session_id": session, "sampling_session_seq_id": number, "base_model": "nano",
                });
                assert_eq!(self.server.post("create_sampling_session", body).await.status, 200);
            }
        }
    }

    async fn run(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        // Chunks of a batch are polled for before the first of them is sent, by other connections.
        let is_poll = |each: &&Value| each["request"]["path"] == json!("/api/v1/retrieve_future");
        let (polls, others): (Vec<&Value>, Vec<&Value>) = self.exchanges.iter().partition(is_poll);
        for exchange in others.into_iter().chain(polls) {
            let (recorded, path) =
                (&exchange["response"], exchange["request"]["path"].as_str().unwrap());
            let id = exchange["request"]["body"]["json"]["request_id"].as_str().unwrap_or_default();
            let is_answered = recorded["status"] == json!(200) && self.requests.contains_key(id);
            if is_poll(&exchange) && !is_answered {
                continue;
            }
            let reply = self.send(&exchange["request"]).await;
            self.learn(&recorded["body"]["json"], &reply);
            lines.extend(difference(recorded, &reply).map(|difference| {
                let difference = self
                    .texts
                    .iter()
                    .fold(difference, |line, (theirs, ours)| line.replace(ours, theirs));
                format!("{} {difference}", path.trim_start_matches("/api/v1/"))
            }));
        }
        lines
    }

    async fn send(&self, request: &Value) -> Reply {
        let path = self.ours(request["path"].as_str().unwrap());
        let mut query: Vec<String> = Vec::new();
        for (key, value) in request["query"].as_object().unwrap() {
            query.push(format!("{key}={}", value.as_str().unwrap()));
        }
        let body = self.body(&request["body"]);
        for _ in 0..200 {
            let mut builder = Request::builder()
                .method(Method::from_bytes(request["method"].as_str().unwrap().as_bytes()).unwrap())
                .uri(format!("{path}?{}", query.join("&")));
            for (key, value) in request["headers"].as_object().unwrap() {
                builder = builder.header(key, value.as_str().unwrap());
            }
            let reply = self.server.send(builder.body(body.clone().into()).unwrap()).await;
            if reply.status != 408 {
                return reply;
            }
        }
        panic!("{path} never ended");
    }

    /// The recorded body with our ids and numbers.
    fn body(&self, body: &Value) -> Vec<u8> {
        match body["encoding"].as_str() {
            None => Vec::new(),
            Some("json") => {
                let mut json: Value =
                    serde_json::from_str(&self.ours(&body["json"].to_string())).unwrap();
                if let Some(id) = body["json"]["request_id"].as_str() {
                    json["request_id"] = json!(self.requests.get(id));
                }
                if json["model_id"].is_string() && json["seq_id"].is_number() {
                    let recorded = json["seq_id"].as_i64().unwrap();
                    json["seq_id"] = json!(recorded - self.first_order + 1 + self.order);
                }
                json.to_string().into_bytes()
            }
            Some(encoding) => {
                let mut bytes = BASE64.decode(body["raw_base64"].as_str().unwrap()).unwrap();
                if encoding.ends_with("zstd") {
                    bytes = zstd::decode_all(&bytes[..]).unwrap();
                }
                let mut request = ForwardBackwardRequest::decode(&bytes[..]).unwrap();
                request.model_id = self.ours(&request.model_id);
                let shift = i32::try_from(self.order - self.first_order).unwrap();
                request.seq_id += shift + 1;
                let bytes = request.encode_to_vec();
                if encoding.ends_with("zstd") {
                    zstd::encode_all(&bytes[..], 3).unwrap()
                } else {
                    bytes
                }
            }
        }
    }

    fn ours(&self, text: &str) -> String {
        self.texts.iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
    }

    fn learn(&mut self, recorded: &Value, reply: &Reply) {
        let json = reply.json();
        if let (Some(theirs), Some(ours)) =
            (recorded["request_id"].as_str(), json["request_id"].as_str())
        {
            self.requests.insert(theirs.to_owned(), ours.to_owned());
        }
        if let (Some(theirs), Some(ours)) =
            (recorded["session_id"].as_str(), json["session_id"].as_str())
        {
            self.texts.retain(|(known, _)| known != theirs);
            self.texts.push((theirs.to_owned(), ours.to_owned()));
        }
    }
}

/// What of the reply is not as recorded: its status, its kind of body, or keys that are missing.
fn difference(recorded: &Value, reply: &Reply) -> Option<String> {
    let json = reply.json();
    let is_failure = json["error"].is_string();
    if !reply.status.is_success() || is_failure {
        return Some(reply.line());
    }
    let is_protobuf =
        reply.headers.get("content-type").is_some_and(|kind| kind == "application/x-protobuf");
    if is_protobuf != (recorded["body"]["encoding"] == json!("protobuf")) {
        return Some(format!("{} of another encoding", reply.status));
    }
    let keys = recorded["body"]["json"].as_object()?.iter();
    let missing: Vec<&str> = keys
        .filter(|(key, value)| !value.is_null() && json.get(key.as_str()).is_none())
        .map(|(key, _)| key.as_str())
        .collect();
    (!missing.is_empty())
        .then(|| format!("{} without {}", reply.status.as_u16(), missing.join(", ")))
}
