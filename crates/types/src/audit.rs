//! `audit`: who did what to checkpoints, runs, sessions and projects.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Query of `GET audit`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct AuditQuery {
    /// `all` (the default), `checkpoints`, `projects`, `teams` or `organizations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// `YYYY-MM-DD`, in UTC. Default: today.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
}

/// Answer of `GET audit`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AuditLogResponse {
    /// Of the day, oldest first.
    pub entries: Vec<AuditLogEntry>,
    /// True where the day had more, and only its newest are here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AuditLogEntry {
    /// RFC 3339.
    pub timestamp: String,
    /// `<resource>_<action>`, such as `checkpoint_read`.
    pub event: String,
    /// Who did it, and what it was about.
    pub event_details: Map<String, Value>,
    /// Of events about checkpoints, as older clients read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// Of events about checkpoints, as older clients read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tinker_path: Option<String>,
    /// Of reads of checkpoints, as older clients read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
}
