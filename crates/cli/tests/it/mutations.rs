//! Every recorded request, spoilt in many ways, sent to a real server: it answers, never with its own fault,
//! and a run goes on with the next number after each refusal. `FUZZ_TIMES=100` spoils a hundred times more.

mod spoil;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::spoil::Spoilt;
use crate::{
    conversation::Conversation,
    random::{self, Random},
    recording::{self, Request, VERSIONS},
    server::{Reply, Server},
};

/// Values replaced in each distinct request.
const VALUES: usize = 6;
/// Ways to spoil each distinct binary body.
const BYTES: usize = 12;
/// Spoilt paths of each distinct request without a body.
const PATHS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn spoilt_requests_are_refused() {
    let times = random::times();
    let server = Arc::new(Server::start());
    let mut endpoints = JoinSet::new();
    for (endpoint, requests) in distinct() {
        // A spoilt poll may wait as long as a good one: they wait beside each other.
        let at_once = if endpoint.contains("retrieve_future") { 1 } else { requests.len() };
        for requests in requests.chunks(at_once) {
            let (server, endpoint) = (Arc::clone(&server), endpoint.clone());
            endpoints.spawn(spoil(server, endpoint, requests.to_vec(), times));
        }
    }
    let (mut problems, mut sent) = (Vec::new(), 0);
    while let Some(endpoint) = endpoints.join_next().await {
        let (found, count) = endpoint.unwrap();
        problems.extend(found);
        sent += count;
    }
    problems.extend(server.complaints());
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    // So that spoiling nothing does not pass.
    assert!(sent > 2000, "{sent}");
}

/// Requests that differ in more than ids and numbers, by endpoint.
fn distinct() -> BTreeMap<String, Vec<Request>> {
    let mut endpoints: BTreeMap<String, Vec<Request>> = BTreeMap::new();
    let mut known = BTreeSet::new();
    for recording in VERSIONS.iter().rev().flat_map(|version| recording::all(version)) {
        for exchange in recording.exchanges {
            let request = exchange.request;
            let mut says = request.says().clone();
            for field in ["request_id", "seq_id", "model_seq_id", "sampling_session_seq_id"] {
                if says.get(field).is_some() {
                    says[field] = Value::Null;
                }
            }
            let place = format!("{} {}", request.method, request.endpoint());
            let encoding = &request.body["encoding"];
            if known.insert(format!("{place} {encoding} {:?} {says}", request.query)) {
                endpoints.entry(place).or_default().push(request);
            }
        }
    }
    endpoints
}

/// All requests of one endpoint in a conversation of its own. Returns problems and the number of requests.
async fn spoil(
    server: Arc<Server>,
    endpoint: String,
    requests: Vec<Request>,
    times: usize,
) -> (Vec<String>, usize) {
    let mut random = Random::new(&endpoint);
    let mut spoiling = Spoiling::new(&server, &endpoint, &requests).await;
    for request in &requests {
        spoiling.request(request, &mut random, times).await;
    }
    spoiling.finish().await;
    for request in &requests {
        spoiling.place(request, &mut random, times).await;
    }
    (spoiling.problems, spoiling.sent)
}

struct Spoiling<'a> {
    server: &'a Server,
    endpoint: &'a str,
    conversation: Conversation<'a>,
    /// The run that requests are for, and its next number.
    run: Option<(String, i64)>,
    /// Results that have to come.
    awaited: Vec<String>,
    problems: Vec<String>,
    sent: usize,
}

impl<'a> Spoiling<'a> {
    async fn new(server: &'a Server, endpoint: &'a str, requests: &[Request]) -> Self {
        let (conversation, run) = Conversation::about(server, requests).await;
        let (awaited, problems) = (Vec::new(), Vec::new());
        Self { server, endpoint, conversation, run, awaited, problems, sent: 0 }
    }

    async fn request(&mut self, request: &Request, random: &mut Random, times: usize) {
        let path = self.conversation.path(request);
        match request.body["encoding"].as_str() {
            None => {
                for path in random.some(spoil::paths(&path), PATHS * times) {
                    let spoilt =
                        Spoilt { how: path.clone(), body: Vec::new(), headers: Vec::new() };
                    self.answer(request, &path, &spoilt).await;
                }
            }
            Some("json") => self.json(request, &path, random, times).await,
            Some(_) => {
                for round in 0..spoil::BINARY + BYTES * times {
                    let mut batch = self.conversation.batch(request);
                    batch.seq_id = i32::try_from(self.order()).unwrap();
                    let is_packed = request.body["encoding"] == json!("protobuf+zstd");
                    let spoilt = spoil::batch(batch, is_packed, round, random);
                    self.send(request, &path, spoilt).await;
                }
            }
        }
    }

    async fn json(&mut self, request: &Request, path: &str, random: &mut Random, times: usize) {
        let mut body: Value = serde_json::from_slice(&self.conversation.body(request)).unwrap();
        let is_numbered = is_numbered(&body);
        for round in 0..spoil::WHOLE + VALUES * times {
            if is_numbered {
                body["seq_id"] = json!(self.order());
            }
            let spoilt = spoil::whole(&body)
                .into_iter()
                .nth(round)
                .or_else(|| spoil::json(&body, |field| !(is_numbered && is_place(field)), random));
            let Some(spoilt) = spoilt else { break };
            self.send(request, path, spoilt).await;
        }
    }

    /// Spoils for which run it is, and its number in it: it may take any place of any run.
    async fn place(&mut self, request: &Request, random: &mut Random, times: usize) {
        let body = serde_json::from_slice(&self.conversation.body(request)).unwrap_or_default();
        if !is_numbered(&body) {
            return;
        }
        let path = self.conversation.path(request);
        for _ in 0..4 * times {
            let Some(spoilt) = spoil::json(&body, is_place, random) else { break };
            self.answer(request, &path, &spoilt).await;
        }
    }

    fn order(&self) -> i64 {
        self.run.as_ref().map_or(1, |(_, order)| *order)
    }

    /// Sends it, and finds out whether it used the run's number up: where the server could read which it is,
    /// a client goes on with the next.
    async fn send(&mut self, request: &Request, path: &str, spoilt: Spoilt) {
        let Some(reply) = self.answer(request, path, &spoilt).await else { return };
        if let (200, Some(id)) = (reply.status, reply.json()["request_id"].as_str()) {
            self.awaited.push(id.to_owned());
        }
        let has_place = spoilt.has_place(request, self.run.as_ref());
        let Some((model, order)) = &mut self.run else { return };
        // An answer that says nothing of numbers comes of a number that was not read.
        if reply.status == 404 || (reply.status == 200 && !has_place) {
            return;
        }
        // No recording has this rate: it is another request than what was accepted under the number.
        let adam = json!({"learning_rate": 0.000_123});
        let body = json!({"model_id": model, "seq_id": *order, "adam_params": adam});
        let probe = self.server.post("optim_step", &body).await;
        *order += 1;
        if has_place && probe.status == 200 {
            let text = String::from_utf8_lossy(&reply.body);
            let how = &spoilt.how;
            self.problems
                .push(format!("{}: {how}: the number is not used up: {text}", self.endpoint));
        }
    }

    async fn answer(&mut self, request: &Request, path: &str, spoilt: &Spoilt) -> Option<Reply> {
        self.sent += 1;
        let headers = self.headers(request, spoilt);
        let sent = self.server.send(&request.method, path, headers, spoilt.body.clone()).await;
        let reply = match sent {
            Ok(reply) => reply,
            Err(error) => {
                self.problems
                    .push(format!("{}: {}: no answer: {error:?}", self.endpoint, spoilt.how));
                return None;
            }
        };
        let length = reply.header("content-length").parse().unwrap_or(0);
        if reply.status >= 500 || (reply.status >= 400 && length == 0) {
            let said = String::from_utf8_lossy(&reply.body);
            let status = reply.status;
            self.problems.push(format!("{}: {}: {status} {said}", self.endpoint, spoilt.how));
        }
        Some(reply)
    }

    fn headers(&self, request: &Request, spoilt: &Spoilt) -> HeaderMap {
        let mut headers = self.conversation.headers(request);
        // A repeated key is a repeated request.
        headers.remove("x-idempotency-key");
        if request.body["encoding"] != json!("protobuf+zstd") || !spoilt.headers.is_empty() {
            headers.remove("content-encoding");
        }
        for (name, value) in &spoilt.headers {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    /// Everything that was accepted ends, and the run goes on.
    async fn finish(&mut self) {
        if let Some((model, order)) = &self.run {
            let body = json!({"model_id": model, "seq_id": order, "adam_params": {}});
            let reply = self.server.post("optim_step", &body).await;
            match reply.json()["request_id"].as_str() {
                Some(id) => self.awaited.push(id.to_owned()),
                // It was ended by one of the requests.
                None if reply.status == 410 => {}
                None => self.problems.push(format!("{}: then {reply:?}", self.endpoint)),
            }
        }
        for id in std::mem::take(&mut self.awaited) {
            match self.server.result_within(&id, 8).await {
                None => self.problems.push(format!("{}: {id} never ends", self.endpoint)),
                Some(result) if result["category"] == json!("server") => {
                    self.problems.push(format!("{}: {id} ends with {result}", self.endpoint));
                }
                Some(_) => {}
            }
        }
    }
}

/// Whether it has a place in a run's order.
fn is_numbered(body: &Value) -> bool {
    body["model_id"].is_string() && body["seq_id"].is_number()
}

fn is_place(field: &str) -> bool {
    matches!(field, "model_id" | "seq_id")
}
