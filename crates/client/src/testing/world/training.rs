//! Training runs: how they come about, what they say about themselves, and their forward passes.

use serde_json::{Value, json};

use super::{
    Answered, Reply, Seen, World, datums, known_model, known_path, required, required_number,
    results::Outcome,
};

/// The model of what was not made here.
const BASE_MODEL: &str = "Qwen/Qwen3-8B";

/// A training run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) base_model: String,
    /// As it was asked for.
    pub(super) lora: Value,
    pub(super) optimizer: Value,
    pub(super) user_metadata: Value,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            base_model: BASE_MODEL.to_owned(),
            lora: json!({ "rank": 32, "train_unembed": true, "train_mlp": true, "train_attn": true }),
            optimizer: json!({ "type": "adamw" }),
            user_metadata: Value::Null,
        }
    }
}

impl Run {
    pub(super) fn rank(&self) -> u64 {
        self.lora["rank"].as_u64().unwrap_or(32)
    }
}

impl World {
    pub(super) fn create_model(&mut self, seen: &Seen) -> Answered {
        let base_model = known_model(required(seen, "base_model")?)?.to_owned();
        let run = Run { base_model, ..described(seen, Run::default()) };
        self.begin(
            "create_model",
            seen,
            run,
            |model_id| json!({ "type": "create_model", "model_id": model_id }),
        )
    }

    /// `load_weights` that makes a run.
    pub(super) fn load_new(&mut self, seen: &Seen) -> Answered {
        let path = required(seen, "path")?;
        let source = known_path(path)?;
        let saved = self.runs.get(source.run.as_str()).cloned().unwrap_or_default();
        let run = described(seen, saved);
        self.begin(
            "load_weights",
            seen,
            run,
            |model_id| json!({ "type": "load_weights", "path": path, "model_id": model_id }),
        )
    }

    fn begin(
        &mut self,
        endpoint: &str,
        seen: &Seen,
        run: Run,
        done: impl Fn(&str) -> Value,
    ) -> Answered {
        let session = required(seen, "session_id")?;
        let number = required_number(seen, "model_seq_id")?;
        let model_id = format!("{session}:train:{number}");
        let future = json!({ "request_id": format!("{model_id}:0"), "model_id": model_id });
        self.runs.insert(model_id.clone(), run);
        Ok(self.results.queue(endpoint, future, Outcome::Json(done(&model_id))))
    }

    pub(super) fn get_info(&self, seen: &Seen) -> Answered {
        let model_id = required(seen, "model_id")?;
        let missing = || Reply::refused(404, format!("there is no training run `{model_id}`"));
        let run = self.runs.get(model_id).ok_or_else(missing)?;
        let tokenizer_id = run.base_model.split(':').next();
        Ok(Reply::json(json!({
            "type": "get_info",
            "model_data": {
                "arch": "mock", "model_name": run.base_model, "tokenizer_id": tokenizer_id,
                "lora_rank": run.rank(),
            },
            "model_id": model_id, "optimizer_config": run.optimizer, "is_lora": true,
            "lora_rank": run.rank(), "model_name": run.base_model,
        })))
    }

    pub(super) fn forward_backward(&mut self, endpoint: &str, seen: &Seen) -> Answered {
        let request = datums::request(seen)?;
        if !self.runs.contains_key(&request.model_id) {
            let message = format!("there is no training run `{}`", request.model_id);
            return Err(Reply::refused(404, message));
        }
        let request_id = format!("{}:{}", request.model_id, request.seq_id);
        if let Some(again) = self.results.again(&request_id) {
            return Ok(again);
        }
        let outcome = Outcome::Forward(datums::output(&request)?);
        let future = json!({ "request_id": request_id, "model_id": request.model_id });
        Ok(self.results.queue(endpoint, future, outcome))
    }
}

/// What the request says about a run that is to be, over `run`.
fn described(seen: &Seen, mut run: Run) -> Run {
    let given = |field: &str| Some(&seen.body[field]).filter(|value| !value.is_null()).cloned();
    if let Some(base_model) = seen.text("base_model") {
        base_model.clone_into(&mut run.base_model);
    }
    run.lora = given("lora_config").unwrap_or(run.lora);
    run.optimizer = given("optimizer_config").unwrap_or(run.optimizer);
    run.user_metadata = seen.body["user_metadata"].clone();
    run
}
