//! Weights into checkpoints and samplers, and out of them.

use axum::{Json, extract::State, http::HeaderMap};
use jiff::SignedDuration;
use tinsmith_seal::Recipients;
use tinsmith_store::{
    CheckpointRecord, LoraRecord, NewCheckpoint, NewCopy, NewRun, NewSession, RequestKind,
};
use tinsmith_types::{
    futures::UntypedFuture,
    ids::{ModelId, SeqId, SessionId, TenantId},
    path::{CheckpointKind, CheckpointPath},
    queued::QueuedRequest,
    session::Metadata,
    weights::{
        CopyWeightsRequest, CopyWeightsResponse, LoadTarget, LoadWeightsRequest, SamplerKind,
        SaveWeightsExternalRequest, SaveWeightsForSamplerRequest, SaveWeightsRequest, Secret,
        WeightsInfoRequest, WeightsInfoResponse,
    },
};

use crate::{
    body,
    check::{self, Fault, ensure},
    error::{Error, Result},
    ordered::{self, Place, live_run_at},
    routes::{checkpoints, training},
    state::{App, Shared, Tenant},
    submit::{Admission, submit},
};

/// `POST save_weights`.
pub(crate) async fn save_weights(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: ordered::Json<SaveWeightsRequest>,
) -> Result<Json<UntypedFuture>> {
    let mut request = body.value;
    let (model_id, seq_id) = (request.model_id.clone(), request.seq_id);
    let place = Place { model_id: model_id.clone(), seq_id };
    live_run_at(&app, &tenant, RequestKind::SaveWeights, place).await?;
    request.path.get_or_insert_with(|| made_up_name(&app, seq_id));
    let fault = check_save(&app, &request).err();
    let request = QueuedRequest::SaveWeights(request);
    submit(&app, &tenant, Admission::new(model_id, seq_id, &request, fault)).await
}

/// `POST save_weights_for_sampler`.
pub(crate) async fn save_weights_for_sampler(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: ordered::Json<SaveWeightsForSamplerRequest>,
) -> Result<Json<UntypedFuture>> {
    let request = body.value;
    let (model_id, seq_id) = (request.model_id.clone(), request.seq_id);
    let place = Place { model_id: model_id.clone(), seq_id };
    live_run_at(&app, &tenant, RequestKind::SaveWeightsForSampler, place).await?;
    let fault = check_save_for_sampler(&app, &request).err();
    let request = QueuedRequest::SaveWeightsForSampler(request);
    submit(&app, &tenant, Admission::new(model_id, seq_id, &request, fault)).await
}

/// `POST save_weights_external`.
pub(crate) async fn save_weights_external(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: ordered::Json<SaveWeightsExternalRequest>,
) -> Result<Json<UntypedFuture>> {
    let mut request = body.value;
    let (model_id, seq_id) = (request.model_id.clone(), request.seq_id);
    let place = Place { model_id: model_id.clone(), seq_id };
    live_run_at(&app, &tenant, RequestKind::SaveWeightsExternal, place).await?;
    request.path.get_or_insert_with(|| made_up_name(&app, seq_id));
    let fault = check_save_external(&request).err();
    let request = QueuedRequest::SaveWeightsExternal(request);
    submit(&app, &tenant, Admission::new(model_id, seq_id, &request, fault)).await
}

/// `POST load_weights`, in both its forms.
pub(crate) async fn load_weights(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: ordered::Json<LoadWeightsRequest>,
) -> Result<Json<UntypedFuture>> {
    let mut request = body.value;
    let token = request.weights_access_token.as_ref().map(|token| token.0.as_str());
    request.read_as = token.map(|token| app.tenant_of(Some(token))).transpose()?;
    let target = match request.target() {
        Ok(target) => target,
        Err(error) => {
            let (model_id, seq_id) = (request.model_id.clone(), request.seq_id);
            let place = model_id.map(|model_id| Place { model_id, seq_id });
            let kind = RequestKind::LoadWeights;
            return Err(ordered::refuse(&app, &tenant, kind, place, error.into()).await);
        }
    };
    let admission = match target {
        LoadTarget::New { session_id, model_seq_id } => {
            let (session_id, model_seq_id) = (session_id.clone(), model_seq_id);
            load_into_new(&app, &tenant, request, session_id, model_seq_id).await?
        }
        LoadTarget::Existing { model_id, seq_id } => {
            let (model_id, seq_id) = (model_id.clone(), seq_id);
            let place = Place { model_id: model_id.clone(), seq_id };
            live_run_at(&app, &tenant, RequestKind::LoadWeights, place).await?;
            load_into_existing(request, model_id, seq_id)
        }
    };
    submit(&app, &tenant, admission).await
}

/// `POST weights_info`.
pub(crate) async fn weights_info(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    body: body::Json<WeightsInfoRequest>,
) -> Result<Json<WeightsInfoResponse>> {
    let request = body.value;
    let reader = reader(&app, tenant, &headers, request.weights_access_token.as_ref())?;
    let path: CheckpointPath = request.tinker_path.parse()?;
    let checkpoint = find(&app, &reader, &path).await?;
    let origin = origin(&app, &reader, &checkpoint).await?;
    Ok(Json(WeightsInfoResponse {
        base_model: origin.base_model,
        is_lora: true,
        lora_rank: Some(origin.lora.rank),
        train_unembed: Some(origin.lora.train_unembed),
        train_mlp: Some(origin.lora.train_mlp),
        train_attn: Some(origin.lora.train_attn),
        optimizer_config: serde_json::from_value(origin.optimizer_config).ok(),
    }))
}

/// `POST copy_weights`. With a key that the SDK repeats, or a place in a session, a repeat finds its copy.
pub(crate) async fn copy_weights(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    body: body::Json<CopyWeightsRequest>,
) -> Result<Json<CopyWeightsResponse>> {
    let request = body.value;
    check::ttl(request.ttl_seconds).map_err(|fault| fault.into_error("invalid_ttl"))?;
    let reader = reader(&app, tenant.clone(), &headers, request.weights_access_token.as_ref())?;
    let path: CheckpointPath = request.source_path.parse()?;
    let source = find(&app, &reader, &path).await?;
    let origin = origin(&app, &reader, &source).await?;
    let (session_id, number, ends_session) = copy_place(&app, &tenant, &headers, &request).await?;
    let ttl = request.ttl_seconds.map(SignedDuration::from_secs);
    let expires_at = ttl.and_then(|ttl| app.clock.now().checked_add(ttl).ok());
    let new = NewCopy {
        run: NewRun {
            session_id: session_id.clone(),
            base_model: origin.base_model,
            base_digest: origin.base_digest,
            lora: origin.lora,
            optimizer_config: origin.optimizer_config,
            user_metadata: serde_json::json!({}),
            kernel_set: origin.kernel_set,
        },
        source: path.to_string(),
        checkpoint: NewCheckpoint {
            model_id: ModelId::of(&session_id, number),
            kind: source.kind,
            name: source.name.clone(),
            blob: source.blob,
            size_bytes: source.size_bytes,
            expires_at,
            user_metadata: source.user_metadata,
            overwrite: false,
        },
        ends_session,
    };
    let place = (&source.model_id, source.kind, new.checkpoint.name.as_str());
    app.store.audit_read((&source.tenant, &tenant), place, "copy").await?;
    let copy = app.store.copy_checkpoint(&tenant, new).await?;
    let tinker_path = checkpoints::path(&copy).to_string();
    tracing::info!(source = %path, copy = tinker_path, "checkpoint copied");
    Ok(Json(CopyWeightsResponse { tinker_path }))
}

/// Whose checkpoints a request may read: its own tenant's, or those that its token stands for.
fn reader(
    app: &App,
    tenant: TenantId,
    headers: &HeaderMap,
    token: Option<&Secret>,
) -> Result<TenantId> {
    let header = headers.get("x-tinker-weights-access-token").and_then(|it| it.to_str().ok());
    match header.or_else(|| token.map(|token| token.0.as_str())) {
        Some(token) => app.tenant_of(Some(token)),
        None => Ok(tenant),
    }
}

/// The session and number of a copy's run, and whether the session is there for it alone.
async fn copy_place(
    app: &Shared,
    tenant: &TenantId,
    headers: &HeaderMap,
    request: &CopyWeightsRequest,
) -> Result<(SessionId, i64, bool)> {
    match (&request.session_id, request.model_seq_id, &request.destination_project_id) {
        (Some(session_id), Some(number), None) => {
            training::live_session(app, tenant, session_id).await?;
            check_model_number(number)?;
            Ok((session_id.clone(), number, false))
        }
        (None, None, project_id) => {
            check::small(&app.config, "destination_project_id", project_id)?;
            let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
            // With the same key, another source is another request. Clients take texts alone as metadata.
            let mut user_metadata = serde_json::json!({"copied_from": request.source_path});
            if let Some(ttl_seconds) = request.ttl_seconds {
                user_metadata["ttl_seconds"] = ttl_seconds.to_string().into();
            }
            let new = NewSession {
                tags: vec!["copy_weights".to_owned()],
                user_metadata,
                sdk_version: header("x-sdk-version").unwrap_or_default().to_owned(),
                project_id: project_id.clone(),
                display_name: None,
            };
            let key = header("x-idempotency-key");
            Ok((app.store.create_session(tenant, new, key).await?.id, 0, true))
        }
        _ => {
            let detail = "wants either session_id and model_seq_id, or destination_project_id";
            Err(Error::invalid("invalid_copy", detail))
        }
    }
}

/// What a checkpoint's weights belong on.
pub(crate) struct Origin {
    pub(crate) base_model: String,
    pub(crate) base_digest: String,
    pub(crate) lora: LoraRecord,
    pub(crate) optimizer_config: serde_json::Value,
    pub(crate) kernel_set: String,
}

/// A checkpoint of the tenant's own, or a public one.
pub(crate) async fn find(
    app: &Shared,
    tenant: &TenantId,
    path: &CheckpointPath,
) -> Result<CheckpointRecord> {
    let kind = checkpoints::kind(path.kind);
    Ok(app.store.checkpoint(tenant, &path.run, kind, &path.name).await?)
}

/// Where a checkpoint's weights come from: its run says so to its owner, its manifest to others.
pub(crate) async fn origin(
    app: &Shared,
    tenant: &TenantId,
    checkpoint: &CheckpointRecord,
) -> Result<Origin> {
    if checkpoint.tenant == *tenant {
        let run = app.store.run(tenant, &checkpoint.model_id).await?;
        return Ok(Origin {
            base_model: run.base_model,
            base_digest: run.base_digest,
            lora: run.lora,
            optimizer_config: run.optimizer_config,
            kernel_set: run.kernel_set,
        });
    }
    let (manifest, _files) = app.store.blob(&checkpoint.blob).await?;
    Ok(Origin {
        base_model: manifest.base_model,
        base_digest: manifest.base_digest,
        lora: manifest.lora,
        optimizer_config: manifest.optimizer_config,
        kernel_set: manifest.kernel_set,
    })
}

async fn load_into_new(
    app: &Shared,
    tenant: &TenantId,
    request: LoadWeightsRequest,
    session_id: SessionId,
    model_seq_id: i64,
) -> Result<Admission> {
    training::live_session(app, tenant, &session_id).await?;
    check_model_number(model_seq_id)?;
    check_load(&request).map_err(|fault| fault.into_error("invalid_load"))?;
    let path: CheckpointPath = request.path.parse()?;
    let reader = request.read_as.as_ref().unwrap_or(tenant);
    let checkpoint = find(app, reader, &path).await?;
    let origin = origin(app, reader, &checkpoint).await?;
    let base_model = request.base_model.clone().unwrap_or_else(|| origin.base_model.clone());
    let model = match &request.base_model {
        Some(name) => app.catalog.by_name(name)?,
        None => app.catalog.by_origin(&origin.base_model, &origin.base_digest)?,
    };
    if model.base_digest != origin.base_digest {
        let detail = format!(
            "base_model {base_model:?} has other weights than {:?}, which {path} was trained on",
            origin.base_model
        );
        return Err(Error::invalid("base_model_mismatch", detail));
    }
    let asked_for = request.optimizer_config.as_ref().map(training::optimizer).transpose()?;
    let optimizer_config = match asked_for {
        Some(config) if !request.optimizer => config,
        // Its state comes from the checkpoint.
        Some(_) | None => origin.optimizer_config,
    };
    let creates = NewRun {
        session_id: session_id.clone(),
        base_model,
        base_digest: origin.base_digest,
        lora: origin.lora,
        optimizer_config,
        user_metadata: check::metadata(&app.config, request.user_metadata.clone())?,
        kernel_set: model.kernel_set.clone(),
    };
    let model_id = ModelId::of(&session_id, model_seq_id);
    let request = QueuedRequest::LoadWeights(request);
    Ok(Admission {
        creates: Some(creates),
        ..Admission::new(model_id, Some(SeqId(0)), &request, None)
    })
}

/// Refuses a number that names no run of a session.
pub(crate) fn check_model_number(model_seq_id: i64) -> Result<()> {
    if model_seq_id >= 0 {
        return Ok(());
    }
    Err(Error::invalid("invalid_model_seq_id", "model_seq_id must not be negative"))
}

/// The checkpoint may be one that is still to be saved by a request before this one, so that it is
/// looked for when the request's turn comes.
fn load_into_existing(
    request: LoadWeightsRequest,
    model_id: ModelId,
    seq_id: Option<SeqId>,
) -> Admission {
    let fault = check_load(&request).err();
    Admission::new(model_id, seq_id, &QueuedRequest::LoadWeights(request), fault)
}

fn check_save(app: &Shared, request: &SaveWeightsRequest) -> Result<(), Fault> {
    check::checkpoint_name(request.path.as_deref().unwrap_or_default())?;
    check::ttl(request.ttl_seconds)?;
    check_notes(app, request.user_metadata.as_ref())
}

fn check_save_external(request: &SaveWeightsExternalRequest) -> Result<(), Fault> {
    check::checkpoint_name(request.path.as_deref().unwrap_or_default())?;
    check::ttl(request.ttl_seconds)?;
    let Some(recipients) = &request.age_encryption_recipients else { return Ok(()) };
    let parsed = Recipients::parse(recipients);
    parsed.map(|_| ()).map_err(|error| match error {
        tinsmith_seal::Error::Recipient { index, problem } => {
            Fault(format!("age_encryption_recipients[{index}]: {problem}"))
        }
        tinsmith_seal::Error::List { problem } | tinsmith_seal::Error::Encrypt { problem } => {
            Fault(format!("age_encryption_recipients: {problem}"))
        }
    })
}

/// A name for a checkpoint that was given none, made up from what a retry repeats.
fn made_up_name(app: &App, seq_id: Option<SeqId>) -> String {
    match seq_id {
        Some(seq_id) => format!("seq-{seq_id}"),
        None => format!("at-{}", app.clock.now().as_millisecond()),
    }
}

fn check_save_for_sampler(
    app: &Shared,
    request: &SaveWeightsForSamplerRequest,
) -> Result<(), Fault> {
    ensure(request.kind == SamplerKind::Snapshot || request.path.is_none(), || {
        "kind \"inflight\" has no path: what is saved under a name does not move; leave out one of the two"
            .to_owned()
    })?;
    match (&request.path, request.sampling_session_seq_id) {
        (Some(name), _) => check::checkpoint_name(name)?,
        (None, Some(number)) => {
            ensure(number >= 0, || "sampling_session_seq_id must not be negative".to_owned())?;
        }
        (None, None) => {
            return Err(Fault(
                "wants either path, to save under that name, or sampling_session_seq_id".to_owned(),
            ));
        }
    }
    check::ttl(request.ttl_seconds)?;
    check_notes(app, request.user_metadata.as_ref())
}

fn check_notes(app: &Shared, notes: Option<&Metadata>) -> Result<(), Fault> {
    let Some(notes) = notes else { return Ok(()) };
    for (key, value) in notes {
        ensure(value.is_string(), || format!("user_metadata.{key} is not a string"))?;
    }
    check::small(&app.config, "user_metadata", notes).map_err(|error| Fault(error.to_string()))
}

fn check_load(request: &LoadWeightsRequest) -> Result<(), Fault> {
    let path: CheckpointPath =
        request.path.parse().map_err(|error| Fault(format!("failed to {error}")))?;
    ensure(path.kind == CheckpointKind::Weights, || {
        format!("{path} holds no weights to train from; those are saved by save_weights")
    })
}
