//! The SDK's reports about itself: they go to the log, without the keys that may stand in them.

use axum::{Json, extract::State};
use tinsmith_types::telemetry::{Event, TelemetryRequest, TelemetryResponse};

use crate::{
    body,
    error::{Error, Result, short},
    redact,
    state::Shared,
};

/// `POST telemetry`.
pub(crate) async fn telemetry(
    State(app): State<Shared>,
    body: body::Json<TelemetryRequest>,
) -> Result<Json<TelemetryResponse>> {
    let report = body.value;
    let events_max = app.config.telemetry_events_max;
    if report.events.len() > events_max {
        let detail = format!("a report has at most {events_max} events");
        return Err(Error::invalid("too_many_events", detail));
    }
    let count = u64::try_from(report.events.len()).unwrap_or(u64::MAX);
    metrics::counter!("tinsmith_telemetry_events_total").increment(count);
    let sdk_version = clean(report.sdk_version.as_deref());
    let session = clean(report.session_id.as_deref());
    for event in &report.events {
        if app.may_log_telemetry() {
            log(&session, &sdk_version, event);
        } else {
            metrics::counter!("tinsmith_telemetry_events_unlogged_total").increment(1);
        }
    }
    Ok(Json(TelemetryResponse {}))
}

fn log(session: &str, sdk_version: &str, event: &Event) {
    let kind = clean(Some(&event.event));
    let name = clean(event.event_name.as_deref().or(event.error_type.as_deref()));
    let text = said(event);
    let is_bad = matches!(event.severity.as_deref(), Some("WARNING" | "ERROR" | "CRITICAL"));
    if is_bad {
        tracing::warn!(session.id = session, sdk_version, kind, name, text, "a client reports");
    } else {
        tracing::info!(session.id = session, sdk_version, kind, name, text, "a client reports");
    }
}

/// What the event tells beside its name.
fn said(event: &Event) -> String {
    let data = event.event_data.as_ref().map(|data| redact::value(data).to_string());
    let texts = [
        event.duration.as_deref(),
        event.error_message.as_deref(),
        event.traceback.as_deref(),
        data.as_deref(),
    ];
    let said: Vec<String> = texts.into_iter().flatten().map(redact::text).collect();
    short(&said.join("\n")).into_owned()
}

fn clean(text: Option<&str>) -> String {
    short(&redact::text(text.unwrap_or_default())).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_without_keys() {
        let event: Event = serde_json::from_value(json!({
            "event": "GENERIC_EVENT", "event_name": "poll failed", "severity": "ERROR",
            "error_message": "key tml-hidden was refused",
            "event_data": {"request_headers": {"x-api-key": "hidden too"}, "status": 500},
        }))
        .unwrap();
        assert_eq!(
            said(&event),
            "key tml-[redacted] was refused\n\
             {\"request_headers\":{\"x-api-key\":\"[redacted]\"},\"status\":500}"
        );
    }

    #[test]
    fn long_events_are_cut() {
        let event: Event = serde_json::from_value(
            json!({"event": "UNHANDLED_EXCEPTION", "traceback": "x".repeat(100_000)}),
        )
        .unwrap();
        assert!(said(&event).len() < 2100);
    }
}
