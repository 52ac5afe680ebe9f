//! `create_session`, `session_heartbeat`, `sessions`, `sessions/{id}`, `sessions/{id}/finish`.
//! Searching stands in `search.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::defaults::null_as_default;
use crate::ids::{ModelId, SamplingSessionId, SessionId};
use crate::json::Request;

/// What a user hangs on a session, a run or a checkpoint.
pub type Metadata = BTreeMap<String, Value>;

/// Body of `POST create_session`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "create_session")]
pub struct CreateSessionRequest {
    /// Labels, in no order.
    #[serde(default, deserialize_with = "null_as_default")]
    pub tags: Vec<String>,
    /// The user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
    /// Version of the client's SDK.
    #[serde(default, deserialize_with = "null_as_default")]
    pub sdk_version: String,
    /// Project that the session counts to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
}

impl Request for CreateSessionRequest {}

/// Answer of `POST create_session`. The messages are logged by the client.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "create_session")]
pub struct CreateSessionResponse {
    /// The new session.
    pub session_id: SessionId,
    /// Logged at level info.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info_message: Option<String>,
    /// Logged at level warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning_message: Option<String>,
    /// Logged at level error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// Body of `POST session_heartbeat`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "session_heartbeat")]
pub struct HeartbeatRequest {
    /// The session that lives.
    pub session_id: SessionId,
}

impl Request for HeartbeatRequest {}

/// Answer of `POST session_heartbeat`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "session_heartbeat")]
pub struct HeartbeatResponse {}

/// Body of `POST sessions/{id}/finish`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct FinishSessionRequest {
    /// How the client program ended.
    pub reason: FinishReason,
    /// More about it.
    #[serde(default)]
    pub detail: Option<String>,
}

impl Request for FinishSessionRequest {}

/// How a client program ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FinishReason {
    /// It closed its client.
    Success,
    /// An exception went through.
    Errored,
    /// It was stopped.
    Interrupted,
}

impl FinishReason {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Errored => "errored",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Answer of `GET sessions`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ListSessionsResponse {
    /// A page of sessions, newest first.
    pub sessions: Vec<SessionId>,
}

/// Answer of `GET sessions/{id}`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SessionInfo {
    /// Its training runs.
    pub training_run_ids: Vec<ModelId>,
    /// Its samplers.
    pub sampler_ids: Vec<SamplingSessionId>,
    /// The user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
}
