//! `create_model`, `get_info`, `forward`, `forward_backward`, `optim_step`, `unload_model`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use crate::Error;
use crate::datum::Datum;
use crate::defaults::{beta1, beta2, eps, learning_rate, null_as_default, null_as_nan, rank, yes};
use crate::ids::{ModelId, SeqId, SessionId};
use crate::json::Request;
use crate::proto::{self, loss_config_value};
use crate::session::Metadata;
use crate::tensor::{TensorData, datum_tensor};

/// Body of `POST create_model`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "create_model")]
pub struct CreateModelRequest {
    /// The session that owns the run.
    pub session_id: SessionId,
    /// The run's number within it, from 0.
    pub model_seq_id: i64,
    /// What to train.
    pub base_model: String,
    /// The user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
    /// Shape of the adapter.
    #[serde(default, deserialize_with = "null_as_default")]
    pub lora_config: LoraConfig,
    /// The optimizer.
    #[serde(default, deserialize_with = "null_as_default")]
    pub optimizer_config: OptimizerConfig,
}

impl Request for CreateModelRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("model", "base_model"),
        ("model_name", "base_model"),
        ("rank", "lora_config.rank"),
        ("lora_rank", "lora_config.rank"),
        ("lora_config.r", "lora_config.rank"),
        ("lora_config.lora_rank", "lora_config.rank"),
    ];
}

/// Shape of an adapter.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct LoraConfig {
    /// Columns of A and rows of B. Default: 32.
    #[serde(default = "rank::missing", deserialize_with = "rank::deserialize")]
    pub rank: u32,
    /// Seed of the first weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Adapt the unembedding. Default: true.
    #[serde(default = "yes::missing", deserialize_with = "yes::deserialize")]
    pub train_unembed: bool,
    /// Adapt the feed-forward layers. Default: true.
    #[serde(default = "yes::missing", deserialize_with = "yes::deserialize")]
    pub train_mlp: bool,
    /// Adapt the attention layers. Default: true.
    #[serde(default = "yes::missing", deserialize_with = "yes::deserialize")]
    pub train_attn: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: rank::missing(),
            seed: None,
            train_unembed: true,
            train_mlp: true,
            train_attn: true,
        }
    }
}

/// An optimizer, by its `type`, with whatever settings that type has.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct OptimizerConfig(pub BTreeMap<String, Value>);

impl OptimizerConfig {
    /// The `type`; `adamw` where none is given.
    pub fn kind(&self) -> &str {
        self.0.get("type").and_then(Value::as_str).unwrap_or("adamw")
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self(BTreeMap::from([("type".to_owned(), "adamw".into())]))
    }
}

/// Result of `create_model`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "create_model")]
pub struct CreateModelResponse {
    /// The new run.
    pub model_id: ModelId,
}

/// Body of `POST get_info`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "get_info")]
pub struct GetInfoRequest {
    /// The run.
    pub model_id: ModelId,
}

impl Request for GetInfoRequest {}

/// Answer of `POST get_info`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "get_info")]
pub struct GetInfoResponse {
    /// The base model.
    pub model_data: ModelData,
    /// The run.
    pub model_id: ModelId,
    /// Its optimizer.
    #[serde(default, deserialize_with = "null_as_default")]
    pub optimizer_config: OptimizerConfig,
    /// True: only an adapter is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_lora: Option<bool>,
    /// Rank of the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<u32>,
    /// The name that the run was created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
}

/// A base model, for [`GetInfoResponse`]. Clients want the last two.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct ModelData {
    /// Family of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Name to make samplers with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// Repository of the tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_id: Option<String>,
    /// Rank of the run's adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<u32>,
}

/// Body of `POST forward_backward` in JSON.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ForwardBackwardRequest {
    /// The batch and its loss.
    pub forward_backward_input: ForwardBackwardInput,
    /// The run.
    pub model_id: ModelId,
    /// Order number within the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<SeqId>,
}

impl Request for ForwardBackwardRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("data", "forward_backward_input.data"),
        ("loss_fn", "forward_backward_input.loss_fn"),
        ("loss_fn_config", "forward_backward_input.loss_fn_config"),
        ("forward_input", "forward_backward_input"),
    ];
}

/// Body of `POST forward` (SDK up to 0.24).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ForwardRequest {
    /// The batch and its loss.
    pub forward_input: ForwardBackwardInput,
    /// The run.
    pub model_id: ModelId,
    /// Order number within the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<SeqId>,
}

impl Request for ForwardRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("data", "forward_input.data"),
        ("loss_fn", "forward_input.loss_fn"),
        ("loss_fn_config", "forward_input.loss_fn_config"),
        ("forward_backward_input", "forward_input"),
    ];
}

/// A batch and its loss, in JSON.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ForwardBackwardInput {
    /// The batch.
    pub data: Vec<Datum>,
    /// Name of the loss.
    pub loss_fn: String,
    /// Settings of the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_fn_config: Option<BTreeMap<String, LossConfigValue>>,
}

/// One setting of a loss.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum LossConfigValue {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

impl<'de> Deserialize<'de> for LossConfigValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = LossConfigValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a text")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<LossConfigValue, E> {
                Ok(LossConfigValue::Number(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<LossConfigValue, E> {
                Ok(LossConfigValue::Number(value as f64))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<LossConfigValue, E> {
                Ok(LossConfigValue::Number(value as f64))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<LossConfigValue, E> {
                Ok(LossConfigValue::Text(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl TryFrom<ForwardBackwardRequest> for proto::ForwardBackwardRequest {
    type Error = Error;

    fn try_from(request: ForwardBackwardRequest) -> Result<Self, Error> {
        let ForwardBackwardRequest { forward_backward_input, model_id, seq_id } = request;
        to_proto(forward_backward_input, model_id, seq_id, false)
            .map_err(|e| e.within(|| "forward_backward_input".to_owned()))
    }
}

impl TryFrom<ForwardRequest> for proto::ForwardBackwardRequest {
    type Error = Error;

    fn try_from(request: ForwardRequest) -> Result<Self, Error> {
        let ForwardRequest { forward_input, model_id, seq_id } = request;
        to_proto(forward_input, model_id, seq_id, true)
            .map_err(|e| e.within(|| "forward_input".to_owned()))
    }
}

fn to_proto(
    input: ForwardBackwardInput,
    model_id: ModelId,
    seq_id: Option<SeqId>,
    forward_only: bool,
) -> Result<proto::ForwardBackwardRequest, Error> {
    let seq_id = seq_id
        .map_or(Ok(0), |seq_id| i32::try_from(seq_id.0))
        .map_err(|_| Error::value("seq_id", "is outside the range of a 32-bit integer"))?;
    let data = (input.data.into_iter().enumerate())
        .map(|(i, datum)| datum.try_into().map_err(|e: Error| e.within(|| format!("data[{i}]"))))
        .collect::<Result<_, _>>()?;
    let mut request = proto::ForwardBackwardRequest {
        model_id: model_id.0,
        seq_id,
        data,
        loss_fn: input.loss_fn,
        forward_only,
        ..Default::default()
    };
    request.set_loss_config(input.loss_fn_config.unwrap_or_default());
    Ok(request)
}

impl proto::ForwardBackwardRequest {
    /// Writes the loss's settings into both maps: old readers know the numbers only.
    pub fn set_loss_config(&mut self, config: BTreeMap<String, LossConfigValue>) {
        for (name, value) in config {
            let value = match value {
                LossConfigValue::Number(number) => {
                    self.loss_fn_config.insert(name.clone(), number);
                    loss_config_value::Value::Number(number)
                }
                LossConfigValue::Text(text) => loss_config_value::Value::Text(text),
            };
            self.loss_fn_config_v2.insert(name, proto::LossConfigValue { value: Some(value) });
        }
    }

    /// The loss's settings, from whichever map the client filled.
    pub fn loss_config(&self) -> BTreeMap<String, LossConfigValue> {
        if self.loss_fn_config_v2.is_empty() {
            let numbers = self.loss_fn_config.iter();
            return numbers.map(|(k, v)| (k.clone(), LossConfigValue::Number(*v))).collect();
        }
        let settings = self.loss_fn_config_v2.iter();
        settings
            .filter_map(|(name, setting)| {
                let value = match setting.value.as_ref()? {
                    loss_config_value::Value::Number(number) => LossConfigValue::Number(*number),
                    loss_config_value::Value::Text(text) => LossConfigValue::Text(text.clone()),
                };
                Some((name.clone(), value))
            })
            .collect()
    }

    /// The order number, where the client gave one.
    pub fn order(&self) -> Option<SeqId> {
        (self.seq_id != 0).then(|| SeqId(self.seq_id.into()))
    }
}

/// Result of `forward` and `forward_backward` in JSON.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ForwardBackwardOutput {
    /// A label.
    pub loss_fn_output_type: String,
    /// The named outputs of each datum.
    pub loss_fn_outputs: Vec<BTreeMap<String, TensorData>>,
    /// Numbers named `name:reduction`.
    pub metrics: BTreeMap<String, f64>,
}

impl TryFrom<&proto::ForwardBackwardOutput> for ForwardBackwardOutput {
    type Error = Error;

    fn try_from(output: &proto::ForwardBackwardOutput) -> Result<Self, Error> {
        let mut loss_fn_outputs = Vec::new();
        for (i, record) in output.loss_fn_outputs.iter().enumerate() {
            let datums =
                datums(record).map_err(|e| e.within(|| format!("loss_fn_outputs[{i}]")))?;
            loss_fn_outputs.extend(datums);
        }
        Ok(Self {
            loss_fn_output_type: output.loss_fn_output_type.clone(),
            loss_fn_outputs,
            metrics: output.metrics.clone(),
        })
    }
}

fn datums(record: &proto::ArrayRecord) -> Result<Vec<BTreeMap<String, TensorData>>, Error> {
    let count = usize::try_from(record.num_datums)
        .map_err(|_| Error::value("num_datums", "is negative"))?;
    let mut fields = Vec::with_capacity(record.fields.len());
    for (name, batch) in &record.fields {
        let arrays = batch.datums()?;
        if arrays.len() != count {
            let message = format!("has {} datums of {count}", arrays.len());
            return Err(Error::value(format!("fields.{name}"), message));
        }
        fields.push((name, batch, arrays));
    }
    (0..count)
        .map(|i| {
            let of_datum = fields.iter();
            of_datum
                .map(|(name, batch, arrays)| {
                    Ok(((*name).clone(), datum_tensor(&arrays[i], batch)?))
                })
                .collect()
        })
        .collect()
}

/// Body of `POST optim_step`: parameters for the run's optimizer under one of two names.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "optim_step")]
pub struct OptimStepRequest {
    /// The run.
    pub model_id: ModelId,
    /// Order number within the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<SeqId>,
    /// For `adamw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adam_params: Option<AdamParams>,
    /// For another optimizer, which `type` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_params: Option<BTreeMap<String, Value>>,
}

impl Request for OptimStepRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("learning_rate", "adam_params.learning_rate"),
        ("lr", "adam_params.learning_rate"),
        ("adam_params.lr", "adam_params.learning_rate"),
        ("adam_params.betas", "adam_params.beta1` and `adam_params.beta2"),
        ("adam_params.epsilon", "adam_params.eps"),
        ("adam_params.max_grad_norm", "adam_params.grad_clip_norm"),
        ("adam_params.grad_clip", "adam_params.grad_clip_norm"),
    ];
}

/// One step of `adamw`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct AdamParams {
    /// Default: 1e-4.
    #[serde(default = "learning_rate::missing", deserialize_with = "null_as_nan")]
    pub learning_rate: f64,
    /// Default: 0.9.
    #[serde(default = "beta1::missing", deserialize_with = "null_as_nan")]
    pub beta1: f64,
    /// Default: 0.95.
    #[serde(default = "beta2::missing", deserialize_with = "null_as_nan")]
    pub beta2: f64,
    /// Default: 1e-12.
    #[serde(default = "eps::missing", deserialize_with = "null_as_nan")]
    pub eps: f64,
    /// Decoupled from the gradient. Default: 0.
    #[serde(default, deserialize_with = "null_as_nan")]
    pub weight_decay: f64,
    /// Global norm to clip to; 0 is off. Default: 0.
    #[serde(default, deserialize_with = "null_as_nan")]
    pub grad_clip_norm: f64,
}

impl Default for AdamParams {
    fn default() -> Self {
        Self {
            learning_rate: learning_rate::missing(),
            beta1: beta1::missing(),
            beta2: beta2::missing(),
            eps: eps::missing(),
            weight_decay: 0.0,
            grad_clip_norm: 0.0,
        }
    }
}

/// Result of `optim_step`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "optim_step")]
pub struct OptimStepResponse {
    /// Numbers about the step; their names need no suffix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<BTreeMap<String, f64>>,
}

/// Body of `POST unload_model`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "unload_model")]
pub struct UnloadModelRequest {
    /// The run.
    pub model_id: ModelId,
}

impl Request for UnloadModelRequest {}

/// Result of `unload_model`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "unload_model")]
pub struct UnloadModelResponse {
    /// The run.
    pub model_id: ModelId,
}

#[cfg(test)]
mod tests;
