//! Samplers and samples.

use axum::{Json, extract::State};
use bytes::Bytes;
use tinsmith_store::{NewSample, NewSamplingSession};
use tinsmith_types::{
    futures::UntypedFuture,
    ids::{SamplingSessionId, TenantId},
    path::{CheckpointKind, CheckpointPath},
    queued::QueuedRequest,
    sampling::{
        CreateSamplingSessionRequest, CreateSamplingSessionResponse, JoinSamplingSessionRequest,
        JoinSamplingSessionResponse, SampleRequest, SamplerInfo,
    },
};

use crate::{
    body,
    catalog::ModelEntry,
    check::{self, sample::Limits},
    error::{Error, Result},
    id,
    routes::{training, weights},
    segments::Path,
    state::{Shared, Tenant},
    submit::digest,
};

/// `POST create_sampling_session`.
pub(crate) async fn create_session(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<CreateSamplingSessionRequest>,
) -> Result<Json<CreateSamplingSessionResponse>> {
    let request = body.value;
    training::live_session(&app, &tenant, &request.session_id).await?;
    if request.sampling_session_seq_id < 0 {
        let detail = "sampling_session_seq_id must not be negative";
        return Err(Error::invalid("invalid_sampling_session_seq_id", detail));
    }
    let new = match (&request.base_model, &request.model_path) {
        (Some(name), None) => of_base_model(&app, &request, name)?,
        (None, Some(path)) => of_checkpoint(&app, &tenant, &request, path).await?,
        (None, None) | (Some(_), Some(_)) => {
            let detail = "wants exactly one of base_model and model_path";
            return Err(Error::invalid("invalid_sampling_session", detail));
        }
    };
    let session = app.store.create_sampling_session(&tenant, new).await?;
    tracing::info!(sampler.id = %session.id, base_model = session.base_model, "sampler created");
    Ok(Json(CreateSamplingSessionResponse { sampling_session_id: session.id }))
}

/// `POST join_sampling_session`: a number for another client of a sampler.
pub(crate) async fn join_session(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<JoinSamplingSessionRequest>,
) -> Result<Json<JoinSamplingSessionResponse>> {
    let id = body.value.sampling_session_id;
    let session = app.store.sampling_session(&tenant, &id).await?;
    app.store.heartbeat(&tenant, &session.session_id).await?;
    let client_counter = app.store.join_sampler(&tenant, &id).await?;
    tracing::info!(sampler.id = %id, client_counter, "sampler joined");
    Ok(Json(JoinSamplingSessionResponse { client_counter }))
}

/// `GET samplers/{sampler_id}`.
pub(crate) async fn get_sampler(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Path(id): Path<SamplingSessionId>,
) -> Result<Json<SamplerInfo>> {
    let session = app.store.sampling_session(&tenant, &id).await?;
    // A sampler outlives its model's place in the catalog.
    let model = app.catalog.by_origin(&session.base_model, &session.base_digest).ok();
    Ok(Json(SamplerInfo {
        tokenizer_id: model.map(|model| model.tokenizer_id.clone()),
        sampler_id: session.id,
        base_model: session.base_model,
        model_path: session.model_path,
    }))
}

/// `POST asample`. Samples have no order, so that what is wrong with one is a 400.
pub(crate) async fn asample(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<SampleRequest>,
) -> Result<Json<UntypedFuture>> {
    let mut request = body.value;
    let id = if let Some(id) = &request.sampling_session_id {
        id.clone()
    } else {
        // Numbers count within a sampler, and this one is shared.
        request.seq_id = None;
        sampler_of(&app, &tenant, &request).await?
    };
    let sampler = app.store.sampler_origin(&tenant, &id).await?;
    if request.sampling_session_id.is_some() {
        app.store.heartbeat(&tenant, &sampler.session_id).await?;
    }
    let model = app.catalog.by_origin(&sampler.base_model, &sampler.base_digest)?;
    check::sample::sample(&limits(&app, model), &request)?;
    let (seq_id, num_samples) = (request.seq_id, request.num_samples);
    let (body, digest) = written(request);
    let new = NewSample { sampling_session_id: id, seq_id, body, digest, refused: None };
    let submitted = app.store.submit_sample(&tenant, new).await?;
    Ok(Json(UntypedFuture {
        sample_sequence_ids: Some(id::sequence_ids(&submitted.request_id, num_samples)),
        request_id: submitted.request_id,
        model_id: None,
    }))
}

/// What is kept of a sample, with a seed drawn where it has none, and the digest of what a retry must repeat: it
/// has no seed either.
fn written(request: SampleRequest) -> (Bytes, [u8; 32]) {
    let mut request = QueuedRequest::Sample(request);
    let digest = digest(&request);
    if let QueuedRequest::Sample(sample) = &mut request {
        sample.sampling_params.seed.get_or_insert_with(id::draw_seed);
    }
    (request.encode(), digest)
}

/// What a sample from a model may ask for.
pub(crate) fn limits(app: &Shared, model: &ModelEntry) -> Limits {
    Limits {
        vocab_size: model.vocab_size,
        context: model.context,
        num_samples_max: app.config.num_samples_max,
        stops_max: app.config.stops_max,
        topk_max: app.config.topk_max,
        logprobs_max: app.config.logprobs_max,
    }
}

/// The sampler of a sample that names none (SDKs up to 0.2.2), which all samples of the same weights share.
async fn sampler_of(
    app: &Shared,
    tenant: &TenantId,
    request: &SampleRequest,
) -> Result<SamplingSessionId> {
    let blob = match (&request.base_model, &request.model_path) {
        (Some(_), None) => None,
        (None, Some(path)) => Some(weights::find(app, tenant, &path.parse()?).await?.blob),
        (None, None) | (Some(_), Some(_)) => {
            let detail = "wants exactly one of sampling_session_id, base_model and model_path; \
                create_sampling_session opens a sampling session";
            return Err(Error::invalid("sampling_session_required", detail));
        }
    };
    let what = (&request.base_model, &request.model_path, &blob);
    let hash = blake3::hash(format!("{what:?}").as_bytes());
    let number = hash.as_bytes()[..6].iter().fold(0, |number, byte| number << 8 | i64::from(*byte));
    let session_id = app.sampling_session(tenant).await?;
    let id = SamplingSessionId::of(&session_id, number);
    match app.store.sampler_origin(tenant, &id).await {
        Err(tinsmith_store::Error::NotFound { .. }) => {}
        found => return Ok(found.map(|_| id)?),
    }
    let request = CreateSamplingSessionRequest {
        session_id,
        sampling_session_seq_id: number,
        base_model: request.base_model.clone(),
        model_path: request.model_path.clone(),
    };
    let new = match (&request.base_model, &request.model_path) {
        (Some(name), _) => of_base_model(app, &request, name)?,
        (None, path) => {
            of_checkpoint(app, tenant, &request, path.as_deref().unwrap_or_default()).await?
        }
    };
    Ok(app.store.create_sampling_session(tenant, new).await?.id)
}

fn of_base_model(
    app: &Shared,
    request: &CreateSamplingSessionRequest,
    name: &str,
) -> Result<NewSamplingSession> {
    let model = app.catalog.by_name(name)?;
    if !model.sampleable {
        let detail = format!("base_model {name:?} is not offered for sampling");
        return Err(Error::invalid("not_sampleable", detail));
    }
    Ok(NewSamplingSession {
        id: SamplingSessionId::of(&request.session_id, request.sampling_session_seq_id),
        session_id: request.session_id.clone(),
        base_model: name.to_owned(),
        base_digest: model.base_digest.clone(),
        model_path: None,
        blob: None,
        follows: None,
        digest: digest_of(request),
    })
}

async fn of_checkpoint(
    app: &Shared,
    tenant: &TenantId,
    request: &CreateSamplingSessionRequest,
    path: &str,
) -> Result<NewSamplingSession> {
    let path: CheckpointPath = path.parse()?;
    if path.kind == CheckpointKind::ExternalWeights {
        let detail =
            format!("{path} cannot be sampled from; save_weights_for_sampler makes what can");
        return Err(Error::invalid("not_sampleable", detail));
    }
    let checkpoint = weights::find(app, tenant, &path).await?;
    let origin = weights::origin(app, tenant, &checkpoint).await?;
    app.catalog.by_origin(&origin.base_model, &origin.base_digest)?;
    Ok(NewSamplingSession {
        id: SamplingSessionId::of(&request.session_id, request.sampling_session_seq_id),
        session_id: request.session_id.clone(),
        base_model: origin.base_model,
        base_digest: origin.base_digest,
        model_path: Some(path.to_string()),
        blob: Some(checkpoint.blob),
        follows: None,
        digest: digest_of(request),
    })
}

fn digest_of(request: &CreateSamplingSessionRequest) -> [u8; 32] {
    let json = serde_json::to_vec(request).unwrap_or_default();
    blake3::hash(&json).into()
}
