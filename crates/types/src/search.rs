//! `sessions/search`: the filters, and what is known of each session that passes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::defaults::{null_as_default, search_limit};
use crate::ids::{ModelId, RequestId, SamplingSessionId, SessionId};
use crate::json::Request;
use crate::session::{FinishReason, Metadata};

/// Body of `POST sessions/search`. Every filter that is given must hold, but of `session_id` and
/// `display_name` either is enough.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct SearchSessionsRequest {
    /// This very session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// Sessions of one of these projects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_ids: Option<Vec<String>>,
    /// Notes that the session must have, each with this value.
    #[serde(default, deserialize_with = "null_as_default")]
    pub user_metadata: BTreeMap<String, String>,
    /// Words that must occur in the display name, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Whose sessions.
    #[serde(default, deserialize_with = "null_as_default")]
    pub owner: SearchOwner,
    /// Sessions that stand as one of these says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<Vec<StatusQuery>>,
    /// Sessions on the page, from 1 to 200.
    #[serde(default = "search_limit::missing", deserialize_with = "search_limit::deserialize")]
    pub limit: u32,
    /// Where the page begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<SearchCursor>,
}

impl Request for SearchSessionsRequest {}

/// Whose sessions are searched.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SearchOwner {
    /// The caller's.
    #[default]
    Own,
    /// Everybody's that the caller may see.
    Accessible,
    /// Those of these users.
    User {
        /// From 1 to 10.
        owner_urns: Vec<String>,
    },
}

/// A status that is searched for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StatusQuery {
    /// It goes on.
    Active,
    /// The server ended it.
    Cancelled,
    /// Something of it cannot go on.
    Failed,
    /// Its client said that it was done.
    ClientFinished {
        /// How; none: any way.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reasons: Option<Vec<FinishReasonName>>,
    },
}

/// How a client program ended, as it is searched for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReasonName {
    /// It closed its client.
    Success,
    /// An exception went through.
    Errored,
    /// It was stopped.
    Interrupted,
}

impl From<FinishReasonName> for FinishReason {
    fn from(name: FinishReasonName) -> Self {
        match name {
            FinishReasonName::Success => Self::Success,
            FinishReasonName::Errored => Self::Errored,
            FinishReasonName::Interrupted => Self::Interrupted,
        }
    }
}

/// The last session of a page.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct SearchCursor {
    /// RFC 3339.
    pub last_created_at: String,
    /// Tells sessions of one moment apart.
    pub last_session_id: SessionId,
}

/// Answer of `POST sessions/search`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SearchSessionsResponse {
    /// Newest first.
    pub sessions: Vec<SessionSummary>,
    /// Where the next page begins; none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<SearchCursor>,
}

/// A session that was found.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SessionSummary {
    /// The session.
    pub session_id: SessionId,
    /// RFC 3339.
    pub created_at: String,
    /// URN of the user.
    pub owner: String,
    /// The project that it counts to.
    pub project_id: String,
    /// How it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<SessionStatus>,
    /// Checkpoints of its runs.
    pub checkpoints_count: u64,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// The user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
    /// Bytes of its checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_storage_bytes: Option<u64>,
}

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionStatus {
    /// It goes on.
    Active,
    /// The server ended it.
    Cancelled {
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// Its client said that it was done.
    ClientFinished {
        /// How.
        reason: FinishReason,
        /// More about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// Something of it cannot go on.
    Failed {
        /// Whose fault it was.
        category: FaultCategory,
        /// What it was.
        reason: FailedReason,
        /// For people.
        message: String,
    },
}

/// Whose fault a session's failure was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCategory {
    /// The user's.
    User,
    /// The server's.
    Internal,
}

/// What a session failed by.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FailedReason {
    /// One request.
    Request {
        /// Which.
        request_id: RequestId,
        /// What it asked for.
        request_type: String,
    },
    /// A training run.
    TrainingRun {
        /// Which.
        training_run_id: ModelId,
    },
    /// A sampler.
    SamplingSession {
        /// Which.
        sampling_session_id: SamplingSessionId,
    },
}

/// Body of `PUT sessions/{id}/project`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct AssignProjectRequest {
    /// The project that the session shall count to.
    pub project_id: String,
}

impl Request for AssignProjectRequest {}

/// Answer of `GET sessions/{id}/trace_export`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum TraceExportResponse {
    /// It is being made; ask again.
    Pending,
    /// It can be fetched.
    Ready {
        /// Where; needs no key, and expires.
        url: String,
    },
    /// It cannot be made.
    Failed {
        /// Why.
        error: String,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::json;

    use super::*;

    #[test]
    fn everything_may_be_left_out_or_null() {
        let read = |body: Value| {
            json::read::<SearchSessionsRequest>(body.to_string().as_bytes()).unwrap().request
        };
        assert_eq!(read(json!({})).limit, 50);
        let nulls = json!({"session_id": null, "project_ids": null, "user_metadata": null,
            "display_name": null, "owner": null, "statuses": null, "limit": null, "cursor": null});
        assert_eq!(read(nulls), read(json!({})));
        let statuses = json!({"statuses": [{"type": "active"},
            {"type": "client_finished", "reasons": ["success"]}, {"type": "client_finished"}]});
        let reasons = Some(vec![FinishReasonName::Success]);
        let expected = vec![
            StatusQuery::Active,
            StatusQuery::ClientFinished { reasons },
            StatusQuery::ClientFinished { reasons: None },
        ];
        assert_eq!(read(statuses).statuses, Some(expected));
    }

    #[test]
    fn statuses_look_as_the_sdk_reads_them() {
        let check = |status: SessionStatus, expected: Value| {
            assert_eq!(serde_json::to_value(status).unwrap(), expected);
        };
        check(SessionStatus::Active, json!({"type": "active"}));
        let detail = Some("d".to_owned());
        check(
            SessionStatus::ClientFinished { reason: FinishReason::Success, detail },
            json!({"type": "client_finished", "reason": {"type": "success"}, "detail": "d"}),
        );
        check(
            SessionStatus::Failed {
                category: FaultCategory::Internal,
                reason: FailedReason::TrainingRun { training_run_id: "r".into() },
                message: "m".to_owned(),
            },
            json!({"type": "failed", "category": "internal", "message": "m",
                "reason": {"type": "training_run", "training_run_id": "r"}}),
        );
    }
}
