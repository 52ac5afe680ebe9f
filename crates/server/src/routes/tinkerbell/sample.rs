//! Samples without a sampling session: from a run as it is, a checkpoint, or a base model.
//!
//! Clients do not send such a sample again after a restart. It is therefore kept, and drawn again with the same
//! seed, by a task of its own that begins with the submission or with the first poll after a restart.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{handler::Handler, response::Response};
use bytes::Bytes;
use serde_json::{Value, json};
use tinsmith_store::{
    Category, Error as StoreError, Failure, KeptSampler, NewSample, Outcome, Retrieved, Store,
};
use tinsmith_tokenizer::{Chat, Tokenizer};
use tinsmith_types::{
    futures::UntypedFuture,
    ids::{ModelId, RequestId, SamplingSessionId, TenantId},
    model_input::{Chunk, ModelInput},
    queued::QueuedRequest,
    sampling::{CreateSamplingSessionRequest, SampleRequest as Official, SamplingParams},
    tinkerbell::{Prompt, SampleRequest},
    weights::{SamplerKind, SaveWeightsForSamplerRequest},
};
use tokio::sync::watch;

use super::{
    Call,
    answer::Found,
    chat,
    official::{self, Submitted},
};
use crate::{
    body::{Plain, off_thread},
    catalog::ModelEntry,
    check,
    error::{Error, Result, short},
    id,
    routes::{futures, sampling, weights},
    state::Shared,
    submit::digest,
};

/// How long one wait for the store takes; there is always another.
const WAIT: Duration = Duration::from_secs(60);
/// How long a full queue is left alone.
const FULL_WAIT: Duration = Duration::from_millis(500);

/// The samples that are being drawn; who waits for one is woken when its sender goes.
#[derive(Debug, Default)]
pub(crate) struct Drawing(Mutex<HashMap<RequestId, watch::Sender<()>>>);

/// Whether an id is one of these samples'.
pub(super) fn is_kept(id: &RequestId) -> bool {
    id.0.starts_with("kept-")
}

/// Keeps a sample and begins to draw it.
pub(super) async fn submit(call: &Call, body: &Plain) -> Result<Submitted> {
    let request: SampleRequest = official::read(call, body).await?;
    let source = Source::of(call, &request).await?;
    let sample = prepared(call, source.model(call)?, &request).await?;
    let store = &call.app.store;
    let mut reused = store.kept_sampler(&call.tenant, &source.name()).await?;
    loop {
        let is_new = reused.is_none();
        let sampler = match reused.take() {
            Some(sampler) => sampler,
            None => match source.sampler(call).await? {
                Ok(sampler) => sampler,
                Err(refusal) => return Ok(Submitted::Response(refusal)),
            },
        };
        let sample =
            Official { sampling_session_id: Some(sampler.sampler.clone()), ..sample.clone() };
        let body = QueuedRequest::Sample(sample).encode();
        match store.keep_sample(&call.tenant, sampler, body).await {
            // It went away since it was found.
            Err(StoreError::NotFound { .. }) if !is_new => {}
            Err(error) => return Err(error.into()),
            Ok(request_id) => {
                drop(drawn(&call.app, &call.tenant, &request_id));
                let model_id = Some(source.model_id());
                return Ok(Submitted::Future(UntypedFuture {
                    request_id,
                    model_id,
                    sample_sequence_ids: None,
                }));
            }
        }
    }
}

/// How a kept sample stands, after waiting for its end for at most `wait`.
pub(super) async fn look(
    app: &Shared,
    tenant: &TenantId,
    id: &RequestId,
    wait: Duration,
) -> Result<Found> {
    if let Some(found) = standing(app, tenant, id).await? {
        return Ok(found);
    }
    let mut done = drawn(app, tenant, id);
    if wait.is_zero() || tokio::time::timeout(wait, done.changed()).await.is_err() {
        return Ok(Found::Pending);
    }
    // Told without an end where the store has failed: whoever asks again tries again.
    Ok(standing(app, tenant, id).await?.unwrap_or(Found::Pending))
}

/// How a kept sample ended, if it did.
async fn standing(app: &Shared, tenant: &TenantId, id: &RequestId) -> Result<Option<Found>> {
    let kept = app.store.kept_sample(tenant, id).await?;
    Ok(kept.outcome.map(|outcome| match outcome {
        Outcome::Done(result) => Found::Done(result),
        Outcome::Failed(failure) => Found::Failed(failure),
    }))
}

/// What is sampled from.
enum Source {
    Run { model_id: ModelId, name: String, base_digest: String },
    Checkpoint { path: String, blob: String, base_model: String, base_digest: String },
    Base { name: String, base_digest: String },
}

impl Source {
    async fn of(call: &Call, request: &SampleRequest) -> Result<Self> {
        match (&request.model_id, &request.model_path, &request.base_model) {
            (Some(model_id), None, None) => {
                let (run, _) = official::own_run(call, model_id).await?;
                let model_id = model_id.clone();
                Ok(Self::Run { model_id, name: run.base_model, base_digest: run.base_digest })
            }
            (None, Some(path), None) => {
                let parsed = path.parse().map_err(Error::from)?;
                let checkpoint = weights::find(&call.app, &call.tenant, &parsed).await?;
                let origin = weights::origin(&call.app, &call.tenant, &checkpoint).await?;
                Ok(Self::Checkpoint {
                    path: path.clone(),
                    blob: checkpoint.blob.0,
                    base_model: origin.base_model,
                    base_digest: origin.base_digest,
                })
            }
            (None, None, name) => {
                let name = name.as_deref().unwrap_or(official::BASE);
                let model = call.app.catalog.by_name(name)?;
                Ok(Self::Base { name: name.to_owned(), base_digest: model.base_digest.clone() })
            }
            _ => {
                let detail = "wants one of model_id, model_path and base_model";
                Err(Error::invalid("invalid_sample", detail))
            }
        }
    }

    fn model<'a>(&self, call: &'a Call) -> Result<&'a ModelEntry> {
        match self {
            Self::Run { name, base_digest, .. }
            | Self::Checkpoint { base_model: name, base_digest, .. }
            | Self::Base { name, base_digest } => call.app.catalog.by_origin(name, base_digest),
        }
    }

    /// What clients know it by.
    fn model_id(&self) -> ModelId {
        match self {
            Self::Run { model_id, .. } => model_id.clone(),
            Self::Checkpoint { path, .. } => ModelId(path.clone()),
            Self::Base { name, .. } => ModelId(name.clone()),
        }
    }

    /// What the store knows its samplers by.
    fn name(&self) -> String {
        match self {
            Self::Run { model_id, .. } => format!("run {model_id}"),
            Self::Checkpoint { path, blob, .. } => format!("checkpoint {path} {blob}"),
            Self::Base { name, base_digest } => format!("base {name} {base_digest}"),
        }
    }

    /// A new sampler, or one that the run will make at its turn; or the official handler's refusal.
    async fn sampler(&self, call: &Call) -> Result<Result<KeptSampler, Response>> {
        let (session_id, number) = call.app.store.lasting_number(&call.tenant).await?;
        let sampler = SamplingSessionId::of(&session_id, number);
        let kept = |saved_by| KeptSampler { sampler, source: self.name(), saved_by };
        let (base_model, model_path) = match self {
            Self::Run { model_id, .. } => {
                let save = SaveWeightsForSamplerRequest {
                    model_id: model_id.clone(),
                    seq_id: None,
                    path: None,
                    sampling_session_seq_id: Some(number),
                    kind: SamplerKind::Snapshot,
                    ttl_seconds: None,
                    user_metadata: None,
                };
                let request = call.json(&save)?;
                let app = call.app.clone();
                let response = weights::save_weights_for_sampler.call(request, app).await;
                let saved = official::future(response).await;
                return Ok(saved.map(|saved| kept(Some((model_id.clone(), saved.request_id)))));
            }
            Self::Checkpoint { path, .. } => (None, Some(path.clone())),
            Self::Base { name, .. } => (Some(name.clone()), None),
        };
        let create = CreateSamplingSessionRequest {
            session_id,
            sampling_session_seq_id: number,
            base_model,
            model_path,
        };
        let request = call.json(&create)?;
        let response = sampling::create_session.call(request, call.app.clone()).await;
        let is_made = response.status() == axum::http::StatusCode::OK;
        Ok(if is_made { Ok(kept(None)) } else { Err(response) })
    }
}

/// The official request, checked, but for its sampler.
async fn prepared(call: &Call, model: &ModelEntry, request: &SampleRequest) -> Result<Official> {
    let prompt = prompt(call, model, request).await?;
    let mut params: SamplingParams = request.sampling_params.clone().unwrap_or_default();
    params.max_tokens = request.max_tokens.or(params.max_tokens);
    params.temperature = request.temperature.unwrap_or(params.temperature);
    params.top_p = request.top_p.unwrap_or(params.top_p);
    params.top_k = request.top_k.unwrap_or(params.top_k);
    params.stop = request.stop.clone().or(params.stop);
    params.seed = Some(request.seed.or(params.seed).unwrap_or_else(id::draw_seed));
    let sample = Official {
        sampling_session_id: None,
        seq_id: None,
        base_model: None,
        model_path: None,
        num_samples: request.num_samples.unwrap_or(1),
        prompt,
        sampling_params: params,
        prompt_logprobs: false,
        topk_prompt_logprobs: 0,
        topk_sample_logprobs: 0,
        target_prompt_logprobs: None,
        prompt_alt_tokens_k: 0,
        prompt_logprobs_last_n: None,
        record_stability_info: false,
    };
    check::sample::sample(&sampling::limits(&call.app, model), &sample)?;
    Ok(sample)
}

async fn prompt(call: &Call, model: &ModelEntry, request: &SampleRequest) -> Result<ModelInput> {
    let of_tokens = |tokens| ModelInput { chunks: vec![Chunk::EncodedText { tokens }] };
    let tokenizer = || model.tokenizer.clone().ok_or_else(chat::no_tokenizer);
    let failed = |error: tinsmith_tokenizer::Error| {
        Error::invalid("invalid_prompt", format!("failed to {error}"))
    };
    let tokens = match (&request.prompt, &request.messages) {
        (Some(Prompt::Chunks(input)), None) => return Ok(input.clone()),
        (Some(Prompt::Tokens(tokens)), None) => return Ok(of_tokens(tokens.clone())),
        (Some(Prompt::Text(text)), None) => {
            let (tokenizer, text) = (tokenizer()?, text.clone());
            off_thread(text.len(), move || tokenizer.encode(&text, true)).await?.map_err(failed)?
        }
        (None, Some(messages)) => {
            let tokenizer = tokenizer()?;
            let messages_max = call.app.config.chat_messages_max;
            let messages = chat::checked(messages_max, "messages", messages)?;
            let chat = Chat::new(&messages, true);
            off_thread(usize::MAX, move || tokenizer.encode_chat(&chat)).await?.map_err(failed)?
        }
        (None, None) | (Some(_), Some(_)) => {
            let detail = "wants either prompt (a text, or tokens) or messages (a chat to answer)";
            return Err(Error::invalid("invalid_prompt", detail));
        }
    };
    let signed = tokens.into_iter().map(|token| i32::try_from(token).unwrap_or(i32::MAX));
    Ok(of_tokens(signed.collect()))
}

/// Has a sample drawn, if nobody does it yet. Tells when that has ended.
fn drawn(app: &Shared, tenant: &TenantId, id: &RequestId) -> watch::Receiver<()> {
    let mut drawing = app.drawing.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(done) = drawing.get(id) {
        return done.subscribe();
    }
    let (done, told) = watch::channel(());
    drawing.insert(id.clone(), done);
    let (app, tenant, id) = (Arc::clone(app), tenant.clone(), id.clone());
    tokio::spawn(async move {
        if let Err(error) = draw(&app, &tenant, &id).await {
            tracing::warn!(queued.id = %id, %error, "a sample could not be drawn");
            let message = short(&error.to_string()).into_owned();
            let failure = Failure { category: Category::Server, message };
            // Where the store has failed, this does too, and the next poll tries again.
            drop(app.store.finish_kept_sample(&tenant, &id, Outcome::Failed(failure)).await);
        }
        app.drawing.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    });
    told
}

async fn draw(app: &Shared, tenant: &TenantId, id: &RequestId) -> Result<()> {
    let store = &app.store;
    let kept = store.kept_sample(tenant, id).await?;
    if kept.outcome.is_some() {
        return Ok(());
    }
    if let Some((_, saved_by)) = &kept.sampler.saved_by
        && let Err(failure) = ended(store, tenant, saved_by).await?
    {
        return Ok(store.finish_kept_sample(tenant, id, Outcome::Failed(failure)).await?);
    }
    let sampler = kept.sampler.sampler;
    let outcome = loop {
        let QueuedRequest::Sample(request) = QueuedRequest::decode("sample", &kept.body)? else {
            return Err(Error::Internal { detail: format!("{id} is no sample") });
        };
        let new = NewSample {
            sampling_session_id: sampler.clone(),
            seq_id: None,
            digest: digest(&QueuedRequest::Sample(request)),
            body: kept.body.clone(),
            refused: None,
        };
        let submitted = match store.submit_sample(tenant, new).await {
            Err(StoreError::Full) => {
                tokio::time::sleep(FULL_WAIT).await;
                continue;
            }
            submitted => submitted?,
        };
        match ended(store, tenant, &submitted.request_id).await? {
            // Made room for others before it was fetched: the same seed draws the same again.
            Ok(None) => {}
            Ok(Some(result)) => {
                break Outcome::Done(with_texts(app, tenant, &sampler, result).await?);
            }
            Err(failure) => break Outcome::Failed(failure),
        }
    };
    Ok(store.finish_kept_sample(tenant, id, outcome).await?)
}

/// Waits for the end of a request: its result in JSON, nothing where that is not kept any more, or why it failed.
async fn ended(
    store: &Store,
    tenant: &TenantId,
    id: &RequestId,
) -> Result<Result<Option<Bytes>, Failure>> {
    loop {
        match store.retrieve(tenant, id, WAIT).await? {
            Retrieved::Pending(_) => {}
            Retrieved::Gone => return Ok(Ok(None)),
            Retrieved::Finished { outcome: Outcome::Failed(failure), .. } => {
                return Ok(Err(failure));
            }
            Retrieved::Finished { kind, outcome: Outcome::Done(result) } => {
                let bytes = result.len().saturating_mul(4);
                let json = off_thread(bytes, move || futures::in_json(kind, result)).await??;
                return Ok(Ok(Some(json)));
            }
        }
    }
}

/// The official result, and what the sequences say.
async fn with_texts(
    app: &Shared,
    tenant: &TenantId,
    sampler: &SamplingSessionId,
    result: Bytes,
) -> Result<Bytes> {
    let session = app.store.sampling_session(tenant, sampler).await?;
    let model = app.catalog.by_origin(&session.base_model, &session.base_digest)?;
    let Some(tokenizer) = model.tokenizer.clone() else { return Ok(result) };
    off_thread(result.len(), move || texts(&tokenizer, &result)).await?
}

fn texts(tokenizer: &Tokenizer, result: &[u8]) -> Result<Bytes> {
    let unreadable = |error: serde_json::Error| Error::Internal {
        detail: format!("a sample's result cannot be read: {error}"),
    };
    let mut result: Value = serde_json::from_slice(result).map_err(unreadable)?;
    let mut first = None;
    for sequence in result["sequences"].as_array_mut().into_iter().flatten() {
        let tokens = sequence["tokens"].as_array().into_iter().flatten();
        let tokens: Vec<u32> = tokens
            .filter_map(|token| token.as_u64().and_then(|token| u32::try_from(token).ok()))
            .collect();
        let text = tokenizer
            .decode_plain(&tokens)
            .map_err(|error| Error::Internal { detail: format!("failed to {error}") })?;
        first.get_or_insert_with(|| text.clone());
        sequence["text"] = json!(text);
    }
    result["text"] = json!(first);
    Ok(serde_json::to_vec(&result).map_err(unreadable)?.into())
}
