//! Queued requests of training runs that have no numbers in them: checkpoints, steps, custom losses.

use serde_json::{Value, json};
use tinsmith_types::path::CheckpointKind;

use super::{
    Answered, Reply, Seen, World, known_path, required, required_number, results::Outcome,
};

/// When everything happens.
pub(super) const NOW: &str = "2026-01-02T03:04:05.678901Z";

impl World {
    /// Queued requests of a run, by its `model_id` and their `seq_id`.
    pub(super) fn trained(&mut self, endpoint: &str, seen: &Seen) -> Answered {
        match endpoint {
            "create_model" => self.create_model(seen),
            "load_weights" if seen.text("model_id").is_none() => self.load_new(seen),
            "get_info" => self.get_info(seen),
            "forward" | "forward_backward" => self.forward_backward(endpoint, seen),
            "create_custom_loss" => self.create_custom_loss(seen),
            "unload_model" => {
                let model_id = required(seen, "model_id")?;
                let future =
                    json!({ "request_id": format!("{model_id}:unload"), "model_id": model_id });
                let done = json!({ "type": "unload_model", "model_id": model_id });
                Ok(self.results.queue(endpoint, future, Outcome::Json(done)))
            }
            "optim_step"
            | "load_weights"
            | "save_weights"
            | "save_weights_for_sampler"
            | "save_weights_external" => self.step(endpoint, seen),
            "weights_info" => self.weights_info(seen),
            "copy_weights" => self.copy_weights(seen),
            _ => Err(Reply::refused(404, format!("there is no endpoint `{endpoint}`"))),
        }
    }

    fn step(&mut self, endpoint: &str, seen: &Seen) -> Answered {
        let model_id = required(seen, "model_id")?.to_owned();
        let seq_id = required_number(seen, "seq_id")?;
        if !self.runs.contains_key(&model_id) {
            return Err(Reply::refused(404, format!("there is no training run `{model_id}`")));
        }
        let request_id = format!("{model_id}:{seq_id}");
        if let Some(again) = self.results.again(&request_id) {
            return Ok(again);
        }
        let done = match endpoint {
            "optim_step" => json!({ "type": endpoint, "metrics": { "grad_norm:mean": 0.5 } }),
            "load_weights" => {
                let path = required(seen, "path")?;
                known_path(path)?;
                json!({ "type": endpoint, "path": path, "model_id": model_id })
            }
            "save_weights" => self.save(seen, &model_id, seq_id, CheckpointKind::Weights)?,
            "save_weights_external" => {
                let mut done =
                    self.save(seen, &model_id, seq_id, CheckpointKind::ExternalWeights)?;
                done["size_bytes"] = json!(123_456);
                done
            }
            _ if seen.text("path").is_some() => {
                self.save(seen, &model_id, seq_id, CheckpointKind::SamplerWeights)?
            }
            _ => self.save_unnamed(seen, &model_id)?,
        };
        let future = json!({ "request_id": request_id, "model_id": model_id });
        Ok(self.results.queue(endpoint, future, Outcome::Json(done)))
    }

    /// A checkpoint with a name.
    fn save(
        &mut self,
        seen: &Seen,
        model_id: &str,
        seq_id: i64,
        kind: CheckpointKind,
    ) -> Result<Value, Reply> {
        let name = seen.text("path").map_or_else(|| format!("step-{seq_id}"), str::to_owned);
        let path = format!("tinker://{model_id}/{}/{name}", kind.as_str());
        if self.checkpoints.contains_key(&path) && seen.body["overwrite"] != json!(true) {
            return Err(Reply::refused(400, format!("there is a checkpoint `{path}` already")));
        }
        self.add_checkpoint(&path);
        if let Some(checkpoint) = self.checkpoints.get_mut(&path) {
            checkpoint["user_metadata"] = seen.body["user_metadata"].clone();
        }
        Ok(json!({ "type": seen.endpoint(), "path": path }))
    }

    /// A sampler of the weights as they are.
    fn save_unnamed(&mut self, seen: &Seen, model_id: &str) -> Result<Value, Reply> {
        let number = required_number(seen, "sampling_session_seq_id")?;
        let session = model_id.split(':').next().unwrap_or_default();
        let id = format!("{session}:sample:{number}");
        let base_model = self.runs.get(model_id).map(|run| run.base_model.clone());
        let info = json!({ "sampler_id": id, "base_model": base_model, "model_path": null });
        self.samplers.insert(id.clone(), info);
        Ok(json!({ "type": seen.endpoint(), "sampling_session_id": id }))
    }

    /// A checkpoint as lists have it, and its run.
    pub(in super::super) fn add_checkpoint(&mut self, tinker_path: &str) {
        let rest = tinker_path.strip_prefix("tinker://").unwrap_or(tinker_path);
        let (run, id) = rest.split_once('/').unwrap_or((rest, "weights/unnamed"));
        let kind = match id.split('/').next() {
            Some("sampler_weights") => "sampler",
            Some("external_weights") => "external",
            Some(_) | None => "training",
        };
        let checkpoint = json!({
            "checkpoint_id": id, "checkpoint_type": kind, "time": NOW, "tinker_path": tinker_path,
            "size_bytes": 123_456, "public": false, "user_metadata": null, "expires_at": null,
        });
        self.checkpoints.insert(tinker_path.to_owned(), checkpoint);
        self.runs.entry(run.to_owned()).or_default();
    }

    fn create_custom_loss(&mut self, seen: &Seen) -> Answered {
        let session = required(seen, "session_id")?;
        let number = seen.number_in("custom_loss_seq_id").unwrap_or_default();
        let loss_id = format!("{session}:loss:{number}");
        let future = json!({ "request_id": format!("{loss_id}:create") });
        let done = json!({ "type": "create_custom_loss", "loss_id": loss_id });
        Ok(self.results.queue("create_custom_loss", future, Outcome::Json(done)))
    }
}
