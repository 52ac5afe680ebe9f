//! A recording's requests on their way to a real server, with its ids and numbers in place of the recorded
//! ones.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use prost::Message as _;
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::{Value, json};
use tinsmith_types::proto::{ForwardBackwardRequest, loss_config_value};

use crate::{
    recording::{self, Exchange, Named, Recording, Request},
    server::{Reply, Server},
};

/// Fields of answers that later requests name.
const LEARNT: [&str; 8] = [
    "request_id",
    "session_id",
    "model_id",
    "sampling_session_id",
    "loss_id",
    "jwt",
    "url",
    "sequence_id",
];

/// Polls of half a minute each, after which a result does not come any more.
const POLLS_MAX: usize = 2;

pub(crate) struct Conversation<'a> {
    pub(crate) server: &'a Server,
    /// Recorded text to ours.
    names: BTreeMap<String, String>,
    /// The same for what texts begin with.
    sessions: BTreeMap<String, String>,
    /// What to add to the recorded numbers of a run that was not made in the recording: it begins in the
    /// middle.
    shifts: BTreeMap<String, i64>,
    /// Where our feed of finished samples stands.
    cursor: Value,
}

impl<'a> Conversation<'a> {
    fn empty(server: &'a Server) -> Self {
        let (names, sessions, shifts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { server, names, sessions, shifts, cursor: json!(0) }
    }

    /// Makes what the recording takes for granted.
    pub(crate) async fn new(server: &'a Server, recording: &Recording) -> Self {
        let mut this = Self::empty(server);
        let requests = || recording.exchanges.iter().map(|exchange| &exchange.request);
        let (named, made) = (Named::by(requests()), recording::made(requests()));
        this.prepare_sessions(&named).await;
        for run in named.runs.difference(&made.runs) {
            this.prepare_run(run, recording, &named, &made).await;
        }
        for sampler in named.samplers.difference(&made.samplers) {
            this.prepare_sampler(sampler).await;
        }
        for loss in named.losses.difference(&made.losses) {
            this.prepare_loss(loss).await;
        }
        this
    }

    /// Makes what these requests name; all their runs are one. Returns it too, with its next number.
    pub(crate) async fn about(
        server: &'a Server,
        requests: &[Request],
    ) -> (Self, Option<(String, i64)>) {
        let mut this = Self::empty(server);
        let named = Named::by(requests.iter());
        this.prepare_sessions(&named).await;
        let mut one = None;
        if let Some(run) = named.runs.first() {
            let checkpoints = named.checkpoints.iter();
            let checkpoints = checkpoints.map(|(_, kind, name)| (kind.as_str(), name.as_str()));
            let (model, order) = this.make_run(run, checkpoints.collect()).await;
            this.names.extend(named.runs.iter().map(|run| (run.clone(), model.clone())));
            one = Some((model, order));
        }
        for sampler in &named.samplers {
            this.prepare_sampler(sampler).await;
        }
        for loss in &named.losses {
            this.prepare_loss(loss).await;
        }
        (this, one)
    }

    async fn prepare_sessions(&mut self, named: &Named) {
        let mut sessions = named.sessions.clone();
        let of = named.runs.iter().chain(&named.samplers).chain(&named.losses);
        sessions
            .extend(of.filter_map(|id| id.split_once(':')).map(|(session, _)| session.to_owned()));
        // Of runs that are named without their session.
        sessions.insert("session-a".to_owned());
        for session in sessions {
            let body = json!({
                "tags": ["t"], "user_metadata": {"k": "v"}, "sdk_version": "0.38.0",
                "display_name": "nightly", "project_id": "proj-1", "type": "create_session",
            });
            let made = self.server.post("create_session", &body).await.json();
            self.sessions.insert(session, made["session_id"].as_str().unwrap().to_owned());
        }
    }

    async fn prepare_run(&mut self, run: &str, recording: &Recording, named: &Named, made: &Named) {
        let missing = named.checkpoints.difference(&made.checkpoints);
        let of_run = missing.filter(|(of, _, _)| of == run);
        let checkpoints = of_run.map(|(_, kind, name)| (kind.as_str(), name.as_str())).collect();
        let (model, order) = self.make_run(run, checkpoints).await;
        let numbers = recording.exchanges.iter().filter_map(|exchange| {
            let says = exchange.request.says();
            says["seq_id"].as_i64().filter(|_| says["model_id"] == json!(run))
        });
        self.shifts.insert(run.to_owned(), order - numbers.min().unwrap_or(1));
        self.names.insert(run.to_owned(), model);
    }

    /// A run with checkpoints of these kinds and names. Returns its id and its next number.
    async fn make_run(&self, run: &str, checkpoints: BTreeSet<(&str, &str)>) -> (String, i64) {
        let (session, number) = run.split_once(":train:").unwrap_or(("session-a", "90"));
        let body = json!({
            "session_id": self.sessions[session], "model_seq_id": number.parse::<i64>().unwrap(),
            "base_model": "Qwen/Qwen3-8B", "lora_config": {"rank": 32}, "user_metadata": {"k": "v"},
        });
        let created = self.server.done("create_model", &body).await;
        let model = created["model_id"].as_str().unwrap_or_else(|| panic!("{created}")).to_owned();
        let mut order = 1;
        for (kind, name) in checkpoints {
            let endpoint = match kind {
                "weights" => "save_weights",
                "sampler_weights" => "save_weights_for_sampler",
                _ => "save_weights_external",
            };
            let body = json!({
                "model_id": model, "seq_id": order, "path": name, "user_metadata": {"k": "v"},
                "ttl_seconds": 86_400,
            });
            let saved = self.server.done(endpoint, &body).await;
            // A refusal is seen where the checkpoint is missed.
            order += i64::from(saved.get("path").is_some());
        }
        (model, order)
    }

    async fn prepare_sampler(&mut self, sampler: &str) {
        let (session, number) = sampler.split_once(":sample:").unwrap();
        let body = json!({
            "session_id": self.sessions[session], "base_model": "Qwen/Qwen3-8B",
            "sampling_session_seq_id": number.parse::<i64>().unwrap(),
        });
        let made = self.server.post("create_sampling_session", &body).await.json();
        let ours = made["sampling_session_id"].as_str().unwrap_or_else(|| panic!("{made}"));
        self.names.insert(sampler.to_owned(), ours.to_owned());
    }

    /// The loss that was recorded when one was made.
    async fn prepare_loss(&mut self, loss: &str) {
        let (session, number) = loss.split_once(":loss:").unwrap();
        let recordings = recording::all("0.38.0");
        let made = recordings
            .iter()
            .flat_map(|recording| &recording.exchanges)
            .find(|exchange| exchange.request.endpoint() == "create_custom_loss");
        let mut body = made.unwrap().request.says().clone();
        body["session_id"] = json!(self.sessions[session]);
        body["custom_loss_seq_id"] = json!(number.parse::<i64>().unwrap());
        let made = self.server.done("create_custom_loss", &body).await;
        if let Some(ours) = made["loss_id"].as_str() {
            self.names.insert(loss.to_owned(), ours.to_owned());
        }
    }

    /// Whether the request polls for something that was submitted.
    pub(crate) fn can_poll(&self, request: &Request) -> bool {
        let id = &request.says()["request_id"];
        id.as_str().is_none_or(|id| self.names.contains_key(id))
    }

    /// Sends it as it was recorded, and polls until there is a result.
    pub(crate) async fn send(&mut self, exchange: &Exchange) -> Reply {
        let request = &exchange.request;
        let (path, headers, body) = (self.path(request), self.headers(request), self.body(request));
        let mut polls = 0;
        loop {
            let (headers, body) = (headers.clone(), body.clone());
            let sent = self.server.send(&request.method, &path, headers, body).await;
            let reply = sent.unwrap_or_else(|error| panic!("{path}: {error:?}"));
            polls += 1;
            if reply.status != 408 || polls == POLLS_MAX {
                self.learn(exchange, &reply);
                return reply;
            }
        }
    }

    pub(crate) fn path(&self, request: &Request) -> String {
        if let Some(place) = self.names.get(&request.path) {
            return place.clone();
        }
        let segments = request.path.split('/').map(|segment| self.ours(segment));
        let path = segments.collect::<Vec<_>>().join("/");
        let query = request.query.iter().map(|(key, value)| format!("{key}={}", self.ours(value)));
        let query = query.collect::<Vec<_>>().join("&");
        if query.is_empty() { path } else { format!("{path}?{query}") }
    }

    pub(crate) fn headers(&self, request: &Request) -> HeaderMap {
        let headers = request.headers.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().unwrap();
            // Keys of recordings are told apart, as those of clients are.
            let value = value.replace("<uuid4", &format!("<{}", self.sessions["session-a"]));
            (name, self.ours(&value).parse().unwrap())
        });
        headers.collect()
    }

    pub(crate) fn body(&self, request: &Request) -> Vec<u8> {
        match request.body["encoding"].as_str() {
            None => Vec::new(),
            Some("json") => {
                let mut json = request.body["json"].clone();
                if let Some(order) = json["seq_id"].as_i64() {
                    json["seq_id"] = json!(order + self.shift(json["model_id"].as_str()));
                }
                if json["prev_cursor"].is_number() {
                    json["prev_cursor"] = self.cursor.clone();
                }
                self.ours_in_json(&json).to_string().into_bytes()
            }
            Some(encoding) => {
                let bytes = self.batch(request).encode_to_vec();
                if encoding.ends_with("zstd") {
                    zstd::encode_all(&bytes[..], 3).unwrap()
                } else {
                    bytes
                }
            }
        }
    }

    /// A recorded protobuf body.
    pub(crate) fn batch(&self, request: &Request) -> ForwardBackwardRequest {
        let mut bytes = BASE64.decode(request.body["raw_base64"].as_str().unwrap()).unwrap();
        if request.body["encoding"] == json!("protobuf+zstd") {
            bytes = zstd::decode_all(&bytes[..]).unwrap();
        }
        let mut batch = ForwardBackwardRequest::decode(&bytes[..]).unwrap();
        batch.seq_id += i32::try_from(self.shift(Some(&batch.model_id))).unwrap();
        batch.model_id = self.ours(&batch.model_id);
        for setting in batch.loss_fn_config_v2.values_mut() {
            if let Some(loss_config_value::Value::Text(text)) = &mut setting.value {
                *text = self.ours(text);
            }
        }
        batch
    }

    fn shift(&self, run: Option<&str>) -> i64 {
        run.and_then(|run| self.shifts.get(run)).copied().unwrap_or(0)
    }

    fn ours_in_json(&self, json: &Value) -> Value {
        match json {
            Value::Object(fields) => fields
                .iter()
                .map(|(name, value)| (name.clone(), self.ours_in_json(value)))
                .collect(),
            Value::Array(values) => values.iter().map(|value| self.ours_in_json(value)).collect(),
            Value::String(text) => json!(self.ours(text)),
            Value::Null | Value::Bool(_) | Value::Number(_) => json.clone(),
        }
    }

    fn ours(&self, text: &str) -> String {
        if let Some(ours) = self.names.get(text) {
            return ours.clone();
        }
        if let Some(path) = text.strip_prefix("tinker://") {
            let segments = path.split('/').map(|segment| self.ours(segment));
            return format!("tinker://{}", segments.collect::<Vec<_>>().join("/"));
        }
        let sessions = self.sessions.iter();
        sessions.fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
    }

    /// With recorded ids in place of ours, for lines that do not vary.
    pub(crate) fn theirs(&self, text: &str) -> String {
        let mut names: Vec<_> = self.names.iter().chain(&self.sessions).collect();
        names.sort_by_key(|(theirs, ours)| (std::cmp::Reverse(ours.len()), theirs.len()));
        names.into_iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(ours, theirs))
    }

    fn learn(&mut self, exchange: &Exchange, reply: &Reply) {
        let (recorded, json) = (&exchange.response.body["json"], reply.json());
        self.learn_json(recorded, &json);
        if let (Some(theirs), Some(ours)) =
            (recorded["session_id"].as_str(), json["session_id"].as_str())
        {
            self.sessions.insert(theirs.to_owned(), ours.to_owned());
        }
        if let Some(location) = exchange.response.headers.get("location") {
            self.learn_url(location, reply.header("location"));
        }
        if !json["cursor"].is_null() && exchange.request.endpoint() == "retrieve_futures" {
            self.cursor = json["cursor"].clone();
        }
    }

    fn learn_json(&mut self, recorded: &Value, ours: &Value) {
        match (recorded, ours) {
            (Value::Object(recorded), Value::Object(ours)) => {
                for (name, theirs) in recorded {
                    let our = ours.get(name).unwrap_or(&Value::Null);
                    match (theirs.as_str(), our.as_str()) {
                        (Some(theirs), Some(ours)) if theirs.contains("://") => {
                            self.learn_url(theirs, ours);
                        }
                        (Some(theirs), Some(ours)) if LEARNT.contains(&name.as_str()) => {
                            self.names.insert(theirs.to_owned(), ours.to_owned());
                        }
                        _ => self.learn_json(theirs, our),
                    }
                }
            }
            (Value::Array(recorded), Value::Array(ours)) => {
                recorded
                    .iter()
                    .zip(ours)
                    .for_each(|(recorded, ours)| self.learn_json(recorded, ours));
            }
            _ => {}
        }
    }

    /// Downloads are asked for by path.
    fn learn_url(&mut self, theirs: &str, ours: &str) {
        let path = |url: &str| url.splitn(4, '/').nth(3).map(|path| format!("/{path}"));
        if let (true, Some(theirs), Some(ours)) =
            (theirs.starts_with("http://"), path(theirs), path(ours))
        {
            self.names.insert(theirs, ours);
        }
    }
}
