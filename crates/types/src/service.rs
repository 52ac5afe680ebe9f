//! `healthz`, `client/config`, `client/dynamic_config`, `get_server_capabilities`.

use serde::{Deserialize, Serialize};

use crate::json::Request;

/// Answer of `GET healthz`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Body of `POST client/config` and `POST client/dynamic_config`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct ClientConfigRequest {
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sdk_version: Option<String>,
}

impl Request for ClientConfigRequest {}

/// Answer of `POST client/config`. What is left out has the client's own default.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct ClientConfig {
    /// Exchange the API key for a token first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pjwt_auth_enabled: Option<bool>,
    /// `api_key` or `credential_cmd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_default_source: Option<String>,
    /// Bytes of prompts being submitted at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_dispatch_bytes_semaphore_size: Option<u64>,
    /// Bytes of results being downloaded at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inflight_response_bytes_semaphore_size: Option<u64>,
    /// Submit the later chunks of a batch before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_fwdbwd_chunks: Option<bool>,
    /// Send `forward_backward` as protobuf (SDK 0.19 to 0.24).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto_write_fwdbwd: Option<bool>,
    /// Compress `forward_backward` bodies with zstd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto_compress_fwdbwd: Option<bool>,
    /// Datums in a `forward_backward` request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwdbwd_max_chunk_len: Option<u64>,
    /// Estimated bytes of a `forward_backward` request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwdbwd_max_chunk_bytes_count: Option<u64>,
    /// Bytes of `forward_backward` requests being submitted at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwdbwd_dispatch_bytes_semaphore_size: Option<u64>,
    /// Seconds for which a 402 counts as a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billing_exception_max_pause_duration_sec: Option<u64>,
    /// Turn off the client's retries of samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_no_retries: Option<bool>,
    /// Give up on samples that make no progress for hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_enable_stuck_detection: Option<bool>,
    /// Samples that a sampling client has in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_max_concurrent_requests: Option<u64>,
    /// False makes the client use httpx for everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_pyqwest_transport: Option<bool>,
    /// Poll samples in batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_use_retrieve_futures: Option<bool>,
    /// Upload custom losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_loss_server_side: Option<bool>,
    /// Clones of a sampling client ask for their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_join_sampling_session: Option<bool>,
}

/// Answer of `POST client/dynamic_config`. What is left out has the client's own default.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct DynamicConfig {
    /// Seconds between two fetches of this answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_interval_sec: Option<u64>,
    /// Send `cancel_future` for samples that nobody waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_cancel_enabled: Option<bool>,
    /// Cancellations under way at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_cancel_max_batch_size: Option<u64>,
}

/// Answer of `GET get_server_capabilities`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Capabilities {
    /// The base models on offer.
    pub supported_models: Vec<SupportedModel>,
}

/// A base model on offer.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct SupportedModel {
    /// The name that `create_model` takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// Tokens of prompt and answer together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_context_length: Option<u64>,
    /// Runs can be created on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainable: Option<bool>,
    /// It can be sampled from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampleable: Option<bool>,
}
