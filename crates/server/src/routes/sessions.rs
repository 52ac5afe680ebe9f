//! Client programs' connection scopes.

use axum::{Json, extract::State, http::HeaderMap};
use serde_json::Value;
use tinsmith_store::NewSession;
use tinsmith_types::{
    ids::SessionId,
    search::AssignProjectRequest,
    session::{
        CreateSessionRequest, CreateSessionResponse, FinishSessionRequest, HeartbeatRequest,
        HeartbeatResponse, ListSessionsResponse, SessionInfo,
    },
};

use crate::{
    body, check,
    error::{Error, Result, short},
    page::Page,
    segments::Path,
    state::{Shared, Tenant},
};

const PAGE_ENTRIES: u32 = 20;

/// `POST create_session`.
pub(crate) async fn create(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    body: body::Json<CreateSessionRequest>,
) -> Result<Json<CreateSessionResponse>> {
    let request = body.value;
    check::small(&app.config, "tags", &request.tags)?;
    check::small(&app.config, "sdk_version", &request.sdk_version)?;
    check::small(&app.config, "project_id", &request.project_id)?;
    check::small(&app.config, "display_name", &request.display_name)?;
    let new = NewSession {
        tags: request.tags,
        user_metadata: check::metadata(&app.config, request.user_metadata)?,
        sdk_version: request.sdk_version,
        project_id: request.project_id,
        display_name: request.display_name,
    };
    let key = headers.get("x-idempotency-key").and_then(|value| value.to_str().ok());
    let session = app.store.create_session(&tenant, new, key).await?;
    tracing::info!(session.id = %session.id, sdk_version = session.sdk_version, "session created");
    Ok(Json(CreateSessionResponse {
        session_id: session.id,
        info_message: None,
        warning_message: None,
        error_message: None,
    }))
}

/// `POST session_heartbeat`. A session that has ended answers 410, which stops the SDK's loop.
pub(crate) async fn heartbeat(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<HeartbeatRequest>,
) -> Result<Json<HeartbeatResponse>> {
    app.store.heartbeat(&tenant, &body.value.session_id).await?;
    Ok(Json(HeartbeatResponse {}))
}

/// `GET sessions`.
pub(crate) async fn list(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    page: Page,
) -> Result<Json<ListSessionsResponse>> {
    let (limit, offset) = (page.limit(PAGE_ENTRIES), page.offset());
    let (sessions, _total) = app.store.sessions(&tenant, limit, offset).await?;
    Ok(Json(ListSessionsResponse { sessions }))
}

/// `GET sessions/{session_id}`.
pub(crate) async fn get(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path(id): Path<SessionId>,
    _: Page,
) -> Result<Json<SessionInfo>> {
    let session = app.store.session(&tenant, &id).await?;
    let (training_run_ids, sampler_ids) = app.store.session_children(&tenant, &id).await?;
    Ok(Json(SessionInfo {
        training_run_ids,
        sampler_ids,
        user_metadata: check::as_metadata(session.user_metadata),
        display_name: session.display_name,
    }))
}

/// `PUT sessions/{session_id}/project`. A session cannot be taken out of all projects again.
pub(crate) async fn assign_project(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path(id): Path<SessionId>,
    body: body::Json<AssignProjectRequest>,
) -> Result<Json<Value>> {
    let project = &body.value.project_id;
    check::small(&app.config, "project_id", project)?;
    if project.trim().is_empty() {
        return Err(Error::invalid("invalid_project_id", "project_id must not be empty"));
    }
    app.store.assign_project(&tenant, &id, project).await?;
    Ok(Json(Value::Null))
}

/// `POST sessions/{session_id}/finish`. The first reason stays; a repeat is answered alike.
pub(crate) async fn finish(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path(id): Path<SessionId>,
    body: body::Json<FinishSessionRequest>,
) -> Result<Json<Value>> {
    let reason = body.value.reason.as_str();
    // A client that goes away is not turned back for saying too much.
    let detail = body.value.detail.as_deref().map(short);
    app.store.finish_session(&tenant, &id, reason, detail.as_deref()).await?;
    tracing::info!(session.id = %id, reason, "session finished");
    Ok(Json(Value::Null))
}
