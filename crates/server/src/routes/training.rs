//! Requests that make and change a run, in its order.

use axum::{
    Json,
    extract::State,
    http::HeaderValue,
    response::{IntoResponse, Response},
};
use prost::Message;
use tinsmith_store::{LoraRecord, NewRun, RequestKind};
use tinsmith_types::{
    futures::UntypedFuture,
    ids::{ModelId, SeqId, SessionId, TenantId},
    proto,
    queued::QueuedRequest,
    training::{
        AdamParams, CreateModelRequest, ForwardBackwardRequest, ForwardRequest, LoraConfig,
        OptimStepRequest, OptimizerConfig, UnloadModelRequest,
    },
};

use crate::{
    body::{self, Plain, off_thread},
    check::{self, Fault, custom_loss, datums, ensure, provenance},
    error::{Error, Result},
    id,
    ordered::{self, Place, live_run_at},
    parts,
    routes::weights,
    state::{Shared, Tenant},
    submit::{Admission, digest, live_run, submit},
};

/// `POST create_model`. It has nothing before it in its run, so that what is wrong is a 400.
pub(crate) async fn create_model(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<CreateModelRequest>,
) -> Result<Json<UntypedFuture>> {
    let mut request = body.value;
    let session_id = request.session_id.clone();
    live_session(&app, &tenant, &session_id).await?;
    weights::check_model_number(request.model_seq_id)?;
    let model = app.catalog.by_name(&request.base_model)?;
    if !model.trainable {
        let detail = format!("base_model {:?} is not offered for training", request.base_model);
        return Err(Error::invalid("not_trainable", detail));
    }
    check_lora(&app, &request.lora_config)?;
    // A retry has no seed either: what is drawn is no part of what it must repeat.
    let digest = digest(&QueuedRequest::CreateModel(request.clone()));
    let seed = *request.lora_config.seed.get_or_insert_with(id::draw_seed);
    let creates = NewRun {
        session_id: session_id.clone(),
        base_model: request.base_model.clone(),
        base_digest: model.base_digest.clone(),
        lora: LoraRecord {
            rank: request.lora_config.rank,
            seed,
            train_attn: request.lora_config.train_attn,
            train_mlp: request.lora_config.train_mlp,
            train_unembed: request.lora_config.train_unembed,
        },
        optimizer_config: optimizer(&request.optimizer_config)?,
        user_metadata: check::metadata(&app.config, request.user_metadata.clone())?,
        kernel_set: model.kernel_set.clone(),
    };
    let model_id = ModelId::of(&session_id, request.model_seq_id);
    let request = QueuedRequest::CreateModel(request);
    let admission = Admission {
        digest,
        creates: Some(creates),
        ..Admission::new(model_id, Some(SeqId(0)), &request, None)
    };
    submit(&app, &tenant, admission).await
}

/// `POST forward_backward`, in protobuf (with `forward_only` a forward) or JSON.
pub(crate) async fn forward_backward(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: Result<Plain>,
) -> Result<Response> {
    let kind = RequestKind::ForwardBackward;
    let body = match body {
        Ok(body) => body,
        Err(error) => {
            let place = error.head().and_then(Place::in_protobuf);
            return Err(ordered::refuse(&app, &tenant, kind, place, error).await);
        }
    };
    match decode(&app, &body).await {
        Ok(request) => submit_batch(&app, &tenant, request).await,
        Err(error) => {
            let place = if body.is_protobuf {
                Place::in_protobuf(&body.bytes)
            } else {
                Place::in_json(&body.bytes)
            };
            Err(ordered::refuse(&app, &tenant, kind, place, error).await)
        }
    }
}

/// `POST forward` (SDKs up to 0.24), in JSON.
pub(crate) async fn forward(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: ordered::Json<ForwardRequest>,
) -> Result<Response> {
    let request = body.value;
    let place = Place { model_id: request.model_id.clone(), seq_id: request.seq_id };
    match request.try_into() {
        Ok(request) => submit_batch(&app, &tenant, request).await,
        Err(error) => {
            let error = tinsmith_types::Error::into(error);
            Err(ordered::refuse(&app, &tenant, RequestKind::Forward, Some(place), error).await)
        }
    }
}

/// `POST optim_step`.
pub(crate) async fn optim_step(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: ordered::Json<OptimStepRequest>,
) -> Result<Json<UntypedFuture>> {
    let request = body.value;
    let (model_id, seq_id) = (request.model_id.clone(), request.seq_id);
    let place = Place { model_id: model_id.clone(), seq_id };
    live_run_at(&app, &tenant, RequestKind::OptimStep, place).await?;
    let fault = check_step(&request).err();
    let request = QueuedRequest::OptimStep(request);
    submit(&app, &tenant, Admission::new(model_id, seq_id, &request, fault)).await
}

/// `POST unload_model`. It has no number: it comes after all that were sent before it.
pub(crate) async fn unload_model(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    body: body::Json<UnloadModelRequest>,
) -> Result<Json<UntypedFuture>> {
    let model_id = body.value.model_id.clone();
    live_run(&app, &tenant, &model_id).await?;
    let request = QueuedRequest::UnloadModel(body.value);
    submit(&app, &tenant, Admission::new(model_id, None, &request, None)).await
}

/// Refuses a session that is unknown or has ended; counts as its life sign.
pub(crate) async fn live_session(
    app: &Shared,
    tenant: &TenantId,
    session: &SessionId,
) -> Result<()> {
    Ok(app.store.heartbeat(tenant, session).await?)
}

/// The configuration of an optimizer that this server has, as it is stored.
pub(crate) fn optimizer(config: &OptimizerConfig) -> Result<serde_json::Value> {
    if let Some(other) = config.0.get("type").filter(|kind| !kind.is_string()) {
        let detail = format!("optimizer_config.type is {other}, not a text");
        return Err(Error::invalid("unsupported_optimizer", detail));
    }
    let kind = config.kind();
    if kind != "adamw" {
        let why = if kind == "dimuon" { ": its algorithm is not published" } else { "" };
        let detail = format!("optimizer_config.type {kind:?} is not supported{why}; known: adamw");
        return Err(Error::invalid("unsupported_optimizer", detail));
    }
    if let Some(key) = config.0.keys().find(|key| *key != "type") {
        let detail = format!("optimizer_config.{key} is no setting of adamw");
        return Err(Error::invalid("unsupported_optimizer", detail));
    }
    Ok(serde_json::json!({"type": "adamw"}))
}

/// Fields and extents in a datum's protobuf form, all inputs and provenance included, with room to spare.
const PARTS_PER_DATUM: usize = 64;

async fn decode(app: &Shared, body: &Plain) -> Result<proto::ForwardBackwardRequest> {
    let bytes = body.bytes.clone();
    if !body.is_protobuf {
        let request: ForwardBackwardRequest =
            body::json(app, "/api/v1/forward_backward", bytes).await?;
        return Ok(request.try_into()?);
    }
    let parts_max = app.config.datums_max.saturating_mul(PARTS_PER_DATUM);
    off_thread(bytes.len(), move || {
        parts::check(&bytes, parts_max)?;
        Ok(proto::ForwardBackwardRequest::decode(bytes).map_err(tinsmith_types::Error::from)?)
    })
    .await?
}

async fn submit_batch(
    app: &Shared,
    tenant: &TenantId,
    request: proto::ForwardBackwardRequest,
) -> Result<Response> {
    let model_id = ModelId(request.model_id.clone());
    let place = Place { model_id: model_id.clone(), seq_id: request.order() };
    let kind =
        if request.forward_only { RequestKind::Forward } else { RequestKind::ForwardBackward };
    let (run, model) = live_run_at(app, tenant, kind, place).await?;
    let custom = custom_loss::find(app, tenant, &run, &request).await?;
    let limits = datums::Limits {
        vocab_size: model.vocab_size,
        context: model.training_context,
        datums_max: app.config.datums_max,
        tokens_max: app.config.datum_tokens_max,
        cells_max: app.config.datum_cells_max,
    };
    let size = request.encoded_len();
    if request.loss_fn == provenance::LOSS {
        return submit_with_provenance(app, tenant, (limits, size), request).await;
    }
    let admission = off_thread(size, move || {
        let seq_id = request.order();
        let (custom, fault) = match custom {
            Ok(custom) => {
                let inputs = custom.as_ref().map(|custom| &custom.inputs[..]);
                let fault = datums::batch(&limits, inputs, &request).err();
                (custom, fault)
            }
            Err(fault) => (None, Some(fault)),
        };
        let sent = QueuedRequest::from_proto(request);
        let mut admission = Admission::new(model_id, seq_id, &sent, fault);
        if let Some(custom) = custom {
            admission.body = custom.put_into(sent).encode();
        }
        admission
    });
    Ok(submit(app, tenant, admission.await?).await?.into_response())
}

/// Tells users of the loss whose formula it is; the SDK logs it.
const LOSS_NOTE: &str =
    "stable_reinforce: the formula is this server's own (docs/losses.md), as none is published";

/// Submits what is to be trained against the recorded logprobs: they are written down with it, so that it is
/// the same whenever it runs.
async fn submit_with_provenance(
    app: &Shared,
    tenant: &TenantId,
    (limits, size): (datums::Limits, usize),
    mut request: proto::ForwardBackwardRequest,
) -> Result<Response> {
    let (model_id, seq_id) = (ModelId(request.model_id.clone()), request.order());
    // A retry repeats what the client sent, not what is looked up for it. Copies share their arrays.
    let sent = request.clone();
    let (digest, fault) = off_thread(size, move || {
        let fault = datums::batch(&limits, None, &sent).err();
        (digest(&QueuedRequest::from_proto(sent)), fault)
    })
    .await?;
    let fault = match fault {
        Some(fault) => Some(fault),
        None => provenance::look_up(app, tenant, &mut request).await?.err(),
    };
    let admission = off_thread(size, move || {
        let request = QueuedRequest::from_proto(request);
        Admission { digest, ..Admission::new(model_id, seq_id, &request, fault) }
    });
    let mut response = submit(app, tenant, admission.await?).await?.into_response();
    let headers = response.headers_mut();
    headers.insert("x-deprecation-note", HeaderValue::from_static(LOSS_NOTE));
    headers.insert("x-deprecation-level", HeaderValue::from_static("warning"));
    Ok(response)
}

fn check_lora(app: &Shared, lora: &LoraConfig) -> Result<()> {
    let invalid = |detail: &str| Err(Error::invalid("invalid_lora_config", detail));
    if lora.rank == 0 {
        return invalid("lora_config.rank must be positive");
    }
    let rank_max = app.config.lora_rank_max;
    if lora.rank > rank_max {
        return invalid(&format!("lora_config.rank must be at most {rank_max}"));
    }
    if !(lora.train_unembed || lora.train_mlp || lora.train_attn) {
        return invalid("At least one of train_unembed, train_mlp, or train_attn must be True");
    }
    Ok(())
}

fn check_step(request: &OptimStepRequest) -> Result<(), Fault> {
    match (&request.adam_params, &request.optimizer_params) {
        (Some(params), None) => check_adam(params),
        (None, Some(params)) => {
            let kind = params.get("type").map_or_else(|| "none".to_owned(), ToString::to_string);
            Err(Fault(format!(
                "optimizer_params.type is {kind}, and the run's optimizer is adamw: send adam_params"
            )))
        }
        (None, None) => Err(Fault("adam_params is missing".to_owned())),
        (Some(_), Some(_)) => {
            Err(Fault("adam_params and optimizer_params exclude each other".to_owned()))
        }
    }
}

fn check_adam(params: &AdamParams) -> Result<(), Fault> {
    let rate = |value: f64| check::rounded(value).is_finite() && value >= 0.0;
    let beta = |value: f64| (0.0..1.0).contains(&check::rounded(value));
    // Zero would divide nothing by nothing where a gradient has always been zero.
    let eps = check::rounded(params.eps).is_finite() && check::rounded(params.eps) > 0.0;
    let clip = check::rounded(params.grad_clip_norm).is_finite();
    let checks = [
        (
            "learning_rate",
            params.learning_rate,
            rate(params.learning_rate),
            "finite and at least 0",
        ),
        ("beta1", params.beta1, beta(params.beta1), "at least 0 and below 1"),
        ("beta2", params.beta2, beta(params.beta2), "at least 0 and below 1"),
        ("eps", params.eps, eps, "finite and above 0"),
        ("weight_decay", params.weight_decay, rate(params.weight_decay), "finite and at least 0"),
        ("grad_clip_norm", params.grad_clip_norm, clip, "finite"),
    ];
    for (name, value, ok, range) in checks {
        ensure(ok, || format!("adam_params.{name} is {value}; it must be {range}"))?;
    }
    Ok(())
}
