//! `checkpoints`, `training_runs/{id}/checkpoints`, and their time to live.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::defaults::null_as_default;
use crate::json::Request;
use crate::path::CheckpointKind;
use crate::runs::Cursor;
use crate::session::Metadata;

/// A checkpoint, as listed.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Checkpoint {
    /// `<kind>/<name>`.
    pub checkpoint_id: String,
    /// What it is made for.
    pub checkpoint_type: CheckpointType,
    /// When it was made, RFC 3339.
    pub time: String,
    /// `tinker://<run>/<kind>/<name>`.
    pub tinker_path: String,
    /// Bytes of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Anyone may read it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub public: bool,
    /// The user's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<Metadata>,
    /// When it goes away, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// The word that lists have for a [`CheckpointKind`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointType {
    /// [`CheckpointKind::Weights`].
    Training,
    /// [`CheckpointKind::SamplerWeights`].
    Sampler,
    /// [`CheckpointKind::ExternalWeights`]. Unknown to SDKs before 0.28.1.
    External,
}

impl CheckpointType {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Sampler => "sampler",
            Self::External => "external",
        }
    }
}

impl From<CheckpointKind> for CheckpointType {
    fn from(kind: CheckpointKind) -> Self {
        match kind {
            CheckpointKind::Weights => Self::Training,
            CheckpointKind::SamplerWeights => Self::Sampler,
            CheckpointKind::ExternalWeights => Self::External,
        }
    }
}

/// Answer of `GET training_runs/{id}/checkpoints` (without cursor) and `GET checkpoints` (with one).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ListCheckpointsResponse {
    /// The checkpoints, newest first.
    pub checkpoints: Vec<Checkpoint>,
    /// Where the page lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// Body of `PUT training_runs/{id}/checkpoints/{kind}/{name}/ttl`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct SetTtlRequest {
    /// Seconds from now; null takes the expiry away.
    #[serde(default)]
    pub ttl_seconds: Option<i64>,
}

impl Request for SetTtlRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[("ttl", "ttl_seconds")];
}

/// Answer of `GET training_runs/{id}/checkpoints/{kind}/{name}/external_weights_urls`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ExternalWeightsUrlsResponse {
    /// A URL for each file, by the file's path within the checkpoint. No key is asked for there.
    pub urls: BTreeMap<String, String>,
    /// When the URLs cease to hold, RFC 3339 with its zone.
    pub expires: String,
}

/// Answer of `GET training_runs/{id}/checkpoints/{kind}/{name}/archive` (SDKs up to 0.35), and what the SDK
/// makes of a redirect there.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct CheckpointArchiveUrlResponse {
    /// Of a tar. No key is asked for there.
    pub url: String,
    /// When the URL ceases to hold, RFC 3339.
    pub expires: String,
}
