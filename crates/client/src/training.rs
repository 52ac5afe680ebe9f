//! One training run: gradients gather until an optimizer step applies them.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use prost::Message as _;
use serde::{Serialize, de::DeserializeOwned};
use tinsmith_types::{
    futures::UntypedFuture,
    ids::{ModelId, SeqId},
    proto::{self, ForwardBackwardRequest},
    tensor::Values,
    training::{
        AdamParams, ForwardBackwardOutput, GetInfoRequest, GetInfoResponse, OptimStepRequest,
        OptimStepResponse,
    },
    weights::{
        SamplerKind, SaveWeightsForSamplerRequest, SaveWeightsForSamplerResponse,
        SaveWeightsRequest, SaveWeightsResponse,
    },
};
use tokio::sync::watch;

use crate::{
    ApiFuture, Datum, Error, Result, SamplingClient, future, http::Answer, service::Session,
};

/// In place of a turn: a call was never sent.
const BROKEN: i64 = i64::MAX;

/// One training run. Calls start at once and are submitted in the order in which they are made.
#[derive(Clone, Debug)]
pub struct TrainingClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Arc<Session>,
    model_id: ModelId,
    /// The next number to be given to a call.
    next: std::sync::Mutex<i64>,
    /// The number whose turn it is to be submitted.
    turn: watch::Sender<i64>,
}

/// What `forward` and `forward_backward` give.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardBackwardResult {
    /// Logprobs of each datum's targets, in the order of the datums.
    pub logprobs: Vec<Vec<f32>>,
    /// By `name:reduction`; `loss:sum` is always there.
    pub metrics: BTreeMap<String, f64>,
}

/// What the server knows of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Info {
    /// The base model's name.
    pub model_name: String,
    /// Where its tokenizer is: a directory or a hub name.
    pub tokenizer_id: String,
    /// Rank of the adapter.
    pub lora_rank: u32,
}

impl TrainingClient {
    pub(crate) fn new(session: Arc<Session>, model_id: ModelId) -> Self {
        let (turn, _) = watch::channel(1);
        Self { inner: Arc::new(Inner { session, model_id, next: std::sync::Mutex::new(1), turn }) }
    }

    /// The run's id.
    pub fn model_id(&self) -> &str {
        self.inner.model_id.as_str()
    }

    /// What the server knows of the run.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub async fn info(&self) -> Result<Info> {
        let request = GetInfoRequest { model_id: self.inner.model_id.clone() };
        let info: GetInfoResponse = self.inner.session.http.post("get_info", &request).await?;
        Ok(Info {
            model_name: info.model_data.model_name.unwrap_or_default(),
            tokenizer_id: info.model_data.tokenizer_id.unwrap_or_default(),
            lora_rank: info.lora_rank.unwrap_or_default(),
        })
    }

    /// Logprobs of the datums; leaves the pending gradient alone.
    pub fn forward(&self, datums: Vec<Datum>, loss: &str) -> ApiFuture<ForwardBackwardResult> {
        self.run(datums, loss, BTreeMap::new(), true)
    }

    /// Logprobs, loss and metrics; adds the loss's gradient to the pending one.
    pub fn forward_backward(
        &self,
        datums: Vec<Datum>,
        loss: &str,
    ) -> ApiFuture<ForwardBackwardResult> {
        self.run(datums, loss, BTreeMap::new(), false)
    }

    /// [`Self::forward_backward`] with constants of the loss.
    pub fn forward_backward_with(
        &self,
        datums: Vec<Datum>,
        loss: &str,
        config: BTreeMap<String, f64>,
    ) -> ApiFuture<ForwardBackwardResult> {
        self.run(datums, loss, config, false)
    }

    fn run(
        &self,
        datums: Vec<Datum>,
        loss: &str,
        config: BTreeMap<String, f64>,
        forward_only: bool,
    ) -> ApiFuture<ForwardBackwardResult> {
        let (inner, loss) = (Arc::clone(&self.inner), loss.to_owned());
        self.submit(move |seq_id| async move {
            let data: Result<Vec<proto::Datum>> =
                datums.into_iter().map(Datum::into_proto).collect();
            let request = ForwardBackwardRequest {
                model_id: inner.model_id.to_string(),
                seq_id: i32::try_from(seq_id.0)
                    .map_err(|_| Error::Validation { message: "too many requests".to_owned() })?,
                data: data?,
                loss_fn: loss,
                loss_fn_config: config,
                forward_only,
                ..ForwardBackwardRequest::default()
            };
            let future: UntypedFuture =
                inner.session.http.post_protobuf("forward_backward", &request).await?;
            Ok(future::boxed(
                async move { logprobs(inner.session.http.result(&future, true).await?) },
            ))
        })
    }

    /// Applies the pending gradient and clears it; the metrics that the server gives.
    pub fn optim_step(&self, params: AdamParams) -> ApiFuture<BTreeMap<String, f64>> {
        let model_id = self.inner.model_id.clone();
        self.call(
            "optim_step",
            move |seq_id| OptimStepRequest {
                model_id,
                seq_id: Some(seq_id),
                adam_params: Some(params),
                optimizer_params: None,
            },
            |response: OptimStepResponse| Ok(response.metrics.unwrap_or_default()),
        )
    }

    /// Saves weights and optimizer under a name; the checkpoint's `tinker://` path.
    pub fn save_state(&self, name: impl Into<String>) -> ApiFuture<String> {
        let (model_id, name) = (self.inner.model_id.clone(), name.into());
        self.call(
            "save_weights",
            move |seq_id| SaveWeightsRequest {
                model_id,
                seq_id: Some(seq_id),
                path: Some(name),
                ttl_seconds: None,
                overwrite: false,
                user_metadata: None,
            },
            |response: SaveWeightsResponse| Ok(response.path),
        )
    }

    /// A sampler of the weights as they are after everything called before.
    pub fn save_weights_and_get_sampling_client(&self) -> ApiFuture<SamplingClient> {
        let model_id = self.inner.model_id.clone();
        let session = Arc::clone(&self.inner.session);
        let sampler = session.next_sampler();
        self.call(
            "save_weights_for_sampler",
            move |seq_id| SaveWeightsForSamplerRequest {
                model_id,
                seq_id: Some(seq_id),
                path: None,
                sampling_session_seq_id: Some(sampler),
                kind: SamplerKind::Snapshot,
                ttl_seconds: None,
                user_metadata: None,
            },
            move |response: SaveWeightsForSamplerResponse| {
                let id = response.sampling_session_id.ok_or_else(|| Error::Response {
                    message: "no sampling_session_id for an unnamed save".to_owned(),
                })?;
                Ok(SamplingClient::new(session, id))
            },
        )
    }

    /// A queued call whose request and result are JSON.
    fn call<Q, A, T>(
        &self,
        name: &'static str,
        request: impl FnOnce(SeqId) -> Q + Send + 'static,
        result: impl FnOnce(A) -> Result<T> + Send + 'static,
    ) -> ApiFuture<T>
    where
        Q: Serialize + Send + Sync + 'static,
        A: DeserializeOwned + Send + 'static,
        T: Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        self.submit(move |seq_id| async move {
            let future: UntypedFuture = inner.session.http.post(name, &request(seq_id)).await?;
            Ok(future::boxed(async move {
                result(inner.session.http.result(&future, false).await?.json()?)
            }))
        })
    }

    /// Numbers a call now, submits it when its turn comes, and waits for its result without holding
    /// others up.
    fn submit<T, S>(&self, send: impl FnOnce(SeqId) -> S + Send + 'static) -> ApiFuture<T>
    where
        T: Send + 'static,
        S: Future<Output = Result<future::Boxed<T>>> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let seq_id = {
            let mut next = inner.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let seq_id = *next;
            *next += 1;
            seq_id
        };
        ApiFuture::start(async move {
            let mut turn = inner.turn.subscribe();
            let ready = turn.wait_for(|turn| *turn == seq_id || *turn == BROKEN).await;
            if *ready.map_err(|_| Error::Stopped)? == BROKEN {
                return Err(Error::Broken);
            }
            let sent = send(SeqId(seq_id)).await;
            // A request that the server refused has used its number up. One that it never saw is a gap that
            // holds up all that follow.
            let is_known = matches!(sent, Ok(_) | Err(Error::Api { .. }));
            inner.turn.send_replace(if is_known { seq_id + 1 } else { BROKEN });
            sent?.await
        })
    }
}

fn logprobs(answer: Answer) -> Result<ForwardBackwardResult> {
    let output: ForwardBackwardOutput = match answer {
        Answer::Protobuf(bytes) => {
            let output = proto::ForwardBackwardOutput::decode(bytes)
                .map_err(|error| Error::Response { message: error.to_string() })?;
            (&output).try_into()?
        }
        answer @ Answer::Json(_) => answer.json()?,
    };
    let mut logprobs = Vec::with_capacity(output.loss_fn_outputs.len());
    for mut outputs in output.loss_fn_outputs {
        match outputs.remove("logprobs").map(|tensor| tensor.data) {
            Some(Values::Float32(values)) => logprobs.push(values),
            Some(Values::Int64(_)) | None => {
                let message = "a datum has no logprobs in float32".to_owned();
                return Err(Error::Response { message });
            }
        }
    }
    Ok(ForwardBackwardResult { logprobs, metrics: output.metrics })
}
