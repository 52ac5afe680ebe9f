//! What a mock server knows, and what it says where no script says otherwise: one arm an endpoint.

mod datums;
mod queued;
mod rest;
mod results;
mod sampling;
mod training;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tinsmith_types::path::CheckpointPath;

use self::{results::Results, training::Run};
use super::Seen;

/// An answer that is ready to be sent.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: Option<&'static str>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// How long the server holds it back.
    pub(super) hold: Duration,
}

impl Reply {
    pub(super) fn bytes(status: u16, content_type: &'static str, body: Bytes) -> Self {
        let (headers, hold) = (Vec::new(), Duration::ZERO);
        Self { status, content_type: Some(content_type), headers, body, hold }
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers write json!(…) here")]
    pub(super) fn json(body: Value) -> Self {
        Self::bytes(200, "application/json", body.to_string().into())
    }

    fn empty() -> Self {
        Self { content_type: None, ..Self::bytes(204, "", Bytes::new()) }
    }

    pub(super) fn refused(status: u16, detail: impl Into<String>) -> Self {
        let body = json!({ "detail": detail.into() });
        Self { status, ..Self::json(body) }
    }

    fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// An answer, or a refusal.
type Answered = Result<Reply, Reply>;

/// Everything that was made.
#[derive(Debug, Default)]
pub(super) struct World {
    client_config: Option<Value>,
    dynamic_config: Option<Value>,
    files: BTreeMap<String, Bytes>,
    /// What their clients said about them.
    sessions: BTreeMap<String, Value>,
    runs: BTreeMap<String, Run>,
    /// As `GET samplers/{id}` answers.
    samplers: BTreeMap<String, Value>,
    /// Clones of sampling sessions so far.
    clones: BTreeMap<String, i64>,
    /// As lists have them, by `tinker://` path.
    checkpoints: BTreeMap<String, Value>,
    results: Results,
}

impl World {
    pub(super) fn set_client_config(&mut self, config: Value) {
        self.client_config = Some(config);
    }

    pub(super) fn set_dynamic_config(&mut self, config: Value) {
        self.dynamic_config = Some(config);
    }

    pub(super) fn add_file(&mut self, path: &str, content: Bytes) {
        self.files.insert(path.to_owned(), content);
    }

    /// For a poll: the endpoint that what is polled for was asked from.
    pub(super) fn polled_endpoint(&self, seen: &Seen) -> Option<String> {
        if seen.endpoint() != "retrieve_future" {
            return None;
        }
        self.results.endpoint(seen.text("request_id")?).map(str::to_owned)
    }

    /// What the server says.
    pub(super) fn answer(&mut self, seen: &Seen) -> Reply {
        if seen.header("x-api-key").is_some_and(|key| key.starts_with("invalid")) {
            return Reply::refused(401, "the API key is not valid");
        }
        self.answered(seen).unwrap_or_else(|refused| refused)
    }

    fn answered(&mut self, seen: &Seen) -> Answered {
        if let Some(file) = self.files.get(&seen.path) {
            return Ok(rest::file(file, seen));
        }
        let segments: Vec<&str> = seen.endpoint().split('/').collect();
        match (seen.method.as_str(), &segments[..]) {
            ("POST", ["client", "config"]) => Ok(config(self.client_config.as_ref())),
            ("POST", ["client", "dynamic_config"]) => Ok(config(self.dynamic_config.as_ref())),
            ("POST", ["auth", "token"]) => Ok(Reply::json(json!({ "jwt": jwt() }))),
            ("POST", ["telemetry"]) => Ok(Reply::json(json!({ "status": "accepted" }))),
            ("POST", ["create_session"]) => Ok(self.create_session(seen)),
            ("POST", ["session_heartbeat"]) => self.heartbeat(seen),
            ("POST", ["sessions", session, "finish"]) => self.finish(session),
            ("POST", ["create_sampling_session"]) => self.create_sampling_session(seen),
            ("POST", ["join_sampling_session"]) => self.join_sampling_session(seen),
            ("POST", ["asample"]) => self.asample(seen),
            ("POST", ["retrieve_future"]) => self.results.retrieve(seen),
            ("POST", ["retrieve_futures"]) => Ok(self.results.feed(seen)),
            ("POST", ["cancel_future"]) => Ok(Reply::json(json!({}))),
            ("POST", [endpoint]) => self.trained(endpoint, seen),
            _ => self.rest(seen, &segments),
        }
    }

    fn create_session(&mut self, seen: &Seen) -> Reply {
        let id = format!("00000000-0000-4000-8000-{:012}", self.sessions.len() + 1);
        self.sessions.insert(id.clone(), seen.body.clone());
        Reply::json(json!({
            "type": "create_session", "session_id": id,
            "info_message": null, "warning_message": null, "error_message": null,
        }))
    }

    fn heartbeat(&self, seen: &Seen) -> Answered {
        let session = required(seen, "session_id")?;
        if !self.sessions.contains_key(session) {
            return Err(Reply::refused(404, format!("there is no session `{session}`")));
        }
        Ok(Reply::json(json!({ "type": "session_heartbeat" })))
    }

    fn finish(&self, session: &str) -> Answered {
        if !self.sessions.contains_key(session) {
            return Err(Reply::refused(404, format!("there is no session `{session}`")));
        }
        Ok(Reply::json(Value::Null))
    }
}

fn config(config: Option<&Value>) -> Reply {
    Reply::json(config.cloned().unwrap_or_else(|| json!({})))
}

/// A token of the year 2100 that nobody signed.
fn jwt() -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = json!({ "sub": "user", "org_id": "org", "email": "user@example.com",
        "exp": 4_102_444_800_u64, "iat": 1_700_000_000 });
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!("{}.{}.unsigned", part(&json!({ "alg": "none" })), part(&claims))
}

/// A text that the body needs.
fn required<'a>(seen: &'a Seen, field: &str) -> Result<&'a str, Reply> {
    seen.text(field).ok_or_else(|| Reply::refused(422, format!("`{field}` must be a text")))
}

fn required_number(seen: &Seen, field: &str) -> Result<i64, Reply> {
    let number = seen.number_in(field);
    number.ok_or_else(|| Reply::refused(422, format!("`{field}` must be a whole number")))
}

/// Names that begin so are of nothing.
fn is_invalid(name: &str) -> bool {
    name.starts_with("invalid")
}

fn known_model(name: &str) -> Result<&str, Reply> {
    let unknown = || Reply::refused(400, format!("unknown base model `{name}`"));
    if is_invalid(name) { Err(unknown()) } else { Ok(name) }
}

/// A path of a checkpoint that could be there.
fn known_path(path: &str) -> Result<CheckpointPath, Reply> {
    let parsed: CheckpointPath =
        path.parse().map_err(|error| Reply::refused(400, format!("`{path}`: {error}")))?;
    if is_invalid(parsed.run.as_str()) || is_invalid(&parsed.name) {
        return Err(Reply::refused(404, format!("there is no checkpoint `{path}`")));
    }
    Ok(parsed)
}
