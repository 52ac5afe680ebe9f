//! Finds sessions.

use axum::{Json, extract::State};
use jiff::Timestamp;
use tinsmith_store::{DEFAULT_PROJECT, FoundSession, SessionSearch, SessionStatus, StatusFilter};
use tinsmith_types::{
    ids::TenantId,
    search::{
        self, FailedReason, FaultCategory, SearchCursor, SearchOwner, SearchSessionsRequest,
        SearchSessionsResponse, SessionSummary, StatusQuery,
    },
    session::FinishReason,
};

use crate::{
    body, check,
    error::{Error, Result},
    identity,
    state::{Shared, Tenant},
};

const PAGE_ENTRIES: std::ops::RangeInclusive<u32> = 1..=200;
const OWNERS: std::ops::RangeInclusive<usize> = 1..=10;

/// `POST sessions/search`.
pub(crate) async fn search(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<SearchSessionsRequest>,
) -> Result<Json<SearchSessionsResponse>> {
    let request = body.value;
    // What is longer than anything that is stored finds nothing, and takes time.
    check::small(&app.config, "project_ids", &request.project_ids)?;
    check::small(&app.config, "user_metadata", &request.user_metadata)?;
    check::small(&app.config, "display_name", &request.display_name)?;
    let is_mine = is_mine(&tenant, &request.owner)?;
    let search = filters(request)?;
    if !is_mine {
        return Ok(Json(SearchSessionsResponse { sessions: Vec::new(), next_cursor: None }));
    }
    let page = app.store.search_sessions(&tenant, search).await?;
    let next_cursor = page.next.map(|(at, last_session_id)| SearchCursor {
        last_created_at: at.to_string(),
        last_session_id,
    });
    let expiry = app.store.session_expiry();
    let sessions = page.sessions.into_iter().map(|found| summary(&tenant, found, expiry)).collect();
    Ok(Json(SearchSessionsResponse { sessions, next_cursor }))
}

/// Whether the tenant's own sessions are among those that are asked for; nobody else's can be seen.
fn is_mine(tenant: &TenantId, owner: &SearchOwner) -> Result<bool> {
    match owner {
        SearchOwner::Own | SearchOwner::Accessible => Ok(true),
        SearchOwner::User { owner_urns } => {
            if !OWNERS.contains(&owner_urns.len()) {
                return Err(invalid("owner.owner_urns must have from 1 to 10 entries"));
            }
            Ok(owner_urns.contains(&identity::user_urn(tenant)))
        }
    }
}

fn filters(request: SearchSessionsRequest) -> Result<SessionSearch> {
    if !PAGE_ENTRIES.contains(&request.limit) {
        return Err(invalid("limit must be from 1 to 200"));
    }
    if request.display_name.as_ref().is_some_and(String::is_empty) {
        return Err(invalid("display_name must not be empty; leave it out for any"));
    }
    if request.statuses.as_ref().is_some_and(Vec::is_empty) {
        return Err(invalid("statuses must not be empty; leave it out for any"));
    }
    let statuses =
        request.statuses.map(|all| all.into_iter().map(status_filter).collect::<Result<Vec<_>>>());
    let after = request.cursor.map(|cursor| {
        let at: Timestamp = cursor.last_created_at.parse().map_err(|_| {
            invalid("cursor.last_created_at is no time; pass next_cursor back as it came")
        })?;
        Ok::<_, Error>((at, cursor.last_session_id))
    });
    Ok(SessionSearch {
        id: request.session_id,
        projects: request.project_ids,
        user_metadata: request.user_metadata,
        display_name: request.display_name,
        statuses: statuses.transpose()?,
        limit: request.limit as usize,
        after: after.transpose()?,
    })
}

fn status_filter(query: StatusQuery) -> Result<StatusFilter> {
    Ok(match query {
        StatusQuery::Active => StatusFilter::Active,
        StatusQuery::Cancelled => StatusFilter::Cancelled,
        StatusQuery::Failed => StatusFilter::Failed,
        StatusQuery::ClientFinished { reasons } => {
            if reasons.as_ref().is_some_and(Vec::is_empty) {
                return Err(invalid("statuses.reasons must not be empty; leave it out for any"));
            }
            let name = |reason| FinishReason::from(reason).as_str().to_owned();
            StatusFilter::ClientFinished(
                reasons.map(|reasons| reasons.into_iter().map(name).collect()),
            )
        }
    })
}

fn summary(tenant: &TenantId, found: FoundSession, expiry: std::time::Duration) -> SessionSummary {
    let record = found.record;
    SessionSummary {
        session_id: record.id,
        created_at: record.created_at.to_string(),
        owner: identity::user_urn(tenant),
        project_id: record.project_id.unwrap_or_else(|| DEFAULT_PROJECT.to_owned()),
        status: Some(status(found.status, expiry)),
        checkpoints_count: found.checkpoints,
        display_name: record.display_name,
        user_metadata: check::as_metadata(record.user_metadata),
        checkpoint_storage_bytes: Some(found.checkpoint_bytes),
    }
}

fn status(status: SessionStatus, expiry: std::time::Duration) -> search::SessionStatus {
    match status {
        SessionStatus::Active => search::SessionStatus::Active,
        SessionStatus::Cancelled => search::SessionStatus::Cancelled {
            detail: Some(format!("no heartbeat for {} s", expiry.as_secs())),
        },
        SessionStatus::ClientFinished { reason, detail } => {
            let reason = match reason.as_str() {
                "errored" => FinishReason::Errored,
                "interrupted" => FinishReason::Interrupted,
                _ => FinishReason::Success,
            };
            search::SessionStatus::ClientFinished { reason, detail }
        }
        SessionStatus::Failed { model_id, message } => search::SessionStatus::Failed {
            category: FaultCategory::Internal,
            reason: FailedReason::TrainingRun { training_run_id: model_id },
            message,
        },
    }
}

fn invalid(detail: &str) -> Error {
    Error::invalid("invalid_search", detail)
}
