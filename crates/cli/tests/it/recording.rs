//! The files in `recordings`, and what they take for granted.

use std::{
    collections::BTreeMap,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

pub(crate) const VERSIONS: [&str; 7] =
    ["0.3.0", "0.6.3", "0.12.0", "0.18.2", "0.26.2", "0.33.1", "0.38.0"];

/// One call of an SDK.
#[derive(Debug, Deserialize)]
pub(crate) struct Recording {
    /// The file's name without its end.
    #[serde(default)]
    pub(crate) operation: String,
    pub(crate) exchanges: Vec<Exchange>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Exchange {
    pub(crate) request: Request,
    pub(crate) response: Response,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) headers: BTreeMap<String, String>,
    /// `encoding`, and `json`, or `decoded` and `raw_base64`; or null.
    pub(crate) body: Value,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Response {
    /// None: the connection was dropped.
    #[serde(default)]
    pub(crate) status: Option<u16>,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) body: Value,
}

impl Request {
    /// The path behind `/api/v1/`.
    pub(crate) fn endpoint(&self) -> &str {
        self.path.trim_start_matches("/api/v1/")
    }

    /// What the body says, whatever its encoding.
    pub(crate) fn says(&self) -> &Value {
        if self.body["json"].is_object() { &self.body["json"] } else { &self.body["decoded"] }
    }

    pub(crate) fn is_poll(&self) -> bool {
        matches!(self.endpoint(), "retrieve_future" | "retrieve_futures")
    }

    /// Whether it can be sent before the results of what was sent before are there.
    pub(crate) fn is_submission(&self) -> bool {
        let endpoint = self.endpoint();
        matches!(endpoint, "create_model" | "asample" | "optim_step" | "create_custom_loss")
            || ["forward", "save_", "load_", "unload_"]
                .iter()
                .any(|word| endpoint.starts_with(word))
    }
}

/// All recordings of a version, by name.
pub(crate) fn all(version: &str) -> Vec<Recording> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings").join(version);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: BTreeSet<_> = files.collect();
    let read = |file: &PathBuf| {
        let read: Recording = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let operation = file.file_stem().unwrap().to_str().unwrap().to_owned();
        Recording { operation, ..read }
    };
    files.iter().map(read).collect()
}

/// Things that a recording's requests name.
#[derive(Debug, Default)]
pub(crate) struct Named {
    pub(crate) sessions: BTreeSet<String>,
    /// `<session>:train:<number>` or `run-1`.
    pub(crate) runs: BTreeSet<String>,
    /// `<session>:sample:<number>`.
    pub(crate) samplers: BTreeSet<String>,
    /// `<session>:loss:<number>`.
    pub(crate) losses: BTreeSet<String>,
    /// Run, kind and name.
    pub(crate) checkpoints: BTreeSet<(String, String, String)>,
}

impl Named {
    pub(crate) fn by<'a>(requests: impl Iterator<Item = &'a Request>) -> Self {
        let mut named = Self::default();
        for request in requests {
            named.in_path(request.endpoint());
            named.in_json(request.says());
            if request.method == "GET" && !request.endpoint().contains("/checkpoints") {
                named.listed(request.endpoint());
            }
        }
        named
    }

    /// Lists shall have something in them.
    fn listed(&mut self, endpoint: &str) {
        let run = endpoint.strip_prefix("training_runs/").unwrap_or("run-1");
        let kinds: &[&str] = match endpoint {
            "checkpoints" | "audit" | "billing/usage/checkpoints/current" => &["weights"],
            _ if endpoint.starts_with("training_runs") => &["weights", "sampler_weights"],
            _ if endpoint.starts_with("sessions/") => {
                self.samplers.insert("session-a:sample:0".to_owned());
                &["weights"]
            }
            _ => return,
        };
        self.runs.insert(run.to_owned());
        for kind in kinds {
            self.checkpoints.insert((run.to_owned(), (*kind).to_owned(), "step-1".to_owned()));
        }
    }

    fn in_path(&mut self, endpoint: &str) {
        match endpoint.split('/').collect::<Vec<_>>()[..] {
            ["sessions", session, ..] if session != "search" => {
                self.sessions.insert(session.to_owned());
            }
            ["training_runs" | "models", run, ref rest @ ..] => {
                self.runs.insert(run.to_owned());
                if let ["checkpoints", kind, name, ..] = *rest {
                    self.checkpoints.insert((run.to_owned(), kind.to_owned(), name.to_owned()));
                } else if rest == ["checkpoints"] {
                    let name = "step-1".to_owned();
                    self.checkpoints.insert((run.to_owned(), "weights".to_owned(), name));
                }
            }
            ["samplers", sampler] => {
                self.samplers.insert(sampler.to_owned());
            }
            _ => {}
        }
    }

    fn in_json(&mut self, json: &Value) {
        match json {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str() {
                        Some(text) if name.ends_with("_id") => self.in_id(name, text),
                        _ => self.in_json(value),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.in_json(value)),
            Value::String(text) => {
                if let Some(path) = text.strip_prefix("tinker://")
                    && let [run, kind, name] = path.split('/').collect::<Vec<_>>()[..]
                {
                    self.runs.insert(run.to_owned());
                    self.checkpoints.insert((run.to_owned(), kind.to_owned(), name.to_owned()));
                }
                if text.contains(":loss:") {
                    self.losses.insert(text.clone());
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn in_id(&mut self, name: &str, text: &str) {
        match name {
            "session_id" => self.sessions.insert(text.to_owned()),
            "model_id" => self.runs.insert(text.to_owned()),
            "sampling_session_id" => self.samplers.insert(text.to_owned()),
            _ => false,
        };
    }
}

/// Things that a recording's requests make.
pub(crate) fn made<'a>(requests: impl Iterator<Item = &'a Request>) -> Named {
    let mut named = Named::default();
    for request in requests {
        let says = request.says();
        let session = says["session_id"].as_str().unwrap_or_default();
        if let Some(number) = says["model_seq_id"].as_i64() {
            named.runs.insert(format!("{session}:train:{number}"));
        }
        if let Some(number) = says["custom_loss_seq_id"].as_i64() {
            named.losses.insert(format!("{session}:loss:{number}"));
        }
        let run = says["model_id"].as_str().unwrap_or_default();
        if let Some(number) = says["sampling_session_seq_id"].as_i64() {
            let session = if session.is_empty() { run.split(':').next().unwrap() } else { session };
            named.samplers.insert(format!("{session}:sample:{number}"));
        }
        let kind = match request.endpoint() {
            "save_weights" => "weights",
            "save_weights_for_sampler" => "sampler_weights",
            "save_weights_external" => "external_weights",
            _ => continue,
        };
        if let Some(name) = says["path"].as_str() {
            named.checkpoints.insert((run.to_owned(), kind.to_owned(), name.to_owned()));
        }
    }
    named
}
