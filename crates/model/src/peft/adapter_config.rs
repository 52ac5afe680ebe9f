//! `adapter_config.json`: PEFT's `LoraConfig`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::CONFIG;
use crate::{
    Error, Result,
    config::DecoderConfig,
    lora::{ALPHA, LoraSpec, Site},
};

/// What we need of it.
pub(super) struct AdapterConfig {
    pub(super) rank: usize,
    pub(super) alpha: f32,
    /// The base model as the adapter's author called it.
    pub(super) base_model_name: Option<String>,
    targets: Targets,
    excluded: Targets,
    /// Numbers of the layers that it trains; `None`: all.
    layers: Option<Vec<u64>>,
}

/// Which modules are meant.
enum Targets {
    /// Whole names, or their last parts.
    Named(Vec<String>),
    /// Every linear module but the unembedding.
    AllLinear,
    /// A regular expression in Python's dialect, or nothing at all: only the tensors tell.
    Unknown,
}

/// Keys that change nothing about what the adapter computes, or that the tensors say better.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_to_transform",
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

/// Why a feature is refused, and what would do.
const REASONS: &[(&str, &str)] = &[
    ("alpha_pattern", "all modules have one alpha here"),
    ("bias", "only \"none\" is: an adapter trains no biases here"),
    ("fan_in_fan_out", "weights lie as [outputs, inputs] here"),
    ("init_lora_weights", "it changes the base weights too; convert it to a plain LoRA with PEFT"),
    ("lora_bias", "an adapter trains no biases here"),
    ("modules_to_save", "whole modules are not trained here"),
    ("rank_pattern", "all modules have one rank here"),
    ("target_parameters", "only the weights of linear modules are trained here"),
    ("trainable_token_indices", "the embedding is not trained here"),
    ("use_dora", "DoRA's magnitudes cannot be held in A and B"),
    (
        "use_rslora",
        "scaling is lora_alpha / r here; lora_alpha times the square root of r with use_rslora false is the \
         same adapter",
    ),
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
                "layers_pattern" => {
                    is_off(value) || value == "layers" || *value == json!(["layers"])
                }
                key => HARMLESS.contains(&key) || is_off(value),
            };
            if !accepted {
                let reason = REASONS.iter().find(|(known, _)| known == key);
                let reason = reason.map_or_else(String::new, |(_, reason)| format!(": {reason}"));
                let problem = format!("sets `{key}` to {value}, which is not supported{reason}");
                return Err(refuse(&problem));
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
        let name = json.get("base_model_name_or_path").and_then(Value::as_str);
        let targets = Targets::parse("target_modules", json.get("target_modules"))?;
        let excluded = Targets::parse("exclude_modules", json.get("exclude_modules"))?;
        let layers = layers(json.get("layers_to_transform"))?;
        let base_model_name = name.filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(Self { rank, alpha, base_model_name, targets, excluded, layers })
    }

    /// Whether PEFT would give this site a LoRA; `None` where only the tensors tell.
    pub(super) fn targets(&self, config: &DecoderConfig, site: Site) -> Option<bool> {
        let found = match &self.targets {
            Targets::Named(names) => {
                let module = site.module(config);
                let in_layers = match (&self.layers, site) {
                    (None, _) => true,
                    (Some(layers), Site::Layer(layer, _)) => layers.contains(&(layer as u64)),
                    (Some(_), Site::Unembed) => false,
                };
                // As in PEFT, the layers bind only names that are not whole.
                names.contains(&module) || (in_layers && is_named(&module, names))
            }
            Targets::AllLinear => site != Site::Unembed,
            Targets::Unknown => return None,
        };
        match &self.excluded {
            Targets::Named(names) => {
                let module = site.module(config);
                Some(found && !names.contains(&module) && !is_named(&module, names))
            }
            Targets::AllLinear | Targets::Unknown => (!found).then_some(false),
        }
    }
}

impl Targets {
    fn parse(key: &str, value: Option<&Value>) -> Result<Self> {
        match value {
            None | Some(Value::Null) if key == "exclude_modules" => Ok(Self::Named(Vec::new())),
            Some(Value::Array(items)) => {
                let names: Option<_> =
                    items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                let problem = || refuse(&format!("has a `{key}` that is no list of names"));
                Ok(Self::Named(names.ok_or_else(problem)?))
            }
            Some(Value::String(text)) if text == "all-linear" => Ok(Self::AllLinear),
            None | Some(Value::Null | Value::String(_)) => Ok(Self::Unknown),
            Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                Err(refuse(&format!("has a `{key}` that is neither a text nor a list of names")))
            }
        }
    }
}

/// Whether one of `names` is the end of the module's name.
fn is_named(module: &str, names: &[String]) -> bool {
    let ends =
        |name: &String| module.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
    names.iter().any(ends)
}

/// A layer's number, or a list of them; nothing: all layers.
fn layers(value: Option<&Value>) -> Result<Option<Vec<u64>>> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let items = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    let numbers: Option<Vec<u64>> = items.iter().map(Value::as_u64).collect();
    let problem = || refuse("has a `layers_to_transform` that is no list of layers' numbers");
    Ok(Some(numbers.ok_or_else(problem)?).filter(|numbers| !numbers.is_empty()))
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
