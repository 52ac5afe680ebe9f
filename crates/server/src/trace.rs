//! Gives every request an id, a span and its place in the metrics. Never logs bodies or keys.

use std::sync::Arc;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;

use crate::state::Shared;

/// The header that names a request in replies and logs.
const REQUEST_ID: &str = "x-request-id";

/// Wraps all handlers.
pub(crate) async fn trace(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let route: Arc<str> = match request.extensions().get::<MatchedPath>() {
        Some(path) => path.as_str().into(),
        None => "unknown".into(),
    };
    let method = request.method().as_str().to_owned();
    let span = tracing::info_span!("request", request.id = %id, method, route = &*route);
    let start = app.clock.monotonic();
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let seconds = app.clock.monotonic().saturating_sub(start).as_secs_f64();
    let status = response.status();
    let labels = [("method", method), ("route", route.to_string())];
    metrics::histogram!("tinsmith_http_request_seconds", &labels).record(seconds);
    metrics::counter!(
        "tinsmith_http_requests_total",
        "method" => labels[0].1.clone(),
        "route" => labels[1].1.clone(),
        "status" => status.as_str().to_owned()
    )
    .increment(1);
    span.in_scope(|| log(status, seconds));
    response
}

fn log(status: StatusCode, seconds: f64) {
    // A poll that has to be repeated is the ordinary case.
    if status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT {
        tracing::info!(status = status.as_u16(), seconds, "request refused");
    } else {
        tracing::debug!(status = status.as_u16(), seconds, "request answered");
    }
}
