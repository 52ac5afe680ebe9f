//! The SDK's reports about itself.

use axum::Json;
use tinsmith_types::telemetry::{TelemetryRequest, TelemetryResponse};

use crate::body;

/// `POST telemetry`. Events may hold the client's key in clear: they are counted and dropped.
pub(crate) async fn telemetry(body: body::Json<TelemetryRequest>) -> Json<TelemetryResponse> {
    let count = u64::try_from(body.value.events.len()).unwrap_or(u64::MAX);
    metrics::counter!("tinsmith_telemetry_events_total").increment(count);
    Json(TelemetryResponse {})
}
