//! Saved weights, by name.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use jiff::SignedDuration;
use serde_json::Value;
use tinsmith_store::{CheckpointFilter, CheckpointKind, CheckpointRecord};
use tinsmith_types::{
    checkpoints::{Checkpoint, ListCheckpointsResponse, SetTtlRequest},
    ids::ModelId,
    path::{self, CheckpointPath},
    session::Metadata,
};

use crate::{
    body, check,
    error::Result,
    negotiate,
    page::Page,
    segments::Path,
    state::{Shared, Tenant},
};

const PAGE_ENTRIES: u32 = 100;

/// The run, kind and name that a URL ends in.
pub(crate) type Place = Path<(ModelId, String, String)>;

/// `GET training_runs/{run_id}/checkpoints`, not paged.
pub(crate) async fn list_of_run(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    Path(run): Path<ModelId>,
) -> Result<Json<ListCheckpointsResponse>> {
    app.store.run(&tenant, &run).await?;
    let filter = CheckpointFilter { model_id: Some(run), ..shown(&headers) };
    let limit = app.config.page_entries_max;
    let mut found: Vec<CheckpointRecord> = Vec::new();
    loop {
        let offset = u32::try_from(found.len()).unwrap_or(u32::MAX);
        let (page, total) = app.store.checkpoints(&tenant, &filter, limit, offset).await?;
        let is_last = page.is_empty();
        found.extend(page);
        if is_last || u64::try_from(found.len()).unwrap_or(u64::MAX) >= total {
            break;
        }
    }
    let checkpoints = found.iter().map(checkpoint).collect();
    Ok(Json(ListCheckpointsResponse { checkpoints, cursor: None }))
}

/// `GET checkpoints`.
pub(crate) async fn list(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    page: Page,
) -> Result<Json<ListCheckpointsResponse>> {
    let (limit, offset) = (page.limit(PAGE_ENTRIES), page.offset());
    let filter = CheckpointFilter { project_id: page.project_id(), ..shown(&headers) };
    let (found, total) = app.store.checkpoints(&tenant, &filter, limit, offset).await?;
    let checkpoints = found.iter().map(checkpoint).collect();
    let cursor = Some(page.cursor(PAGE_ENTRIES, total));
    Ok(Json(ListCheckpointsResponse { checkpoints, cursor }))
}

/// What the program that asks can read: a listing with a type that it does not know fails it as a whole.
fn shown(headers: &HeaderMap) -> CheckpointFilter {
    let without = negotiate::fails_on_external(headers).then_some(CheckpointKind::ExternalWeights);
    CheckpointFilter { without, ..CheckpointFilter::default() }
}

/// `DELETE training_runs/{run_id}/checkpoints/{kind}/{name}`.
pub(crate) async fn delete(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path((run, kind_name, name)): Place,
) -> Result<StatusCode> {
    app.store.delete_checkpoint(&tenant, &run, kind(kind_name.parse()?), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST …/publish`. Publishing twice is fine.
pub(crate) async fn publish(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path((run, kind_name, name)): Place,
) -> Result<StatusCode> {
    app.store.set_checkpoint_public(&tenant, &run, kind(kind_name.parse()?), &name, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE …/publish`.
pub(crate) async fn unpublish(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path((run, kind_name, name)): Place,
) -> Result<StatusCode> {
    app.store.set_checkpoint_public(&tenant, &run, kind(kind_name.parse()?), &name, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT …/ttl`; null removes the expiry.
pub(crate) async fn set_ttl(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path((run, kind_name, name)): Place,
    body: body::Json<SetTtlRequest>,
) -> Result<StatusCode> {
    let kind = kind(kind_name.parse()?);
    check::ttl(body.value.ttl_seconds).map_err(|fault| fault.into_error("invalid_ttl"))?;
    let expires_at =
        body.value.ttl_seconds.map(|seconds| app.clock.now() + SignedDuration::from_secs(seconds));
    app.store.set_checkpoint_ttl(&tenant, &run, kind, &name, expires_at).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A checkpoint as listings show it.
pub(crate) fn checkpoint(record: &CheckpointRecord) -> Checkpoint {
    let path = path(record);
    let user_metadata: Metadata = record
        .user_metadata
        .iter()
        .map(|(key, value)| (key.clone(), Value::String(value.clone())))
        .collect();
    Checkpoint {
        checkpoint_id: path.checkpoint_id(),
        checkpoint_type: path.kind.into(),
        time: record.created_at.to_string(),
        tinker_path: path.to_string(),
        size_bytes: Some(record.size_bytes),
        public: record.public,
        user_metadata: (!user_metadata.is_empty()).then_some(user_metadata),
        expires_at: record.expires_at.map(|at| at.to_string()),
    }
}

/// A checkpoint's place.
pub(crate) fn path(record: &CheckpointRecord) -> CheckpointPath {
    CheckpointPath {
        run: record.model_id.clone(),
        kind: kind_on_the_wire(record.kind),
        name: record.name.clone(),
    }
}

/// The kind in a URL or `tinker://` path, as it is stored.
pub(crate) fn kind(kind: path::CheckpointKind) -> CheckpointKind {
    match kind {
        path::CheckpointKind::Weights => CheckpointKind::Weights,
        path::CheckpointKind::SamplerWeights => CheckpointKind::SamplerWeights,
        path::CheckpointKind::ExternalWeights => CheckpointKind::ExternalWeights,
    }
}

fn kind_on_the_wire(kind: CheckpointKind) -> path::CheckpointKind {
    match kind {
        CheckpointKind::Weights => path::CheckpointKind::Weights,
        CheckpointKind::SamplerWeights => path::CheckpointKind::SamplerWeights,
        CheckpointKind::ExternalWeights => path::CheckpointKind::ExternalWeights,
    }
}
