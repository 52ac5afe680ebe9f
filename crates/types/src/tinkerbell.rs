//! Bodies of the Tinkerbell dialect: chats instead of datums, no sessions and no numbers.
//!
//! What saves and loads weights has the official bodies without their numbers (`weights.rs`).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, IgnoredAny, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize};

use crate::datum::Datum;
use crate::defaults::{rank, yes};
use crate::ids::ModelId;
use crate::json::Request;
use crate::model_input::ModelInput;
use crate::sampling::{SamplingParams, Stop};
use crate::session::Metadata;
use crate::tensor::TensorData;
use crate::training::{AdamParams, LossConfigValue};

/// Body of `POST add_lora`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AddLoraRequest {
    /// What to train. Default: `base`, the server's first model.
    #[serde(default)]
    pub base_model: Option<String>,
    /// Columns of A and rows of B. Default: 32.
    #[serde(default = "rank::missing", deserialize_with = "rank::deserialize")]
    pub rank: u32,
    /// The adapter is scaled by `alpha / rank`.
    #[serde(default)]
    pub alpha: Option<f64>,
    /// Seed of the first weights.
    #[serde(default)]
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
    /// The user's own notes.
    #[serde(default)]
    pub user_metadata: Option<Metadata>,
}

impl Request for AddLoraRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("model", "base_model"),
        ("model_name", "base_model"),
        ("lora_rank", "rank"),
        ("r", "rank"),
        ("lora_alpha", "alpha"),
        ("lora_config", "rank"),
    ];
}

/// Body of `POST forward` and `POST forward_backward`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TrainRequest {
    /// The run.
    pub model_id: ModelId,
    /// The batch.
    pub data: Vec<Example>,
    /// Name of the loss. Default: `cross_entropy`.
    #[serde(default)]
    pub loss_fn: Option<String>,
    /// Settings of the loss.
    #[serde(default)]
    pub loss_fn_config: Option<BTreeMap<String, LossConfigValue>>,
}

impl Request for TrainRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] =
        &[("loss", "loss_fn"), ("messages", "data"), ("batch", "data")];
}

/// One training example: a chat as a list of messages or as `{"messages": [...]}`, or an official datum.
#[derive(Clone, Debug, PartialEq)]
pub enum Example {
    /// A chat; what the assistant says is learnt.
    Chat(Vec<ChatMessage>),
    /// Tokens and arrays.
    Datum(Datum),
}

/// One turn of a chat.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl<'de> Deserialize<'de> for Example {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ExampleVisitor)
    }
}

struct ExampleVisitor;

impl<'de> de::Visitor<'de> for ExampleVisitor {
    type Value = Example;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a chat (a list of messages with `role` and `content`) or a datum")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Example, A::Error> {
        let mut messages = Vec::new();
        while let Some(message) = seq.next_element()? {
            messages.push(message);
        }
        Ok(Example::Chat(messages))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Example, A::Error> {
        let mut messages: Option<Vec<ChatMessage>> = None;
        let mut model_input: Option<ModelInput> = None;
        let mut loss_fn_inputs: Option<BTreeMap<String, TensorData>> = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "messages" => messages = map.next_value()?,
                "model_input" => model_input = map.next_value()?,
                "loss_fn_inputs" => loss_fn_inputs = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match (messages, model_input, loss_fn_inputs) {
            (Some(messages), None, None) => Ok(Example::Chat(messages)),
            (None, Some(model_input), Some(loss_fn_inputs)) => {
                Ok(Example::Datum(Datum { model_input, loss_fn_inputs }))
            }
            (Some(_), _, _) => {
                Err(de::Error::custom("an example has either `messages` or `model_input`"))
            }
            (None, _, _) => Err(de::Error::custom(
                "an example is a list of messages, or has `messages`, or has `model_input` and \
                 `loss_fn_inputs`",
            )),
        }
    }
}

/// Body of `POST optim_step`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct StepRequest {
    /// The run.
    pub model_id: ModelId,
    /// As in the official body. Default: its defaults.
    #[serde(default)]
    pub adam_params: Option<AdamParams>,
    /// In place of that in `adam_params`.
    #[serde(default)]
    pub learning_rate: Option<f64>,
}

impl Request for StepRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("lr", "learning_rate"),
        ("adam_params.lr", "adam_params.learning_rate"),
        ("optimizer_params", "adam_params"),
    ];
}

/// Body of `POST sample`, and of `POST asample` without a sampling session.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SampleRequest {
    /// Sample from a run as it is now.
    #[serde(default)]
    pub model_id: Option<ModelId>,
    /// Sample from a checkpoint.
    #[serde(default)]
    pub model_path: Option<String>,
    /// Sample from a base model. Default, where all three are missing: `base`.
    #[serde(default)]
    pub base_model: Option<String>,
    /// What to continue: a text, or tokens.
    #[serde(default)]
    pub prompt: Option<Prompt>,
    /// A chat to answer.
    #[serde(default)]
    pub messages: Option<Vec<ChatMessage>>,
    /// Independent continuations of the prompt. Default: 1.
    #[serde(default)]
    pub num_samples: Option<u32>,
    /// How.
    #[serde(default)]
    pub sampling_params: Option<SamplingParams>,
    /// In place of that in `sampling_params`.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// In place of that in `sampling_params`.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// In place of that in `sampling_params`.
    #[serde(default)]
    pub top_p: Option<f64>,
    /// In place of that in `sampling_params`.
    #[serde(default)]
    pub top_k: Option<i32>,
    /// In place of that in `sampling_params`.
    #[serde(default)]
    pub seed: Option<u64>,
    /// In place of that in `sampling_params`.
    #[serde(default)]
    pub stop: Option<Stop>,
}

impl Request for SampleRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("n", "num_samples"),
        ("max_new_tokens", "max_tokens"),
        ("sampling_params.max_new_tokens", "sampling_params.max_tokens"),
        ("model", "base_model"),
    ];
}

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text, to be made into tokens as the model expects it.
    Text(String),
    /// Token ids.
    Tokens(Vec<i32>),
    /// Pieces, as in the official body.
    Chunks(ModelInput),
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of token ids, or an object with `chunks`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompt, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element()? {
                    tokens.push(token);
                }
                Ok(Prompt::Tokens(tokens))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Prompt, A::Error> {
                let map = de::value::MapAccessDeserializer::new(map);
                ModelInput::deserialize(map).map(Prompt::Chunks)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// What tells this dialect's bodies from the official ones on the same paths.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether a field is there")]
pub struct Shape {
    /// Official requests to a run are numbered.
    #[serde(default, deserialize_with = "is_there")]
    pub seq_id: bool,
    /// Only the official SDK says it.
    #[serde(default, rename = "type", deserialize_with = "is_there")]
    pub kind: bool,
    /// A batch at the top level.
    #[serde(default, deserialize_with = "is_there")]
    pub data: bool,
    /// An official batch.
    #[serde(default, deserialize_with = "is_there")]
    pub forward_input: bool,
    /// An official batch.
    #[serde(default, deserialize_with = "is_there")]
    pub forward_backward_input: bool,
    /// The run.
    #[serde(default, deserialize_with = "is_there")]
    pub model_id: bool,
    /// The owner of an official new run.
    #[serde(default, deserialize_with = "is_there")]
    pub session_id: bool,
    /// The owner of an official sample.
    #[serde(default, deserialize_with = "is_there")]
    pub sampling_session_id: bool,
    /// A chat to answer.
    #[serde(default, deserialize_with = "is_there")]
    pub messages: bool,
    /// A prompt that is no object, as official ones are.
    #[serde(default, rename = "prompt", deserialize_with = "is_no_object")]
    pub plain_prompt: bool,
}

/// Null counts as absent.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(deserializer)?.is_some())
}

fn is_no_object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Kind {
        Text(#[expect(dead_code, reason = "only its kind is asked for")] String),
        List(#[expect(dead_code, reason = "only its kind is asked for")] Vec<IgnoredAny>),
        Other(IgnoredAny),
    }
    Ok(!matches!(Option::deserialize(deserializer)?, None | Some(Kind::Other(_))))
}

#[cfg(test)]
mod tests {
    use crate::json;

    use super::*;

    fn train(body: &str) -> Result<TrainRequest, String> {
        json::read(body.as_bytes()).map(|read| read.request).map_err(|error| error.to_string())
    }

    #[test]
    fn examples_are_told_by_their_form() {
        let chat = vec![ChatMessage { role: "user".into(), content: "hi".into() }];
        let request = train(
            r#"{"model_id": "m", "data": [[{"role": "user", "content": "hi"}],
                {"messages": [{"role": "user", "content": "hi"}]},
                {"model_input": {"chunks": []}, "loss_fn_inputs": {}}]}"#,
        );
        let datum =
            Datum { model_input: ModelInput::default(), loss_fn_inputs: BTreeMap::default() };
        assert_eq!(
            request.unwrap().data,
            [Example::Chat(chat.clone()), Example::Chat(chat), Example::Datum(datum)]
        );
    }

    #[test]
    fn faulty_examples_are_named() {
        let check = |data: &str, expected: &str| {
            let error = train(&format!(r#"{{"model_id": "m", "data": {data}}}"#)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(r#"[[{"role": "user"}]]"#, "`data[0][0]`: missing field `content`");
        check(r#"[[], [{"role": "user", "content": 5}]]"#, "`data[1][0].content`: invalid type");
        check(r#"["hello"]"#, "`data[0]`: invalid type: string \"hello\", expected a chat");
        check(r#"[{"text": "x"}]"#, "an example is a list of messages");
        check(r#"[{"messages": [], "model_input": {"chunks": []}}]"#, "either `messages`");
    }

    #[test]
    fn prompts_are_told_by_their_form() {
        let check = |prompt: &str, expected| {
            let body = format!(r#"{{"prompt": {prompt}}}"#);
            let read = json::read::<SampleRequest>(body.as_bytes());
            assert_eq!(read.unwrap().request.prompt, expected, "{prompt}");
        };
        check("null", None);
        check(r#""hi""#, Some(Prompt::Text("hi".into())));
        check("[1, 2]", Some(Prompt::Tokens(vec![1, 2])));
        check(r#"{"chunks": []}"#, Some(Prompt::Chunks(ModelInput::default())));
    }

    #[test]
    fn shape_of_a_null_is_that_of_nothing() {
        let shape: Shape =
            serde_json::from_str(r#"{"seq_id": null, "data": [[1]], "other": 1}"#).unwrap();
        assert_eq!(shape, Shape { data: true, ..Shape::default() });
        let plain = |body: &str| serde_json::from_str::<Shape>(body).unwrap().plain_prompt;
        assert!(plain(r#"{"prompt": "hi"}"#) && plain(r#"{"prompt": [1]}"#));
        assert!(!plain(r#"{"prompt": {"chunks": []}}"#) && !plain(r#"{"prompt": null}"#));
    }
}
