//! The SDK's reports about itself.

use axum::Json;
use serde::{Deserialize, de::IgnoredAny};
use tinsmith_types::{json::Request, telemetry::TelemetryResponse};

use crate::body;

/// What is read of a report: how many events it has. They may hold the client's key in clear.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    #[serde(default)]
    events: Vec<IgnoredAny>,
    #[serde(default, rename = "platform")]
    _platform: IgnoredAny,
    #[serde(default, rename = "sdk_version")]
    _sdk_version: IgnoredAny,
    #[serde(default, rename = "session_id")]
    _session_id: IgnoredAny,
    #[serde(default, rename = "process_uuid")]
    _process_uuid: IgnoredAny,
}

impl Request for Report {}

/// `POST telemetry`: events are counted and dropped.
pub(crate) async fn telemetry(body: body::Json<Report>) -> Json<TelemetryResponse> {
    let count = u64::try_from(body.value.events.len()).unwrap_or(u64::MAX);
    metrics::counter!("tinsmith_telemetry_events_total").increment(count);
    Json(TelemetryResponse {})
}
