//! `save_weights`, `save_weights_for_sampler`, `save_weights_external`, `load_weights`, `copy_weights`,
//! `weights_info`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::defaults::null_as_default;
use crate::ids::{ModelId, SamplingSessionId, SeqId, SessionId, TenantId};
use crate::json::Request;
use crate::session::Metadata;
use crate::training::OptimizerConfig;

/// Body of `POST save_weights`: a checkpoint to train on from.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "save_weights")]
pub struct SaveWeightsRequest {
    /// The run.
    pub model_id: ModelId,
    /// Order number within the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<SeqId>,
    /// The checkpoint's name. None: the server makes one up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds until it goes away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<i64>,
    /// Take the place of a checkpoint of that name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub overwrite: bool,
    /// The user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
}

impl Request for SaveWeightsRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] =
        &[("name", "path"), ("ttl", "ttl_seconds")];
}

/// Result of `save_weights`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "save_weights")]
pub struct SaveWeightsResponse {
    /// `tinker://<run>/weights/<name>`.
    pub path: String,
}

/// Body of `POST save_weights_for_sampler`: with a name a checkpoint, without one a sampling session.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "save_weights_for_sampler")]
pub struct SaveWeightsForSamplerRequest {
    /// The run.
    pub model_id: ModelId,
    /// Order number within the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<SeqId>,
    /// The checkpoint's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Number of the new sampling session. Clients count it up when they retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_session_seq_id: Option<i64>,
    /// Whether the sampler follows the run.
    #[serde(default, deserialize_with = "null_as_default")]
    pub kind: SamplerKind,
    /// Seconds until a named one goes away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<i64>,
    /// The user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
}

impl Request for SaveWeightsForSamplerRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] =
        &[("name", "path"), ("ttl", "ttl_seconds")];
}

/// Whether a sampler follows its run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// It keeps the weights that it was made with.
    #[default]
    Snapshot,
    /// Later in-flight saves of the run move it.
    Inflight,
}

/// Result of `save_weights_for_sampler`: one of the two is there.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "save_weights_for_sampler")]
pub struct SaveWeightsForSamplerResponse {
    /// Named: `tinker://<run>/sampler_weights/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Unnamed: the new sampling session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_session_id: Option<SamplingSessionId>,
}

/// Body of `POST save_weights_external`: files that other programs read, in PEFT's layout.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "save_weights_external")]
pub struct SaveWeightsExternalRequest {
    /// The run.
    pub model_id: ModelId,
    /// Order number within the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<SeqId>,
    /// The checkpoint's name. None: the server makes one up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds until it goes away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<i64>,
    /// Public keys, age's or SSH's: every file is encrypted to all of them. None: files in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_encryption_recipients: Option<Vec<String>>,
}

impl Request for SaveWeightsExternalRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("name", "path"),
        ("ttl", "ttl_seconds"),
        ("recipients", "age_encryption_recipients"),
        ("age_recipients", "age_encryption_recipients"),
    ];
}

/// Result of `save_weights_external`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "save_weights_external")]
pub struct SaveWeightsExternalResponse {
    /// `tinker://<run>/external_weights/<name>`.
    pub path: String,
    /// Bytes of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// Body of `POST copy_weights`: into a run's place of a session, or into a new session.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct CopyWeightsRequest {
    /// SDKs up to 0.33: the session that the copy's run belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// SDKs up to 0.33: the run's number within the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_seq_id: Option<i64>,
    /// SDKs from 0.34 on: the project of the new session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_project_id: Option<String>,
    /// What is copied: a checkpoint of any kind.
    pub source_path: String,
    /// Seconds until the copy goes away. The source's time is not inherited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<i64>,
    /// SDKs up to 0.33: permission to read another account's checkpoint. Later ones send a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_access_token: Option<Secret>,
}

impl Request for CopyWeightsRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("path", "source_path"),
        ("tinker_path", "source_path"),
        ("project_id", "destination_project_id"),
        ("ttl", "ttl_seconds"),
    ];
}

/// Answer of `POST copy_weights`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct CopyWeightsResponse {
    /// The copy.
    pub tinker_path: String,
}

/// Body of `POST load_weights`: into a run that is there, or as a new run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "load_weights")]
pub struct LoadWeightsRequest {
    /// New run: its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// New run: its number within the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_seq_id: Option<i64>,
    /// Run that is there: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<ModelId>,
    /// Run that is there: order number within it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<SeqId>,
    /// New run: another base model than the checkpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// New run: the user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
    /// `tinker://<run>/weights/<name>`.
    pub path: String,
    /// Load the optimizer's state too; else it starts afresh.
    #[serde(default, deserialize_with = "null_as_default")]
    pub optimizer: bool,
    /// New run: its optimizer, where the checkpoint's is not loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_config: Option<OptimizerConfig>,
    /// Permission to read another account's checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_access_token: Option<Secret>,
    /// Never sent: what the token was found to stand for, so that a stored request needs no token. The server
    /// clears what comes in here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_as: Option<TenantId>,
}

impl Request for LoadWeightsRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[
        ("load_optimizer", "optimizer"),
        ("load_optimizer_state", "optimizer"),
        ("with_optimizer", "optimizer"),
    ];
}

/// Where [`LoadWeightsRequest`] loads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LoadTarget<'a> {
    /// A new run of a session.
    New {
        /// The session.
        session_id: &'a SessionId,
        /// The run's number within it.
        model_seq_id: i64,
    },
    /// A run that is there.
    Existing {
        /// The run.
        model_id: &'a ModelId,
        /// Order number within the run.
        seq_id: Option<SeqId>,
    },
}

impl LoadWeightsRequest {
    /// Which of the two forms this is.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for neither or both.
    pub fn target(&self) -> Result<LoadTarget<'_>, Error> {
        match (&self.session_id, self.model_seq_id, &self.model_id) {
            (Some(session_id), Some(model_seq_id), None) => {
                Ok(LoadTarget::New { session_id, model_seq_id })
            }
            (None, None, Some(model_id)) => {
                Ok(LoadTarget::Existing { model_id, seq_id: self.seq_id })
            }
            _ => Err(Error::value(
                "load_weights",
                "wants either `model_id`, or `session_id` and `model_seq_id`",
            )),
        }
    }
}

/// Result of `load_weights`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "load_weights")]
pub struct LoadWeightsResponse {
    /// What was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The run that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<ModelId>,
}

/// Body of `POST weights_info`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct WeightsInfoRequest {
    /// The checkpoint.
    pub tinker_path: String,
    /// Permission to read another account's checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_access_token: Option<Secret>,
}

impl Request for WeightsInfoRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[("path", "tinker_path")];
}

/// Answer of `POST weights_info`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct WeightsInfoResponse {
    /// What the checkpoint belongs on.
    pub base_model: String,
    /// True: it is an adapter.
    pub is_lora: bool,
    /// Rank of the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<u32>,
    /// The unembedding is adapted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_unembed: Option<bool>,
    /// The feed-forward layers are adapted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_mlp: Option<bool>,
    /// The attention layers are adapted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_attn: Option<bool>,
    /// The optimizer of its run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_config: Option<OptimizerConfig>,
}

/// A credential: travels, and is never printed.
#[derive(Clone, Eq, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::json;

    use super::*;

    fn load(body: &str) -> LoadWeightsRequest {
        json::read(body.as_bytes()).unwrap().request
    }

    #[test]
    fn load_weights_has_two_forms() {
        let request = load(r#"{"session_id": "s", "model_seq_id": 3, "path": "p"}"#);
        let session_id = &"s".into();
        assert_eq!(request.target().unwrap(), LoadTarget::New { session_id, model_seq_id: 3 });

        let request = load(r#"{"model_id": "m", "seq_id": 4, "path": "p", "session_id": null}"#);
        let (model_id, seq_id) = (&"m".into(), Some(SeqId(4)));
        assert_eq!(request.target().unwrap(), LoadTarget::Existing { model_id, seq_id });

        for body in [r#"{"path": "p"}"#, r#"{"path": "p", "model_id": "m", "session_id": "s"}"#] {
            assert_eq!(
                load(body).target().unwrap_err().to_string(),
                "read load_weights: wants either `model_id`, or `session_id` and `model_seq_id`"
            );
        }
    }

    /// What is read is what was written, and has these fields.
    fn both_ways<T: PartialEq + fmt::Debug + serde::de::DeserializeOwned + Serialize>(
        json: &serde_json::Value,
        value: &T,
    ) {
        assert_eq!(&serde_json::from_value::<T>(json.clone()).unwrap(), value);
        let mut written = serde_json::to_value(value).unwrap();
        let fields = written.as_object_mut().unwrap();
        // Later generations have more fields; what they say is off.
        fields.retain(|name, value| json.get(name).is_some() || *value != json!(false));
        assert_eq!(&written, json);
    }

    #[test]
    fn saves_and_loads_have_the_fields_of_other_sdks() {
        let path = "tinker://run-123/weights/checkpoint-001";
        let save = SaveWeightsRequest {
            model_id: "run-123".into(),
            seq_id: Some(SeqId(1)),
            path: Some("checkpoint-001".to_owned()),
            ttl_seconds: None,
            overwrite: false,
            user_metadata: None,
        };
        both_ways(
            &json!({"model_id": "run-123", "path": "checkpoint-001", "seq_id": 1, "type": "save_weights"}),
            &save,
        );
        both_ways(
            &json!({"path": path, "type": "save_weights"}),
            &SaveWeightsResponse { path: path.to_owned() },
        );
        both_ways(
            &json!({"model_id": "run-123", "path": path, "seq_id": 1, "optimizer": true, "type": "load_weights"}),
            &LoadWeightsRequest {
                optimizer: true,
                ..load(&format!(r#"{{"model_id": "run-123", "path": "{path}", "seq_id": 1}}"#))
            },
        );
        both_ways(
            &json!({"path": path, "type": "load_weights"}),
            &LoadWeightsResponse { path: Some(path.to_owned()), model_id: None },
        );
    }

    #[test]
    fn what_may_be_left_out_is() {
        let save: SaveWeightsRequest = serde_json::from_value(json!({"model_id": "m"})).unwrap();
        assert_eq!((save.path, save.seq_id, save.overwrite), (None, None, false));
        let saved = json!({"path": "p", "from_a_later_server": 1});
        let saved: SaveWeightsResponse = serde_json::from_value(saved).unwrap();
        assert_eq!(saved.path, "p");
        assert!(
            serde_json::from_value::<SaveWeightsResponse>(json!({})).is_err(),
            "the path is not"
        );
        assert!(!load(r#"{"model_id": "m", "path": "p"}"#).optimizer);
        let loaded: LoadWeightsResponse = serde_json::from_value(json!({})).unwrap();
        assert_eq!(loaded, LoadWeightsResponse::default());
        let for_sampler: SaveWeightsForSamplerResponse =
            serde_json::from_value(json!({"sampling_session_id": "s"})).unwrap();
        assert_eq!(for_sampler.sampling_session_id, Some("s".into()));
        assert_eq!(for_sampler.path, None);
    }

    #[test]
    fn a_mistaken_name_of_optimizer_is_refused() {
        for name in ["load_optimizer_state", "load_optimizer"] {
            let body = format!(r#"{{"model_id": "m", "path": "p", "{name}": true}}"#);
            let error = json::read::<LoadWeightsRequest>(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("use `optimizer`"), "{error}");
        }
    }

    #[test]
    fn token_is_not_printed() {
        let request = load(r#"{"path": "p", "weights_access_token": "eyJsecret"}"#);
        assert!(!format!("{request:?}").contains("eyJsecret"));
    }
}
