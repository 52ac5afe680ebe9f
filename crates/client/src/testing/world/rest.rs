//! What is answered about runs, checkpoints, sessions and accounts. What was never made is made up, unless its
//! name begins with `invalid`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Answered, Reply, Seen, World, is_invalid, known_path, queued::NOW, required};

/// When signed addresses end: never, for tests.
const EXPIRES: &str = "2099-01-03T03:04:05Z";
const OWNER: &str = "tml:organization_user:00000000-0000-0000-0000-000000000001";

impl World {
    pub(super) fn rest(&mut self, seen: &Seen, segments: &[&str]) -> Answered {
        if let Some(invalid) = segments.iter().find(|segment| is_invalid(segment)) {
            return Err(Reply::refused(404, format!("there is no `{invalid}`")));
        }
        let scheme_and_host =
            seen.header("host").map_or_else(String::new, |host| format!("http://{host}"));
        match (seen.method.as_str(), segments) {
            ("GET", ["healthz"]) => Ok(Reply::json(json!({ "status": "ok" }))),
            ("GET", ["get_server_capabilities"]) => Ok(Reply::json(capabilities())),
            ("GET", ["samplers", id]) => self.sampler(id),
            ("GET", ["sessions"]) => Ok(self.sessions(seen)),
            ("POST", ["sessions", "search"]) => Ok(self.search()),
            ("GET", ["sessions", id]) => Ok(self.session(id)),
            ("PUT", ["sessions", _, "project"]) => Ok(Reply::json(Value::Null)),
            ("GET", ["sessions", _, "trace_export"]) => Ok(Reply::json(json!({
                "status": "ready", "url": format!("{scheme_and_host}/dl/trace.pftrace"),
            }))),
            ("GET", ["training_runs"]) => Ok(self.training_runs(seen)),
            ("GET", ["training_runs", id]) => Ok(Reply::json(self.training_run(id))),
            ("GET", ["training_runs" | "models", id, "checkpoints"]) => Ok(self.checkpoints(id)),
            ("GET", ["checkpoints"]) => Ok(self.all_checkpoints(seen)),
            (_, ["training_runs" | "models", run, "checkpoints", kind, name, rest @ ..]) => {
                let path = format!("tinker://{run}/{kind}/{name}");
                known_path(&path)?;
                self.checkpoint(seen, &path, rest, &scheme_and_host)
            }
            ("GET", ["audit"]) => Ok(Reply::json(json!({ "entries": [{
                "timestamp": NOW, "event": "checkpoint_read", "event_details": {},
                "model_id": "run-1", "tinker_path": "tinker://run-1/weights/step-1",
                "purpose": "load",
            }] }))),
            ("GET", ["billing", "usage", "events"]) => {
                Ok(Reply::json(json!({ "data": [], "sessions": {} })))
            }
            ("GET", ["billing", "usage", "checkpoints", "current"]) => {
                Ok(Reply::json(json!({ "data": [] })))
            }
            ("GET", ["auth", "apikey", "me"]) => {
                Ok(Reply::json(json!({ "key_id": 1, "name": "mock", "note": null, "details": {} })))
            }
            ("DELETE", ["auth", "apikey", "me"]) => Ok(Reply::empty()),
            (method, _) => {
                Err(Reply::refused(404, format!("there is no endpoint {method} {}", seen.path)))
            }
        }
    }

    pub(super) fn weights_info(&self, seen: &Seen) -> Answered {
        let path = known_path(required(seen, "tinker_path")?)?;
        let run = self.runs.get(path.run.as_str()).cloned().unwrap_or_default();
        Ok(Reply::json(json!({
            "base_model": run.base_model, "optimizer_config": run.optimizer, "is_lora": true,
            "lora_rank": run.rank(), "train_unembed": true, "train_mlp": true, "train_attn": true,
        })))
    }

    pub(super) fn copy_weights(&mut self, seen: &Seen) -> Answered {
        let source = known_path(required(seen, "source_path")?)?;
        let run = "00000000-0000-4000-8000-0000000000aa:train:0";
        let path = format!("tinker://{run}/{}", source.checkpoint_id());
        self.add_checkpoint(&path);
        Ok(Reply::json(json!({ "tinker_path": path })))
    }

    fn sampler(&self, id: &str) -> Answered {
        let missing = || Reply::refused(404, format!("there is no sampler `{id}`"));
        self.samplers.get(id).ok_or_else(missing).map(|info| Reply::json(info.clone()))
    }

    fn sessions(&self, seen: &Seen) -> Reply {
        let ids: Vec<&String> = self.sessions.keys().collect();
        Reply::json(json!({ "sessions": page(&ids, seen, 20).0 }))
    }

    fn session(&self, id: &str) -> Reply {
        let of = |runs: Vec<&String>| -> Vec<String> {
            runs.into_iter().filter(|run| run.starts_with(id)).cloned().collect()
        };
        let said = self.sessions.get(id);
        Reply::json(json!({
            "training_run_ids": of(self.runs.keys().collect()),
            "sampler_ids": of(self.samplers.keys().collect()),
            "user_metadata": said.map(|said| said["user_metadata"].clone()),
            "display_name": said.map(|said| said["display_name"].clone()),
        }))
    }

    fn search(&self) -> Reply {
        let found: Vec<Value> = (self.sessions.iter())
            .map(|(id, said)| {
                json!({
                    "session_id": id, "created_at": NOW, "owner": OWNER,
                    "project_id": said["project_id"].as_str().unwrap_or("default"),
                    "status": { "type": "active" }, "checkpoints_count": 0,
                    "display_name": said["display_name"], "user_metadata": said["user_metadata"],
                })
            })
            .collect();
        Reply::json(json!({ "sessions": found, "next_cursor": null }))
    }

    fn training_runs(&self, seen: &Seen) -> Reply {
        let ids: Vec<&String> = self.runs.keys().collect();
        let (ids, cursor) = page(&ids, seen, 20);
        let runs: Vec<Value> = ids.iter().map(|id| self.training_run(id)).collect();
        Reply::json(json!({ "training_runs": runs, "cursor": cursor }))
    }

    fn training_run(&self, id: &str) -> Value {
        let run = self.runs.get(id).cloned().unwrap_or_default();
        let last = |kind: &str| {
            let of_run = self.of_run(id).filter(|checkpoint| checkpoint["checkpoint_type"] == kind);
            of_run.last().cloned()
        };
        json!({
            "training_run_id": id, "base_model": run.base_model, "model_owner": OWNER,
            "is_lora": true, "corrupted": false, "lora_rank": run.rank(), "last_request_time": NOW,
            "last_checkpoint": last("training"), "last_sampler_checkpoint": last("sampler"),
            "user_metadata": run.user_metadata,
        })
    }

    fn of_run(&self, run: &str) -> impl Iterator<Item = &Value> {
        let start = format!("tinker://{run}/");
        self.checkpoints.iter().filter(move |(path, _)| path.starts_with(&start)).map(|(_, it)| it)
    }

    fn checkpoints(&self, run: &str) -> Reply {
        let of_run: Vec<&Value> = self.of_run(run).collect();
        Reply::json(json!({ "checkpoints": of_run, "cursor": null }))
    }

    fn all_checkpoints(&self, seen: &Seen) -> Reply {
        let all: Vec<&Value> = self.checkpoints.values().collect();
        let (checkpoints, cursor) = page(&all, seen, 100);
        Reply::json(json!({ "checkpoints": checkpoints, "cursor": cursor }))
    }

    /// Requests about one checkpoint; `rest` is what follows its name.
    fn checkpoint(&mut self, seen: &Seen, path: &str, rest: &[&str], server: &str) -> Answered {
        let mut change = |field: &str, value: Value| {
            if let Some(checkpoint) = self.checkpoints.get_mut(path) {
                checkpoint[field] = value;
            }
            Ok(Reply::empty())
        };
        match (seen.method.as_str(), rest) {
            ("POST", ["publish"]) => change("public", json!(true)),
            ("DELETE", ["publish"]) => change("public", json!(false)),
            ("PUT", ["ttl"]) if seen.body["ttl_seconds"].is_null() => {
                change("expires_at", Value::Null)
            }
            ("PUT", ["ttl"]) => change("expires_at", json!(EXPIRES)),
            ("DELETE", []) => {
                self.checkpoints.remove(path);
                Ok(Reply::empty())
            }
            ("GET", ["archive"]) => {
                let url = format!("{server}/dl/archive.tar");
                let body = json!({ "url": url, "expires": EXPIRES });
                let reply = Reply { status: 302, ..Reply::json(body) };
                Ok(reply.header("location", url).header("expires", "Sat, 03 Jan 2099 03:04:05 GMT"))
            }
            ("GET", ["external_weights_urls"]) => {
                let files = self.files.keys().filter_map(|path| path.strip_prefix("/dl/"));
                let urls: serde_json::Map<String, Value> = files
                    .map(|name| (name.to_owned(), json!(format!("{server}/dl/{name}"))))
                    .collect();
                Ok(Reply::json(json!({ "urls": urls, "expires": EXPIRES })))
            }
            (method, _) => {
                Err(Reply::refused(404, format!("there is no endpoint {method} {}", seen.path)))
            }
        }
    }
}

fn capabilities() -> Value {
    json!({ "supported_models": [
        { "model_name": "Qwen/Qwen3-8B", "max_context_length": 32_768, "trainable": true,
          "sampleable": true },
        { "model_name": "meta-llama/Llama-3.2-1B", "max_context_length": 32_768, "trainable": true,
          "sampleable": false },
    ] })
}

/// The part of a list that the query asks for, and where that is.
fn page<'a, T>(all: &'a [T], seen: &Seen, limit: usize) -> (&'a [T], Value) {
    let asked = |name: &str, otherwise: usize| {
        seen.query.get(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (offset, limit) = (asked("offset", 0), asked("limit", limit));
    let first = offset.min(all.len());
    let end = first.saturating_add(limit).min(all.len());
    (&all[first..end], json!({ "offset": offset, "limit": limit, "total_count": all.len() }))
}

/// A file, or the part of it that a `Range: bytes=…-` asks for.
pub(super) fn file(content: &Bytes, seen: &Seen) -> Reply {
    let whole = Reply::bytes(200, "application/octet-stream", content.clone());
    let whole = whole.header("accept-ranges", "bytes");
    let Some(range) = seen.header("range").and_then(|range| range.strip_prefix("bytes=")) else {
        return whole;
    };
    let (first, last) = range.split_once('-').unwrap_or((range, ""));
    let end = last.parse().map_or(content.len(), |last: usize| last.saturating_add(1));
    let (first, end) = (first.parse().unwrap_or(0), end.min(content.len()));
    if first >= end {
        let total = format!("bytes */{}", content.len());
        return Reply::refused(416, "the range is empty").header("content-range", total);
    }
    let place = format!("bytes {first}-{}/{}", end - 1, content.len());
    let part = Reply::bytes(206, "application/octet-stream", content.slice(first..end));
    part.header("content-range", place)
}
