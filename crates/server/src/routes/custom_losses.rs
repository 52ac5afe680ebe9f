//! Losses that clients send as graphs.

use axum::{
    Json,
    extract::{MatchedPath, State},
};
use tinsmith_graph::{Input, Loss};
use tinsmith_store::NewCustomLoss;
use tinsmith_types::{
    custom_losses::{CreateCustomLossRequest, CreateCustomLossResponse},
    futures::UntypedFuture,
    ids::{LossId, RequestId, TenantId},
};

use crate::{
    body::{Plain, off_thread},
    error::{Error, Result},
    routes::training,
    state::{Shared, Tenant},
};

/// Longest name of a loss, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// `POST create_custom_loss`. The loss is checked and durable when this is answered; its future has ended.
pub(crate) async fn create(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    path: MatchedPath,
    body: Plain,
) -> Result<Json<UntypedFuture>> {
    let bytes_max = app.config.custom_loss_bytes_max;
    if body.bytes.len() > bytes_max {
        let detail =
            format!("a custom loss may have {bytes_max} bytes; capture less in its function");
        return Err(Error::invalid("custom_loss_too_large", detail));
    }
    let (request, _hold) = body.json::<CreateCustomLossRequest>(&app, path.as_str()).await?;
    training::live_session(&app, &tenant, &request.session_id).await?;
    check_name(&request)?;
    let limits = app.config.custom_loss_limits;
    let (request, json) = off_thread(usize::MAX, move || {
        let checked = Loss::new(inputs(&request), &request.graph, &limits).map(|_| ());
        let json = serde_json::to_vec(&request).unwrap_or_default();
        checked.map(|()| (request, json))
    })
    .await?
    .map_err(|error| Error::invalid("invalid_custom_loss", error.to_string()))?;
    let id = LossId::of(&request.session_id, request.custom_loss_seq_id);
    let new = NewCustomLoss {
        id: id.clone(),
        session_id: request.session_id,
        digest: blake3::hash(&json).into(),
        body: json.into(),
    };
    let session_max = app.config.custom_losses_per_session_max;
    if !app.store.create_custom_loss(&tenant, new, session_max).await? {
        let detail = format!("a session may have {session_max} custom losses; open another one");
        return Err(Error::invalid("too_many_custom_losses", detail));
    }
    tracing::info!(loss.id = %id, name = request.name, "custom loss created");
    Ok(Json(UntypedFuture {
        request_id: RequestId(id.0),
        model_id: None,
        sample_sequence_ids: None,
    }))
}

/// The result of a request that made a loss, where the id is one of such a request.
pub(crate) async fn result(
    app: &Shared,
    tenant: &TenantId,
    id: &RequestId,
) -> Result<Option<Json<CreateCustomLossResponse>>> {
    let Some(loss_id) = LossId::of_request(id) else { return Ok(None) };
    match app.store.custom_loss(tenant, &loss_id).await {
        Ok(_) => Ok(Some(Json(CreateCustomLossResponse { loss_id }))),
        Err(tinsmith_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The inputs as the interpreter takes them.
pub(crate) fn inputs(request: &CreateCustomLossRequest) -> Vec<Input> {
    let input = |input: &tinsmith_types::custom_losses::CustomLossInput| Input {
        name: input.name.clone(),
        rank: input.rank,
    };
    request.inputs.iter().map(input).collect()
}

fn check_name(request: &CreateCustomLossRequest) -> Result<()> {
    if u32::try_from(request.custom_loss_seq_id).is_err() {
        let detail = format!("custom_loss_seq_id must be from 0 to {}", u32::MAX);
        return Err(Error::invalid("invalid_custom_loss_seq_id", detail));
    }
    if request.name.len() > NAME_BYTES_MAX {
        let detail = format!("name may have {NAME_BYTES_MAX} bytes");
        return Err(Error::invalid("invalid_custom_loss", detail));
    }
    Ok(())
}
