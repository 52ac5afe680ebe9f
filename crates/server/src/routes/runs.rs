//! Training runs, as they stand.

use axum::{Json, extract::State};
use serde_json::{Value, json};
use tinsmith_store::{CheckpointFilter, CheckpointKind, RunRecord};
use tinsmith_types::{
    checkpoints::Checkpoint,
    ids::{ModelId, TenantId},
    runs::{ListTrainingRunsResponse, TrainingRun},
    training::{GetInfoRequest, GetInfoResponse, ModelData},
};

use crate::{
    body, check,
    error::Result,
    page::Page,
    routes::checkpoints,
    segments::Path,
    state::{Shared, Tenant},
};

const PAGE_ENTRIES: u32 = 20;

/// `POST get_info`. The SDK takes the tokenizer from it.
pub(crate) async fn get_info(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<GetInfoRequest>,
) -> Result<Json<Value>> {
    let run = app.store.run(&tenant, &body.value.model_id).await?;
    let model = app.catalog.by_origin(&run.base_model, &run.base_digest)?;
    let info = GetInfoResponse {
        model_data: ModelData {
            arch: Some(model.architecture.clone()),
            model_name: Some(run.base_model.clone()),
            tokenizer_id: Some(model.tokenizer_id.clone()),
            lora_rank: Some(run.lora.rank),
        },
        model_id: run.id,
        optimizer_config: serde_json::from_value(run.optimizer_config).unwrap_or_default(),
        is_lora: Some(true),
        lora_rank: Some(run.lora.rank),
        model_name: Some(run.base_model),
    };
    let mut info = serde_json::to_value(info).unwrap_or_default();
    // The protocol has no place for the rest of the adapter, and its seed may have been drawn here.
    info["lora_config"] = json!(run.lora);
    Ok(Json(info))
}

/// `GET training_runs`.
pub(crate) async fn list(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    page: Page,
) -> Result<Json<ListTrainingRunsResponse>> {
    let (limit, offset) = (page.limit(PAGE_ENTRIES), page.offset());
    let project = page.project_id();
    let (runs, total) = app.store.runs(&tenant, project.as_deref(), (limit, offset)).await?;
    let mut training_runs = Vec::with_capacity(runs.len());
    for run in runs {
        training_runs.push(training_run(&app, &tenant, run).await?);
    }
    let cursor = page.cursor(PAGE_ENTRIES, total);
    Ok(Json(ListTrainingRunsResponse { training_runs, cursor }))
}

/// `GET training_runs/{run_id}`.
pub(crate) async fn get(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path(id): Path<ModelId>,
    _: Page,
) -> Result<Json<TrainingRun>> {
    let run = app.store.run(&tenant, &id).await?;
    Ok(Json(training_run(&app, &tenant, run).await?))
}

async fn training_run(app: &Shared, tenant: &TenantId, run: RunRecord) -> Result<TrainingRun> {
    let last = async |kind: CheckpointKind| -> Result<Option<Checkpoint>> {
        let (model_id, kind) = (Some(run.id.clone()), Some(kind));
        let filter = CheckpointFilter { model_id, kind, ..CheckpointFilter::default() };
        let (newest, _) = app.store.checkpoints(tenant, &filter, 1, 0).await?;
        Ok(newest.first().map(checkpoints::checkpoint))
    };
    Ok(TrainingRun {
        last_checkpoint: last(CheckpointKind::Weights).await?,
        last_sampler_checkpoint: last(CheckpointKind::SamplerWeights).await?,
        training_run_id: run.id,
        base_model: run.base_model,
        model_owner: run.tenant.0,
        is_lora: true,
        corrupted: run.corrupted.is_some(),
        lora_rank: Some(run.lora.rank),
        last_request_time: run.last_request_at.to_string(),
        user_metadata: check::as_metadata(run.user_metadata),
    })
}
