//! `training_runs`, `training_runs/{id}`, and how lists are paged.

use serde::{Deserialize, Serialize};

use crate::checkpoints::Checkpoint;
use crate::defaults::null_as_default;
use crate::ids::ModelId;
use crate::session::Metadata;

/// Query of the list endpoints.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct PageQuery {
    /// Entries wanted. Default: 100 for `checkpoints`, else 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Entries to skip. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u32>,
    /// `owned` (the default) or `accessible`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_scope: Option<String>,
    /// Only what belongs to this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
}

/// Where a page lies in its list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Cursor {
    /// Entries skipped.
    pub offset: u64,
    /// Entries asked for.
    pub limit: u64,
    /// Entries in all.
    pub total_count: u64,
}

/// Answer of `GET training_runs`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ListTrainingRunsResponse {
    /// A page of runs, newest first.
    pub training_runs: Vec<TrainingRun>,
    /// Where the page lies.
    pub cursor: Cursor,
}

/// A training run, as listed; answer of `GET training_runs/{id}`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct TrainingRun {
    /// The same as its model id.
    pub training_run_id: ModelId,
    /// The name that it was created with.
    pub base_model: String,
    /// Whose it is.
    pub model_owner: String,
    /// True: only adapters are trained.
    pub is_lora: bool,
    /// It cannot go on.
    #[serde(default, deserialize_with = "null_as_default")]
    pub corrupted: bool,
    /// Rank of the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<u32>,
    /// RFC 3339.
    pub last_request_time: String,
    /// The newest training checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<Checkpoint>,
    /// The newest sampler checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sampler_checkpoint: Option<Checkpoint>,
    /// The user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
}
