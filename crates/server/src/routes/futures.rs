//! Polls for results.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use tinsmith_store::{
    Category, EndedSample, Failure, FeedQuery, Outcome, Peeked, QueueState, RequestKind, Retrieved,
    Room,
};
use tinsmith_types::{
    futures::{
        self, CancelFutureRequest, CompleteMetadata, Failed, FutureCompletion, FuturesTarget,
        Pending, RetrieveFutureRequest, RetrieveFuturesRequest, RetrieveFuturesResponse,
    },
    ids::RequestId,
    proto, sampling, training,
};

use crate::{
    body,
    error::{Error, Result},
    negotiate,
    routes::{
        custom_losses,
        tinkerbell::{self, Found},
    },
    state::{Shared, Stopping, Tenant},
};

/// `POST retrieve_future`: waits for the result, and says 408 if there is none in time. A failed
/// request is a 200 that says so: the SDK would repeat a 5xx for ever.
pub(crate) async fn retrieve(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    stopping: Option<Extension<Stopping>>,
    headers: HeaderMap,
    body: body::Json<RetrieveFutureRequest>,
) -> Result<Response> {
    let RetrieveFutureRequest { request_id: id, allow_metadata_only } = body.value.clone();
    let id = tinkerbell::official_id(&id);
    // A poll waits long and holds nothing.
    drop(body);
    if let Some(made) = custom_losses::result(&app, &tenant, &id).await? {
        return Ok(made.into_response());
    }
    let stopping = stopping.map(|Extension(stopping)| stopping);
    if let Some(found) = tinkerbell::kept(&app, &tenant, stopping.clone(), &id).await? {
        return of_kept(found, &id);
    }
    let bytes_max = if allow_metadata_only { app.config.unannounced_bytes_max } else { usize::MAX };
    let peeked = tokio::select! {
        biased;
        peeked = app.store.peek(&tenant, &id, app.config.poll_wait_max, bytes_max) => peeked?,
        () = Stopping::told(stopping) => return Ok(come_back()),
    };
    let retrieved = match peeked {
        Peeked::Larger { bytes } => {
            let response_payload_size = bytes as u64;
            return Ok(Json(CompleteMetadata { response_payload_size }).into_response());
        }
        Peeked::Whole(retrieved) => retrieved,
    };
    match retrieved {
        Retrieved::Pending(state) => Ok(pending(state)),
        Retrieved::Gone => Err(Error::Gone { code: "request_expired", detail: gone(&id) }),
        Retrieved::Finished { outcome: Outcome::Failed(failure), .. } => Ok(failed(failure)),
        Retrieved::Finished { kind, outcome: Outcome::Done(result) } => {
            done(kind, result, negotiate::wants_protobuf(&headers))
        }
    }
}

/// `POST retrieve_futures`: which samples of a client have ended. Waits for one if there is none.
pub(crate) async fn retrieve_many(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    stopping: Option<Extension<Stopping>>,
    body: body::Json<RetrieveFuturesRequest>,
) -> Result<Response> {
    let RetrieveFuturesRequest { target, prev_cursor, timeout, retrieved_request_ids } =
        body.value.clone();
    drop(body);
    let stopping = stopping.map(|Extension(stopping)| stopping);
    let FuturesTarget::SamplingSession { sampling_session_id, cloned_sampler_id } = target;
    let wait_max = app.config.poll_wait_max;
    let wait = match timeout.map(Duration::try_from_secs_f64) {
        None => wait_max,
        Some(Ok(wait)) => wait.min(wait_max),
        Some(Err(_)) => {
            let detail = "timeout must be a number of seconds, 0 or more";
            return Err(Error::invalid("invalid_timeout", detail));
        }
    };
    let query = FeedQuery {
        sampling_session_id,
        clone: cloned_sampler_id,
        cursor: prev_cursor,
        retrieved: retrieved_request_ids,
    };
    let page = tokio::select! {
        biased;
        page = app.store.feed(&tenant, query, wait) => page?,
        () = Stopping::told(stopping) => return Ok(come_back()),
    };
    let completion = |EndedSample { request_id, bytes }| match bytes {
        Some(bytes) => FutureCompletion::Finished {
            request_id,
            response_payload_uncompressed_size: Some(bytes as u64),
        },
        None => FutureCompletion::Failed { request_id },
    };
    let completions = page.ended.into_iter().map(completion).collect();
    Ok(Json(RetrieveFuturesResponse { completions, cursor: page.cursor }).into_response())
}

/// `POST cancel_future`. Unknown ids are answered alike: the SDK would repeat anything else.
pub(crate) async fn cancel(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<CancelFutureRequest>,
) -> Result<Json<serde_json::Value>> {
    match app.store.cancel_sample(&tenant, &body.value.request_id).await {
        Ok(()) | Err(tinsmith_store::Error::NotFound { .. }) => Ok(Json(serde_json::json!({}))),
        Err(error) => Err(error.into()),
    }
}

/// A sample of the other dialect that is asked for here; its result is kept in JSON.
fn of_kept(found: Found, id: &RequestId) -> Result<Response> {
    match found {
        Found::Pending => Ok(pending(QueueState::Active)),
        Found::Gone => Err(Error::Gone { code: "request_expired", detail: gone(id) }),
        Found::Failed(failure) => Ok(failed(failure)),
        Found::Done(result) => {
            Ok(([(header::CONTENT_TYPE, "application/json")], result).into_response())
        }
    }
}

/// Only samples can be asked for again: what a run did stays done.
fn gone(id: &RequestId) -> String {
    if id.0.starts_with("smp-") {
        return format!(
            "the sample {id} is not kept any more: it belongs to an earlier start of the server, or its \
             retention is over; submit the sample again"
        );
    }
    format!(
        "the result of {id} is not kept any more: its retention is over; what it did stays done"
    )
}

fn pending(state: QueueState) -> Response {
    let (queue_state, reason) = match state {
        QueueState::Active => (futures::QueueState::Active, None),
        QueueState::PausedCapacity(room) => {
            let reason = match room {
                Room::Runs => "all training runs that fit into the server's memory have work",
                Room::Samplers => "all samplers that fit into the server's memory have work",
            };
            (futures::QueueState::PausedCapacity, Some(reason))
        }
        QueueState::PausedRateLimit => {
            (futures::QueueState::PausedRateLimit, Some("the tenant's share is used up"))
        }
    };
    let reason = reason.map(str::to_owned);
    let body = Pending { queue_state, queue_state_reason: reason, retry_after_ms: None };
    (StatusCode::REQUEST_TIMEOUT, Json(body)).into_response()
}

/// How long a client is asked to leave a server alone that stops.
const STOPPING_RETRY_MS: u64 = 1000;

/// The server stops, and its successor knows the answer.
fn come_back() -> Response {
    let body = Pending {
        queue_state: futures::QueueState::Active,
        queue_state_reason: None,
        retry_after_ms: Some(STOPPING_RETRY_MS),
    };
    (StatusCode::REQUEST_TIMEOUT, Json(body)).into_response()
}

fn failed(failure: Failure) -> Response {
    let category = match failure.category {
        Category::User => futures::Category::User,
        Category::Server => futures::Category::Server,
        Category::Unknown => futures::Category::Unknown,
    };
    Json(Failed { error: failure.message, category }).into_response()
}

/// The result in the form that is asked for. Stored are protobuf for what has it, JSON for the others.
fn done(kind: RequestKind, result: Bytes, wants_protobuf: bool) -> Result<Response> {
    let has_protobuf =
        matches!(kind, RequestKind::Forward | RequestKind::ForwardBackward | RequestKind::Sample);
    if wants_protobuf && has_protobuf {
        return Ok(([(header::CONTENT_TYPE, negotiate::PROTOBUF)], result).into_response());
    }
    let json = in_json(kind, result)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// A stored result as JSON.
pub(crate) fn in_json(kind: RequestKind, result: Bytes) -> Result<Bytes> {
    match kind {
        RequestKind::Forward | RequestKind::ForwardBackward => forward_backward_json(&result),
        RequestKind::Sample => sample_json(&result),
        RequestKind::CreateModel
        | RequestKind::LoadWeights
        | RequestKind::OptimStep
        | RequestKind::SaveWeights
        | RequestKind::SaveWeightsForSampler
        | RequestKind::SaveWeightsExternal
        | RequestKind::UnloadModel => Ok(result),
    }
}

fn forward_backward_json(result: &Bytes) -> Result<Bytes> {
    let output = proto::ForwardBackwardOutput::decode(result.clone()).map_err(unreadable)?;
    json(&training::ForwardBackwardOutput::try_from(&output).map_err(unreadable)?)
}

fn sample_json(result: &Bytes) -> Result<Bytes> {
    let response = proto::SampleResponse::decode(result.clone()).map_err(unreadable)?;
    json(&sampling::SampleResponse::try_from(&response).map_err(unreadable)?)
}

fn json(result: &impl Serialize) -> Result<Bytes> {
    Ok(serde_json::to_vec(result).map_err(unreadable)?.into())
}

/// A stored result is the server's own work: that it cannot be read is no client's fault.
fn unreadable(error: impl std::fmt::Display) -> Error {
    Error::Internal { detail: format!("a stored result cannot be read: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_samples_are_to_be_submitted_again() {
        assert!(gone(&"smp-1-2-3".into()).ends_with("submit the sample again"));
        assert_eq!(
            gone(&"req-1".into()),
            "the result of req-1 is not kept any more: its retention is over; what it did stays done"
        );
    }
}
