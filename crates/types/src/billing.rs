//! `billing/usage/events` and `billing/usage/checkpoints/current`: what was used, by the hour, and
//! what it would cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::session::Metadata;

/// Query of `GET billing/usage/events`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct UsageQuery {
    /// RFC 3339, on an hour; inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_on: Option<String>,
    /// RFC 3339, on an hour; exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending_before: Option<String>,
}

/// Answer of `GET billing/usage/events`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct UsageResponse {
    /// By hour, then by descending tokens.
    pub data: Vec<UsageEvent>,
    /// The sessions of `data`.
    #[serde(default)]
    pub sessions: BTreeMap<String, UsageSession>,
    /// Up to when invoices say the prices. There are none here.
    pub cost_data_through: Option<String>,
}

/// What was used within an hour by one session of one base model.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct UsageEvent {
    /// RFC 3339; inclusive.
    pub bucket_start: String,
    /// RFC 3339; exclusive.
    pub bucket_end: String,
    /// The base model that computed it or that is stored.
    #[serde(default)]
    pub base_model: Option<String>,
    /// URN of the user.
    #[serde(default)]
    pub user_id: Option<String>,
    /// The user's name.
    #[serde(default)]
    pub user_name: Option<String>,
    /// The session that asked for it.
    #[serde(default)]
    pub session_id: Option<String>,
    /// The project that the session counts to now.
    #[serde(default)]
    pub project_id: Option<String>,
    /// US dollars, at the prices of now. None for checkpoints, which are counted only.
    #[serde(default)]
    pub estimated_cost_usd: Option<f64>,
    /// Of tokens.
    #[serde(default)]
    pub effective_rate_usd_per_million_tokens: Option<f64>,
    /// Of storage, where a month has 720 hours.
    #[serde(default)]
    pub effective_rate_usd_per_gigabyte_month: Option<f64>,
    /// What it was.
    pub event_info: UsageInfo,
}

/// A kind of usage, and how much.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum UsageInfo {
    /// Tokens of forward and backward passes.
    Training {
        /// How many.
        token_count: u64,
    },
    /// Prompt tokens of samples.
    SamplingPrefill {
        /// Whether they were found in the cache.
        cached: bool,
        /// How many.
        token_count: u64,
    },
    /// Tokens drawn.
    SamplingSample {
        /// How many.
        token_count: u64,
    },
    /// Checkpoints saved.
    Checkpoint {
        /// How many.
        count: u64,
    },
    /// Checkpoints kept.
    Storage {
        /// Whether it is for free. SDKs before 0.27 refuse the field.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        free: Option<bool>,
        /// 10^9 bytes times hours.
        gigabyte_hours: f64,
    },
}

/// A session, as usage is joined with it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct UsageSession {
    /// The user's own notes.
    #[serde(default)]
    pub user_metadata: Option<Metadata>,
}

/// Query of `GET billing/usage/checkpoints/current`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct StorageQuery {
    /// Only of this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
}

/// Answer of `GET billing/usage/checkpoints/current`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct StorageResponse {
    /// The price of storage.
    pub effective_rate_usd_per_gigabyte_month: Option<f64>,
    /// By project.
    pub data: Vec<StorageItem>,
}

/// The checkpoints of a project.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct StorageItem {
    /// The project.
    pub project_id: Option<String>,
    /// URN of the user.
    pub org_user_urn: Option<String>,
    /// The user's address.
    pub user_email: Option<String>,
    /// The user's name.
    pub user_name: Option<String>,
    /// How many there are.
    pub checkpoint_count: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// The same in units of 10^9.
    pub size_gigabytes: f64,
    /// US dollars for 720 hours.
    pub estimated_monthly_cost_usd: Option<f64>,
}
