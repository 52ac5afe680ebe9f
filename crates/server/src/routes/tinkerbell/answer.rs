//! Answers in this dialect: 200 with the result, 202 while there is none, 404, and 500 for what failed.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tinsmith_store::{Category, Failure, Outcome, Retrieved};
use tinsmith_types::{
    futures::{RetrieveFutureRequest, UntypedFuture},
    ids::{ModelId, RequestId, TenantId},
};

use super::{Call, Prefer, sample};
use crate::{
    body::{self, off_thread},
    error::{Error, Result},
    routes::futures,
    state::{Shared, Stopping, Tenant},
};

/// What ids of futures begin with; behind it stands the official id.
const PREFIX: &str = "future_";

/// The official id of what a client waits for, which it may know by either name.
pub(crate) fn official_id(id: &RequestId) -> RequestId {
    id.0.strip_prefix(PREFIX).map_or_else(|| id.clone(), RequestId::from)
}

fn future_id(id: &RequestId) -> String {
    format!("{PREFIX}{id}")
}

/// `POST /retrieve_future`: waits for a moment only, as clients ask again by themselves.
pub(crate) async fn retrieve(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    stopping: Option<Extension<Stopping>>,
    headers: HeaderMap,
    body: body::Json<RetrieveFutureRequest>,
) -> Result<Response> {
    let id = official_id(&body.value.request_id);
    // A poll holds nothing while it waits.
    drop(body);
    let wait = match Prefer::read(&headers) {
        Prefer::Nothing => app.config.short_poll_wait_max,
        Prefer::RespondAsync => Duration::ZERO,
        Prefer::Wait(wait) => {
            wait.map_or(app.config.poll_wait_max, |wait| wait.min(app.config.poll_wait_max))
        }
    };
    let stopping = stopping.map(|Extension(stopping)| stopping);
    match look(&app, &tenant, stopping, &id, wait).await? {
        Found::Pending => Ok(pending(json!({}))),
        Found::Gone => Err(gone(&id)),
        Found::Failed(failure) => Ok(failed(&failure, StatusCode::INTERNAL_SERVER_ERROR)),
        Found::Done(result) => done(result, None, &[]).await,
    }
}

/// The answer to what was submitted, at once.
pub(super) async fn submitted(
    call: &Call,
    future: &UntypedFuture,
    warnings: &[String],
) -> Result<Response> {
    let id = &future.request_id;
    let found = look(&call.app, &call.tenant, None, id, Duration::ZERO).await?;
    // Refused at the door: better said now than at the first poll.
    if let Found::Failed(failure) = found
        && failure.category == Category::User
    {
        return Ok(failed(&failure, StatusCode::BAD_REQUEST));
    }
    Ok(Json(named(future, warnings)).into_response())
}

/// The result of what was submitted, or its name where that takes too long.
pub(super) async fn waited(
    call: &Call,
    future: &UntypedFuture,
    wait: Duration,
    warnings: &[String],
) -> Result<Response> {
    let id = &future.request_id;
    match look(&call.app, &call.tenant, call.stopping.clone(), id, wait).await? {
        Found::Pending => Ok(pending(named(future, warnings))),
        Found::Gone => Err(gone(id)),
        Found::Failed(failure) => {
            let status = match failure.category {
                Category::User => StatusCode::BAD_REQUEST,
                Category::Server | Category::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Ok(failed(&failure, status))
        }
        Found::Done(result) => done(result, future.model_id.as_ref(), warnings).await,
    }
}

/// How a sample that outlives the server stands, for polls of the official path; `None` for other requests.
pub(crate) async fn kept(
    app: &Shared,
    tenant: &TenantId,
    stopping: Option<Stopping>,
    id: &RequestId,
) -> Result<Option<Found>> {
    if !sample::is_kept(id) {
        return Ok(None);
    }
    look(app, tenant, stopping, id, app.config.poll_wait_max).await.map(Some)
}

/// What a look at a future finds; a result is the official one in JSON.
pub(crate) enum Found {
    Pending,
    Gone,
    Failed(Failure),
    Done(Bytes),
}

async fn look(
    app: &Shared,
    tenant: &TenantId,
    stopping: Option<Stopping>,
    id: &RequestId,
    wait: Duration,
) -> Result<Found> {
    let stop = Stopping::told(stopping);
    if sample::is_kept(id) {
        return tokio::select! {
            biased;
            found = sample::look(app, tenant, id, wait) => found,
            () = stop => Ok(Found::Pending),
        };
    }
    let retrieved = tokio::select! {
        biased;
        retrieved = app.store.retrieve(tenant, id, wait) => retrieved?,
        () = stop => return Ok(Found::Pending),
    };
    Ok(match retrieved {
        Retrieved::Pending(_) => Found::Pending,
        Retrieved::Gone => Found::Gone,
        Retrieved::Finished { outcome: Outcome::Failed(failure), .. } => Found::Failed(failure),
        Retrieved::Finished { kind, outcome: Outcome::Done(result) } => {
            let bytes = result.len().saturating_mul(4);
            Found::Done(off_thread(bytes, move || futures::in_json(kind, result)).await??)
        }
    })
}

fn named(future: &UntypedFuture, warnings: &[String]) -> Value {
    let mut body = json!({"request_id": future_id(&future.request_id)});
    if let Some(model_id) = &future.model_id {
        body["model_id"] = json!(model_id);
    }
    warn(&mut body, warnings);
    body
}

fn warn(body: &mut Value, warnings: &[String]) {
    if !warnings.is_empty() {
        body["warnings"] = json!(warnings);
    }
}

fn pending(mut body: Value) -> Response {
    body["status"] = json!("pending");
    (StatusCode::ACCEPTED, [(header::RETRY_AFTER, "1")], Json(body)).into_response()
}

fn failed(failure: &Failure, status: StatusCode) -> Response {
    let body = json!({
        "status": "failed",
        "detail": failure.message,
        "code": "request_failed",
        "category": failure.category,
    });
    (status, Json(body)).into_response()
}

/// The official result, with the loss where everybody looks for it.
async fn done(result: Bytes, model_id: Option<&ModelId>, warnings: &[String]) -> Result<Response> {
    let read = off_thread(result.len(), move || serde_json::from_slice::<Value>(&result));
    let mut json = read.await?.map_err(|error| Error::Internal {
        detail: format!("a stored result cannot be read: {error}"),
    })?;
    if let Some(loss) = json.pointer("/metrics/loss:sum").cloned() {
        json["loss"] = loss;
    }
    if let Some(model_id) = model_id
        && json.get("model_id").is_none()
    {
        json["model_id"] = json!(model_id);
    }
    warn(&mut json, warnings);
    Ok(Json(json).into_response())
}

fn gone(id: &RequestId) -> Error {
    Error::NotFound {
        what: format!("the result of {}: it is not kept any more, and was", future_id(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_mean_the_same_future() {
        let id = RequestId::from("req-1");
        assert_eq!(future_id(&id), "future_req-1");
        assert_eq!(official_id(&"future_req-1".into()), id);
        assert_eq!(official_id(&id), id);
    }
}
