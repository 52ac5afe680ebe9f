//! `create_sampling_session`, `join_sampling_session`, `samplers/{id}`, `asample`.

use std::fmt;

use serde::de::{self, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize};

use crate::Error;
use crate::defaults::{null_as_default, num_samples, temperature, top_k, top_p};
use crate::ids::{SamplingSessionId, SeqId, SessionId};
use crate::json::Request;
use crate::model_input::ModelInput;
use crate::proto;
use crate::proto::pack::{unpack_f32, unpack_i32};
use crate::tensor::TensorData;

/// Body of `POST create_sampling_session`: with one of `base_model` and `model_path`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "create_sampling_session")]
pub struct CreateSamplingSessionRequest {
    /// The session that owns it.
    pub session_id: SessionId,
    /// Its number within the session, from 0.
    pub sampling_session_seq_id: i64,
    /// Sample from a base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Sample from a checkpoint: `tinker://<run>/sampler_weights/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_path: Option<String>,
}

impl Request for CreateSamplingSessionRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] =
        &[("model", "base_model"), ("path", "model_path")];
}

/// Answer of `POST create_sampling_session`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "create_sampling_session")]
pub struct CreateSamplingSessionResponse {
    /// The new sampler.
    pub sampling_session_id: SamplingSessionId,
}

/// Body of `POST join_sampling_session`: another client of a sampler asks for its number.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "join_sampling_session")]
pub struct JoinSamplingSessionRequest {
    /// The sampler.
    pub sampling_session_id: SamplingSessionId,
}

impl Request for JoinSamplingSessionRequest {}

/// Answer of `POST join_sampling_session`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "join_sampling_session")]
pub struct JoinSamplingSessionResponse {
    /// At least 1, and no other client's of this sampler: 0 is the one that opened it.
    pub client_counter: i64,
}

/// Answer of `GET samplers/{id}`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct SamplerInfo {
    /// The sampler.
    pub sampler_id: SamplingSessionId,
    /// The model under its adapter.
    pub base_model: String,
    /// The checkpoint that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_path: Option<String>,
    /// Where the model's tokenizer is, as in `get_info`. The official server does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_id: Option<String>,
}

/// Body of `POST asample`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "sample")]
pub struct SampleRequest {
    /// The sampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_session_id: Option<SamplingSessionId>,
    /// Number of the sample within the sampling session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<SeqId>,
    /// Without a sampler: the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Without a sampler: the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_path: Option<String>,
    /// Independent continuations of the prompt. Default: 1.
    #[serde(default = "num_samples::missing", deserialize_with = "num_samples::deserialize")]
    pub num_samples: u32,
    /// What to continue.
    pub prompt: ModelInput,
    /// How.
    #[serde(default, deserialize_with = "null_as_default")]
    pub sampling_params: SamplingParams,
    /// Score the prompt's tokens.
    #[serde(default, deserialize_with = "null_as_default")]
    pub prompt_logprobs: bool,
    /// Likeliest tokens of each prompt position, of the model's own distribution; 0 is none.
    #[serde(default, deserialize_with = "null_as_default")]
    pub topk_prompt_logprobs: u32,
    /// Likeliest tokens of each drawn position, of the distribution that the drawn token's own logprob is
    /// of: at the temperature (the plain one at 0), before `top_k` and `top_p`; 0 is none.
    #[serde(default, deserialize_with = "null_as_default")]
    pub topk_sample_logprobs: u32,
    /// Tokens to score at each prompt position from 1 on: int64, `[prompt - 1, K]`, dense or CSR; -1 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_prompt_logprobs: Option<TensorData>,
    /// Alternatives to draw for each prompt position from 1 on, at the temperature; `top_k` and `top_p` do
    /// not bound them, so that their logprobs are those of what they are drawn from. 0 is none.
    #[serde(default, deserialize_with = "null_as_default")]
    pub prompt_alt_tokens_k: u32,
    /// Of `prompt_logprobs` and `topk_prompt_logprobs`, only this many at the prompt's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs_last_n: Option<u32>,
    /// Remember what `stable_reinforce` needs.
    #[serde(default, deserialize_with = "null_as_default")]
    pub record_stability_info: bool,
}

impl Request for SampleRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("n", "num_samples"),
        ("num_sequences", "num_samples"),
        ("max_tokens", "sampling_params.max_tokens"),
        ("temperature", "sampling_params.temperature"),
        ("stop", "sampling_params.stop"),
        ("sampling_params.n", "num_samples"),
        ("sampling_params.num_samples", "num_samples"),
        ("sampling_params.max_new_tokens", "max_tokens"),
        ("sampling_params.max_completion_tokens", "max_tokens"),
        ("sampling_params.stop_sequences", "stop"),
        ("sampling_params.stop_token_ids", "stop"),
    ];
}

/// How to continue a prompt.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SamplingParams {
    /// Tokens to draw at most. Default: as many as the context takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Seed of the draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What ends a sequence. Default: the model's own end tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// 0 is greedy. Default: 1.
    #[serde(default = "temperature::missing", deserialize_with = "temperature::deserialize")]
    pub temperature: f64,
    /// -1 is off. Default: -1.
    #[serde(default = "top_k::missing", deserialize_with = "top_k::deserialize")]
    pub top_k: i32,
    /// 1 is off. Default: 1.
    #[serde(default = "top_p::missing", deserialize_with = "top_p::deserialize")]
    pub top_p: f64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: None,
            seed: None,
            stop: None,
            temperature: temperature::missing(),
            top_k: top_k::missing(),
            top_p: top_p::missing(),
        }
    }
}

/// What ends a sequence.
///
/// ```
/// use tinsmith_types::sampling::Stop;
///
/// let read = |json| serde_json::from_str::<Stop>(json);
/// assert_eq!(read(r#""END""#)?, Stop::Text("END".into()));
/// assert_eq!(read(r#"["END", "\n"]"#)?, Stop::Texts(vec!["END".into(), "\n".into()]));
/// assert_eq!(read("[7, 8]")?, Stop::Tokens(vec![7, 8]));
/// assert_eq!(read("[]")?, Stop::Tokens(vec![]));
/// assert_eq!(
///     read(r#"["END", 7]"#).unwrap_err().to_string(),
///     "invalid type: integer `7`, expected a text like the first entry at line 1 column 10"
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Stop {
    /// One text.
    Text(String),
    /// Any of several texts.
    Texts(Vec<String>),
    /// Any of several tokens. Empty: nothing does, not even the model's end token.
    Tokens(Vec<i32>),
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StopVisitor)
    }
}

struct StopVisitor;

impl<'de> de::Visitor<'de> for StopVisitor {
    type Value = Stop;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list of texts, or a list of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Stop, E> {
        Ok(Stop::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Stop, A::Error> {
        let mut stop = match seq.next_element()? {
            None => return Ok(Stop::Tokens(Vec::new())),
            Some(StopEntry::Token(token)) => Stop::Tokens(vec![token]),
            Some(StopEntry::Text(text)) => Stop::Texts(vec![text]),
        };
        while let Some(entry) = seq.next_element()? {
            stop.push(entry)?;
        }
        Ok(stop)
    }
}

impl Stop {
    fn push<E: de::Error>(&mut self, entry: StopEntry) -> Result<(), E> {
        match (self, entry) {
            (Self::Tokens(tokens), StopEntry::Token(token)) => tokens.push(token),
            (Self::Texts(texts), StopEntry::Text(text)) => texts.push(text),
            (_, StopEntry::Token(token)) => {
                let token = de::Unexpected::Signed(token.into());
                return Err(E::invalid_type(token, &"a text like the first entry"));
            }
            (_, StopEntry::Text(text)) => {
                let text = de::Unexpected::Str(&text);
                return Err(E::invalid_type(text, &"a token id like the first entry"));
            }
        }
        Ok(())
    }
}

enum StopEntry {
    Text(String),
    Token(i32),
}

impl<'de> Deserialize<'de> for StopEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = StopEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a token id")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StopEntry, E> {
                Ok(StopEntry::Text(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, token: i64) -> Result<StopEntry, E> {
                i32::try_from(token)
                    .map(StopEntry::Token)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(token), &self))
            }

            fn visit_u64<E: de::Error>(self, token: u64) -> Result<StopEntry, E> {
                i32::try_from(token)
                    .map(StopEntry::Token)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(token), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Result of a sample in JSON. What is missing is null, as it always was.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "sample")]
pub struct SampleResponse {
    /// The continuations.
    pub sequences: Vec<SampledSequence>,
    /// One a prompt token, the first is null.
    #[serde(default)]
    pub prompt_logprobs: Option<Vec<Option<f32>>>,
    /// One row a prompt token, the first is null.
    #[serde(default)]
    pub topk_prompt_logprobs: Option<Vec<TopkRow>>,
    /// In shape and layout of the request's. Clients that read JSON do not know it and forbid what they do
    /// not know, so that it stands here only where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_prompt_logprobs: Option<TensorData>,
    /// Only where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_alt_tokens: Option<PromptAltTokens>,
}

/// Token ids with their logprobs, in descending order.
pub type TopkRow = Option<Vec<(i32, f32)>>;

/// Tokens drawn beside those of the prompt: row i stands for prompt position i + 1.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct PromptAltTokens {
    /// int64, `[prompt - 1, k]`.
    pub tokens: TensorData,
    /// float32, `[prompt - 1, k]`.
    pub logprobs: TensorData,
}

/// One continuation in JSON.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SampledSequence {
    /// Why it ended.
    pub stop_reason: StopReason,
    /// The drawn tokens.
    pub tokens: Vec<i32>,
    /// One a token.
    #[serde(default)]
    pub logprobs: Option<Vec<f32>>,
    /// One row a token; only where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topk_logprobs: Option<Vec<TopkRow>>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A stop token or stop string was drawn.
    Stop,
    /// The token budget ran out.
    Length,
}

impl TryFrom<&proto::SampleResponse> for SampleResponse {
    type Error = Error;

    fn try_from(response: &proto::SampleResponse) -> Result<Self, Error> {
        let sequences = (response.sequences.iter().enumerate())
            .map(|(i, sequence)| {
                sequence.try_into().map_err(|e: Error| e.within(|| format!("sequences[{i}]")))
            })
            .collect::<Result<_, _>>()?;
        let prompt_logprobs = present(response.prompt_logprobs.as_deref())?
            .map(|all| all.into_iter().map(|value| (!value.is_nan()).then_some(value)).collect());
        let topk_prompt_logprobs =
            topk(response.topk_prompt_logprobs.as_ref(), "topk_prompt_logprobs")?;
        let target_prompt_logprobs = response
            .target_prompt_logprobs
            .as_ref()
            .map(|tensor| tensor_at("target_prompt_logprobs", Some(tensor)))
            .transpose()?;
        let prompt_alt_tokens =
            response.prompt_alt_tokens.as_ref().map(PromptAltTokens::try_from).transpose()?;
        Ok(Self {
            sequences,
            prompt_logprobs,
            topk_prompt_logprobs,
            target_prompt_logprobs,
            prompt_alt_tokens,
        })
    }
}

impl TryFrom<&proto::PromptAltTokens> for PromptAltTokens {
    type Error = Error;

    fn try_from(drawn: &proto::PromptAltTokens) -> Result<Self, Error> {
        Ok(Self {
            tokens: tensor_at("prompt_alt_tokens.tokens", drawn.tokens.as_ref())?,
            logprobs: tensor_at("prompt_alt_tokens.logprobs", drawn.logprobs.as_ref())?,
        })
    }
}

fn tensor_at(place: &str, tensor: Option<&proto::Tensor>) -> Result<TensorData, Error> {
    let tensor = tensor.ok_or_else(|| Error::value(place, "is missing"))?;
    TensorData::try_from(tensor).map_err(|error| error.within(|| place.to_owned()))
}

impl TryFrom<&proto::SampledSequence> for SampledSequence {
    type Error = Error;

    fn try_from(sequence: &proto::SampledSequence) -> Result<Self, Error> {
        let stop_reason = match proto::StopReason::try_from(sequence.stop_reason) {
            Ok(proto::StopReason::Stop) => StopReason::Stop,
            Ok(proto::StopReason::Length) => StopReason::Length,
            Err(_) => return Err(Error::value("stop_reason", "is unknown")),
        };
        Ok(Self {
            stop_reason,
            tokens: unpack_i32(&sequence.tokens)?,
            logprobs: present(sequence.logprobs.as_deref())?,
            topk_logprobs: topk(sequence.topk_sampled_logprobs.as_ref(), "topk_sampled_logprobs")?,
        })
    }
}

/// No bytes are no logprobs.
fn present(bytes: Option<&[u8]>) -> Result<Option<Vec<f32>>, Error> {
    bytes.filter(|bytes| !bytes.is_empty()).map(unpack_f32).transpose()
}

/// An empty cell has this logprob.
pub const TOPK_EMPTY_LOGPROB: f32 = -99_999.0;

/// `None` without rows or columns; a row without a filled cell is null.
fn topk(topk: Option<&proto::TopkLogprobs>, name: &str) -> Result<Option<Vec<TopkRow>>, Error> {
    let Some(topk) = topk else { return Ok(None) };
    let (k, length) = (topk.k as usize, topk.length as usize);
    if k == 0 || length == 0 {
        return Ok(None);
    }
    let (tokens, logprobs) = (unpack_i32(&topk.token_ids)?, unpack_f32(&topk.logprobs)?);
    let cells = length.checked_mul(k);
    if cells.is_none_or(|cells| tokens.len() < cells || logprobs.len() < cells) {
        return Err(Error::value(name, "is shorter than length times k"));
    }
    let rows = tokens.chunks(k).zip(logprobs.chunks(k)).take(length);
    let rows = rows.map(|(tokens, logprobs)| {
        let cells = tokens.iter().copied().zip(logprobs.iter().copied());
        let filled: Vec<_> = cells.filter(|(_, logprob)| *logprob > TOPK_EMPTY_LOGPROB).collect();
        (!filled.is_empty()).then_some(filled)
    });
    Ok(Some(rows.collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::json;
    use crate::proto::pack::{pack_f32, pack_i32};
    use crate::tensor::Values;

    use super::*;

    fn request(body: &serde_json::Value) -> SampleRequest {
        json::read(body.to_string().as_bytes()).unwrap().request
    }

    #[test]
    fn null_counts_as_absent_and_defaults_apply() {
        let bare = request(&json!({"prompt": {"chunks": []}}));
        assert_eq!(bare.num_samples, 1);
        assert_eq!(bare.sampling_params, SamplingParams::default());
        assert_eq!((bare.sampling_params.top_k, bare.sampling_params.top_p), (-1, 1.0));
        let nulls = request(&json!({
            "prompt": {"chunks": []}, "num_samples": null, "prompt_logprobs": null, "seq_id": null,
            "topk_prompt_logprobs": null, "base_model": null,
            "sampling_params": {"max_tokens": null, "seed": null, "stop": null, "temperature": null,
                "top_k": null, "top_p": null},
        }));
        assert_eq!(nulls, bare);
        assert_eq!(request(&json!({"prompt": {"chunks": []}, "sampling_params": null})), bare);
    }

    #[test]
    fn wrong_stop_is_named_with_its_place() {
        let check = |stop: serde_json::Value, expected: &str| {
            let body = json!({"sampling_params": {"stop": stop}, "prompt": {"chunks": []}});
            let error = json::read::<SampleRequest>(body.to_string().as_bytes()).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check(
            json!(7),
            "read the JSON body: `sampling_params.stop`: invalid type: integer `7`, \
             expected a text, a list of texts, or a list of token ids",
        );
        check(
            json!([1, "END"]),
            "read the JSON body: `sampling_params.stop`: invalid type: string \"END\", \
             expected a token id like the first entry",
        );
        check(
            json!([1.5]),
            "read the JSON body: `sampling_params.stop[0]`: invalid type: floating point `1.5`, \
             expected a text or a token id",
        );
        check(
            json!([3_000_000_000_u64]),
            "read the JSON body: `sampling_params.stop[0]`: invalid value: integer `3000000000`",
        );
    }

    #[test]
    fn result_turns_into_json() {
        let response = proto::SampleResponse {
            sequences: vec![proto::SampledSequence {
                stop_reason: proto::StopReason::Length.into(),
                tokens: pack_i32(&[1, 2]),
                logprobs: Some(pack_f32(&[-0.5, -0.1])),
                topk_sampled_logprobs: None,
            }],
            prompt_logprobs: Some(pack_f32(&[f32::NAN, -1.5])),
            topk_prompt_logprobs: Some(proto::TopkLogprobs {
                token_ids: pack_i32(&[0, 0, 5, 7]),
                logprobs: pack_f32(&[-99_999.0, -99_999.0, -0.5, -2.0]),
                k: 2,
                length: 2,
            }),
            ..Default::default()
        };
        let json = SampleResponse::try_from(&response).unwrap();
        assert_eq!(
            serde_json::to_string(&json).unwrap(),
            r#"{"type":"sample","sequences":[{"stop_reason":"length","tokens":[1,2],"logprobs":[-0.5,-0.1]}],"prompt_logprobs":[null,-1.5],"topk_prompt_logprobs":[null,[[5,-0.5],[7,-2.0]]]}"#
        );
        let tensor = |data, shape| proto::Tensor::try_from(TensorData::dense(data, shape)).ok();
        let mut response = response;
        response.sequences[0].topk_sampled_logprobs = Some(proto::TopkLogprobs {
            token_ids: pack_i32(&[1, 4]),
            logprobs: pack_f32(&[-0.5, -0.1]),
            k: 1,
            length: 2,
        });
        response.target_prompt_logprobs = tensor(Values::Float32(vec![-2.5, 0.0]), vec![1, 2]);
        response.prompt_alt_tokens = Some(proto::PromptAltTokens {
            tokens: tensor(Values::Int64(vec![9]), vec![1, 1]),
            logprobs: tensor(Values::Float32(vec![-0.25]), vec![1, 1]),
        });
        let json = serde_json::to_value(SampleResponse::try_from(&response).unwrap()).unwrap();
        assert_eq!(json["sequences"][0]["topk_logprobs"], json!([[[1, -0.5]], [[4, -0.1_f32]]]));
        let targets = json!({"data": [-2.5, 0.0], "dtype": "float32", "shape": [1, 2]});
        assert_eq!(json["target_prompt_logprobs"], targets);
        let drawn = json!({"data": [9], "dtype": "int64", "shape": [1, 1]});
        assert_eq!(json["prompt_alt_tokens"]["tokens"], drawn);
        response.prompt_alt_tokens = Some(proto::PromptAltTokens::default());
        let error = SampleResponse::try_from(&response).unwrap_err().to_string();
        assert_eq!(error, "read prompt_alt_tokens.tokens: is missing");
    }
}
