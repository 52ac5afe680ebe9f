//! `adapter_config.json`: PEFT's `LoraConfig`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::CONFIG;
use crate::{
    Error, Result,
    lora::{ALPHA, LoraSpec},
};

/// What we need of it.
pub(super) struct AdapterConfig {
    pub(super) rank: usize,
    pub(super) alpha: f32,
}

/// Keys that change nothing about what the adapter computes, or that the tensors say better.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "low_cpu_mem_usage",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

impl AdapterConfig {
    /// Reads what we support and refuses the rest by name. A key that is unknown passes only where it is
    /// off, so that a newer PEFT's feature is never silently left out.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let json: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|error| refuse(&format!("is not a JSON object ({error})")))?;
        if json.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            let found = json.get("peft_type").unwrap_or(&Value::Null);
            return Err(refuse(&format!("has peft_type {found}; only \"LORA\" is supported")));
        }
        for (key, value) in &json {
            let accepted = match key.as_str() {
                "bias" => value == "none",
                // Others (PiSSA, OLoRA, LoftQ, CorDA) change the base weights too.
                "init_lora_weights" => value.is_boolean() || value == "gaussian",
                key => HARMLESS.contains(&key) || is_off(value),
            };
            if !accepted {
                return Err(refuse(&format!("sets `{key}` to {value}, which is not supported")));
            }
        }
        let rank =
            json.get("r").and_then(Value::as_u64).and_then(|rank| usize::try_from(rank).ok());
        let rank = rank.ok_or_else(|| refuse("has no whole number `r`"))?;
        let alpha = json.get("lora_alpha").and_then(Value::as_f64);
        let alpha = alpha.ok_or_else(|| refuse("has no number `lora_alpha`"))?;
        #[expect(clippy::cast_possible_truncation, reason = "adapters are f32")]
        let alpha = alpha as f32;
        if !(alpha.is_finite() && alpha > 0.0) {
            return Err(refuse("has a `lora_alpha` that is not a positive number"));
        }
        Ok(Self { rank, alpha })
    }
}

/// The file for an adapter of ours. Only keys that every PEFT version of the last years knows.
pub(super) fn to_json(
    spec: &LoraSpec,
    base_model_name: &str,
    modules: &BTreeSet<String>,
) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "a whole number")]
    let alpha = ALPHA as i64;
    let json = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base_model_name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": spec.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    format!("{json:#}\n").into_bytes()
}

/// Whether a value says that a feature is not used.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
    }
}

fn refuse(problem: &str) -> Error {
    Error::Adapter(format!("{CONFIG} {problem}"))
}
