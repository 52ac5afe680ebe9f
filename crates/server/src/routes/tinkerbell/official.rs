//! This dialect's bodies as official ones, handed to the official handlers.

use axum::{handler::Handler, http::StatusCode, response::Response};
use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinsmith_store::RunRecord;
use tinsmith_types::{
    futures::UntypedFuture,
    ids::ModelId,
    json::Request,
    tinkerbell::{AddLoraRequest, StepRequest, TrainRequest},
    training::{CreateModelRequest, LoraConfig, OptimStepRequest, UnloadModelRequest},
};

use super::{Call, Operation, chat, sample};
use crate::{
    body::{self, Plain},
    catalog::ModelEntry,
    error::{Error, Result},
    routes::{training, weights},
    submit::live_run,
};

/// What the server's first model is called.
pub(super) const BASE: &str = "base";
/// Adapters are scaled by this over their rank, as on the hosted service.
const ALPHA: f64 = 32.0;
/// Bytes of an official answer to a submission.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What became of a submission.
pub(super) enum Submitted {
    /// The official handler answered.
    Response(Response),
    /// It was taken up here.
    Future(UntypedFuture),
}

impl Submitted {
    /// The future, or the refusal.
    pub(super) async fn future(self) -> Result<UntypedFuture, Response> {
        match self {
            Self::Response(response) => future(response).await,
            Self::Future(future) => Ok(future),
        }
    }
}

/// What is submitted, with what the client should know of it.
type Warned = (Submitted, Vec<String>);

/// The future in an official answer, or the answer itself where it is a refusal.
pub(super) async fn future(response: Response) -> Result<UntypedFuture, Response> {
    if response.status() != StatusCode::OK {
        return Err(response);
    }
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, ANSWER_BYTES_MAX).await.unwrap_or_default();
    serde_json::from_slice(&bytes)
        .map_err(|_| Response::from_parts(parts, axum::body::Body::from(bytes)))
}

/// Submits a body of this dialect.
pub(super) async fn submit(call: &Call, operation: Operation, body: &Plain) -> Result<Warned> {
    let app = call.app.clone();
    let response = match operation {
        Operation::Forward => return train(call, body, true).await,
        Operation::ForwardBackward => return train(call, body, false).await,
        Operation::Sample => {
            return Ok((sample::submit(call, body).await?, Vec::new()));
        }
        Operation::OptimStep => optim_step(call, body).await?,
        Operation::AddLora => add_lora(call, body).await?,
        Operation::RemoveLora => remove_lora(call, body).await?,
        Operation::LoadWeights => {
            weights::load_weights.call(with_name(call, body, false).await?, app).await
        }
        Operation::SaveWeights => {
            weights::save_weights.call(with_name(call, body, true).await?, app).await
        }
        Operation::SaveWeightsForSampler => {
            weights::save_weights_for_sampler.call(with_name(call, body, true).await?, app).await
        }
    };
    Ok((Submitted::Response(response), Vec::new()))
}

async fn add_lora(call: &Call, body: &Plain) -> Result<Response> {
    let request: AddLoraRequest = read(call, body).await?;
    if let Some(alpha) = request.alpha.filter(|alpha| (alpha - ALPHA).abs() > f64::EPSILON) {
        let detail = format!(
            "alpha is {alpha}; adapters are scaled by {ALPHA} / rank here, as on the hosted service: leave alpha \
             out, and scale the learning rate instead"
        );
        return Err(Error::invalid("unsupported_alpha", detail));
    }
    let (session_id, model_seq_id) = call.app.store.lasting_number(&call.tenant).await?;
    let request = CreateModelRequest {
        session_id,
        model_seq_id,
        base_model: request.base_model.unwrap_or_else(|| BASE.to_owned()),
        user_metadata: request.user_metadata,
        lora_config: LoraConfig {
            rank: request.rank,
            seed: request.seed,
            train_unembed: request.train_unembed,
            train_mlp: request.train_mlp,
            train_attn: request.train_attn,
        },
        optimizer_config: Default::default(),
    };
    let request = call.json(&request)?;
    Ok(training::create_model.call(request, call.app.clone()).await)
}

/// Its weights go from memory, and nothing can be asked of it any more; its checkpoints stay.
async fn remove_lora(call: &Call, body: &Plain) -> Result<Response> {
    let request: UnloadModelRequest = read(call, body).await?;
    let model_id = request.model_id.clone();
    own_run(call, &model_id).await?;
    let request = call.json(&request)?;
    let response = training::unload_model.call(request, call.app.clone()).await;
    if response.status() == StatusCode::OK {
        call.app.store.remove_run(&call.tenant, &model_id).await?;
    }
    Ok(response)
}

async fn train(call: &Call, body: &Plain, forward_only: bool) -> Result<Warned> {
    let request: TrainRequest = read(call, body).await?;
    let (_, model) = own_run(call, &request.model_id).await?;
    let batch = chat::batch(&call.app, model, request, forward_only).await?;
    let body = Plain::made(&call.app, batch.request.encode_to_vec().into(), true)?;
    let request = call.request(Ok(body));
    let response = training::forward_backward.call(request, call.app.clone()).await;
    Ok((Submitted::Response(response), batch.warnings))
}

async fn optim_step(call: &Call, body: &Plain) -> Result<Response> {
    let request: StepRequest = read(call, body).await?;
    own_run(call, &request.model_id).await?;
    let mut params = request.adam_params.unwrap_or_default();
    if let Some(learning_rate) = request.learning_rate {
        if request.adam_params.is_some() {
            let detail = "learning_rate stands in adam_params where there is one, or alone";
            return Err(Error::invalid("two_learning_rates", detail));
        }
        params.learning_rate = learning_rate;
    }
    let request = OptimStepRequest {
        model_id: request.model_id,
        seq_id: None,
        adam_params: Some(params),
        optimizer_params: None,
    };
    let request = call.json(&request)?;
    Ok(training::optim_step.call(request, call.app.clone()).await)
}

/// What an operation on a run says of it.
#[derive(Deserialize)]
struct OfRun {
    model_id: ModelId,
}

impl Request for OfRun {}

/// An official body but for its number, which stays out; what is saved gets a name where it has none.
async fn with_name(call: &Call, body: &Plain, make_name: bool) -> Result<axum::extract::Request> {
    let of_run: OfRun = serde_json::from_slice(&body.bytes)
        .map_err(|error| Error::malformed(format!("failed to read the JSON body: {error}")))?;
    own_run(call, &of_run.model_id).await?;
    let mut value: Value = serde_json::from_slice(&body.bytes).unwrap_or_default();
    let has_name = |name: &str| value.get(name).is_some_and(|value| !value.is_null());
    if make_name && !has_name("path") && !has_name("name") {
        value["path"] = json!(format!("at-{}", call.app.clock.now().as_millisecond()));
    }
    call.json(&value)
}

/// A run of this dialect that can go on. Others are numbered by their clients, who would be put out of step.
pub(super) async fn own_run<'a>(
    call: &'a Call,
    model_id: &ModelId,
) -> Result<(RunRecord, &'a ModelEntry)> {
    let (run, model) = live_run(&call.app, &call.tenant, model_id).await?;
    if call.app.store.is_removed(&call.tenant, model_id).await? {
        return Err(Error::NotFound {
            what: format!("run {model_id}: remove_lora removed it, it was"),
        });
    }
    if call.app.store.lasting_session(&call.tenant).await?.as_ref() != Some(&run.session_id) {
        let detail = format!(
            "run {model_id} was made by create_model, and its requests are numbered: send them in the official \
             form, with seq_id; runs made by add_lora take this form"
        );
        return Err(Error::invalid("numbered_run", detail));
    }
    Ok((run, model))
}

pub(super) async fn read<T: Request + Send + 'static>(call: &Call, body: &Plain) -> Result<T> {
    if body.is_protobuf {
        return Err(Error::malformed("this endpoint takes JSON, not protobuf"));
    }
    body::json(&call.app, call.parts.uri.path(), body.bytes.clone()).await
}

impl Call {
    /// This request with another body.
    pub(super) fn json(&self, value: &impl Serialize) -> Result<axum::extract::Request> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::Internal {
            detail: format!("a request cannot be written: {error}"),
        })?;
        Ok(self.request(Plain::made(&self.app, Bytes::from(bytes), false)))
    }
}
