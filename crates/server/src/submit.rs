//! Writes a checked training request down.

use axum::Json;
use bytes::Bytes;
use tinsmith_store::{NewRequest, NewRun, RequestKind, RunRecord};
use tinsmith_types::{
    futures::UntypedFuture,
    ids::{ModelId, SeqId, TenantId},
    queued::QueuedRequest,
};

use crate::{
    catalog::ModelEntry,
    check::Fault,
    error::{Error, Result, short},
    ordered::SEQ_ID_MAX,
    state::Shared,
};

/// A request with a place in a run's order, about to be written down.
pub(crate) struct Admission {
    pub(crate) model_id: ModelId,
    pub(crate) seq_id: Option<SeqId>,
    pub(crate) kind: RequestKind,
    /// The request's canonical encoding.
    pub(crate) body: Bytes,
    /// blake3 of what a retry must repeat.
    pub(crate) digest: [u8; 32],
    pub(crate) creates: Option<NewRun>,
    /// What is wrong with it: it takes its place all the same, already failed.
    pub(crate) fault: Option<Fault>,
}

impl Admission {
    /// A request to a run that is there.
    pub(crate) fn new(
        model_id: ModelId,
        seq_id: Option<SeqId>,
        request: &QueuedRequest,
        fault: Option<Fault>,
    ) -> Self {
        let (body, digest) = (request.encode(), digest(request));
        Self { model_id, seq_id, kind: kind(request), body, digest, creates: None, fault }
    }
}

/// blake3 of what identifies a request's body.
pub(crate) fn digest(request: &QueuedRequest) -> [u8; 32] {
    blake3::hash(&request.digest_input()).into()
}

/// Makes the request durable and answers with its id.
pub(crate) async fn submit(
    app: &Shared,
    tenant: &TenantId,
    admission: Admission,
) -> Result<Json<UntypedFuture>> {
    let Admission { model_id, seq_id, kind, digest, body, creates, fault } = admission;
    if creates.is_none() && seq_id.is_some_and(|seq_id| !(1..=SEQ_ID_MAX).contains(&seq_id.0)) {
        let detail = format!("seq_id must be from 1 to {SEQ_ID_MAX}");
        return Err(Error::invalid("invalid_seq_id", detail));
    }
    if let Some(fault) = &fault {
        tracing::info!(run.id = %model_id, seq_id = ?seq_id, fault = &*short(&fault.0), "request fails at the door");
    }
    let new = NewRequest {
        model_id: model_id.clone(),
        seq_id,
        kind,
        body,
        digest,
        creates,
        refused: fault.map(Fault::into_failure),
    };
    let submitted = app.store.submit(tenant, new).await?;
    tracing::debug!(
        run.id = %model_id, queued.id = %submitted.request_id, fresh = submitted.fresh, ?kind, "submitted"
    );
    Ok(Json(UntypedFuture {
        request_id: submitted.request_id,
        model_id: Some(model_id),
        sample_sequence_ids: None,
    }))
}

fn kind(request: &QueuedRequest) -> RequestKind {
    match request {
        QueuedRequest::CreateModel(_) => RequestKind::CreateModel,
        QueuedRequest::LoadWeights(_) => RequestKind::LoadWeights,
        QueuedRequest::Forward(_) => RequestKind::Forward,
        QueuedRequest::ForwardBackward(_) => RequestKind::ForwardBackward,
        QueuedRequest::OptimStep(_) => RequestKind::OptimStep,
        QueuedRequest::SaveWeights(_) => RequestKind::SaveWeights,
        QueuedRequest::SaveWeightsForSampler(_) => RequestKind::SaveWeightsForSampler,
        QueuedRequest::SaveWeightsExternal(_) => RequestKind::SaveWeightsExternal,
        QueuedRequest::UnloadModel(_) => RequestKind::UnloadModel,
        QueuedRequest::Sample(_) => RequestKind::Sample,
    }
}

/// A run that can go on, and its base model. Counts as a life sign of its session.
///
/// # Errors
/// 404 for an unknown run, 410 if its session has ended, 400 if it cannot go on or never could.
pub(crate) async fn live_run<'a>(
    app: &'a Shared,
    tenant: &TenantId,
    id: &ModelId,
) -> Result<(RunRecord, &'a ModelEntry)> {
    let run = app.store.run(tenant, id).await?;
    if let Some(source) = &run.copied_from {
        let detail = format!(
            "run {id} holds a copy of {source} and cannot be trained; create a run from the copy with \
             load_weights"
        );
        return Err(Error::invalid("run_is_copy", detail));
    }
    app.store.heartbeat(tenant, &run.session_id).await?;
    if let Some(reason) = &run.corrupted {
        return Err(Error::invalid("run_corrupted", format!("run {id} cannot go on: {reason}")));
    }
    let model = app.catalog.by_origin(&run.base_model, &run.base_digest)?;
    Ok((run, model))
}
