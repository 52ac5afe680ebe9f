//! One training run: gradients gather until an optimizer step applies them.

mod chunks;
mod custom;
mod forward;
mod output;
mod saves;
mod turns;

use std::{collections::BTreeMap, fmt, future::Future, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use tinsmith_types::{
    ids::{ModelId, SeqId},
    training::{
        AdamParams, GetInfoRequest, GetInfoResponse, LoraConfig, OptimStepRequest,
        OptimStepResponse, UnloadModelRequest, UnloadModelResponse,
    },
};

pub use output::ForwardBackwardOutput;
pub use saves::SaveOptions;
pub(crate) use saves::check_path;

use crate::{
    ApiFuture, PollOptions, QueueStateObserver, Result, SessionId, Telemetry,
    api::{Api, Submitted},
    http::{Call, Http, Pool},
    poll::Wanted,
    session::Session,
    tokenizer,
};
use turns::Turns;

/// One training run. Cheap to clone. Calls start at once and are sent in the order in which they are made;
/// none waits for the result of the one before.
#[derive(Clone)]
pub struct TrainingClient {
    inner: Arc<Inner>,
    poll: PollOptions,
}

#[derive(Debug)]
struct Inner {
    session: Arc<Session>,
    model_id: ModelId,
    model_seq_id: i64,
    info: GetInfoResponse,
    lora: Option<LoraConfig>,
    turns: Turns,
}

impl TrainingClient {
    /// The client of a run that has just been made: asks for what the server knows of it.
    pub(crate) async fn open(
        session: Arc<Session>,
        model_id: ModelId,
        model_seq_id: i64,
        lora: Option<LoraConfig>,
    ) -> Result<Self> {
        let request = GetInfoRequest { model_id: model_id.clone() };
        let call = Call::post("get_info", &request)?.pool(Pool::Training);
        let info = session.http.send_json(&call).await?;
        let poll = session.http.config.poll_options().clone();
        let turns = Turns::new();
        let inner = Inner { session, model_id, model_seq_id, info, lora, turns };
        Ok(Self { inner: Arc::new(inner), poll })
    }

    /// The run's id.
    pub fn model_id(&self) -> &str {
        self.inner.model_id.as_str()
    }

    /// The session that the run belongs to.
    pub fn session_id(&self) -> &SessionId {
        &self.inner.session.id
    }

    /// The run's number within its session.
    pub fn model_seq_id(&self) -> i64 {
        self.inner.model_seq_id
    }

    /// The base model's name.
    pub fn base_model(&self) -> &str {
        let info = &self.inner.info;
        let name = info.model_data.model_name.as_ref().or(info.model_name.as_ref());
        name.map_or("", String::as_str)
    }

    /// Where the run's tokenizer is: a directory or a hub name.
    pub fn tokenizer_id(&self) -> String {
        let said = self.inner.info.model_data.tokenizer_id.as_deref();
        tokenizer::tokenizer_id(self.base_model(), said)
    }

    /// How the adapter was asked for, where this client asked for it.
    pub fn lora_config(&self) -> Option<&LoraConfig> {
        self.inner.lora.as_ref()
    }

    /// Columns of the adapter's A.
    pub fn lora_rank(&self) -> Option<u32> {
        let info = &self.inner.info;
        info.lora_rank.or(info.model_data.lora_rank)
    }

    /// This client, whose calls tell `observer` of the queue's changes too.
    #[must_use]
    pub fn with_observer(mut self, observer: impl QueueStateObserver + 'static) -> Self {
        self.poll.observers.push(Arc::new(observer));
        self
    }

    /// This client, whose calls wait for their results as `options` say.
    #[must_use]
    pub fn with_poll_options(mut self, options: PollOptions) -> Self {
        self.poll = options;
        self
    }

    /// What the client reports to the server, where the configuration says so.
    pub fn get_telemetry(&self) -> Option<&Telemetry> {
        self.inner.session.telemetry()
    }

    /// Where people look at the run: a page of the server.
    pub fn get_console_url(&self) -> String {
        format!("{}/training_runs/{}", self.http().config.base_url(), self.inner.model_id)
    }

    /// The next pause of the queue is logged at once, even if one was logged a moment ago.
    pub fn clear_queue_state_debounce(&self) {
        self.http().observers().clear_debounce();
    }

    /// What the server knows of the run.
    ///
    /// # Errors
    ///
    /// The run is gone.
    pub fn get_info(&self) -> ApiFuture<GetInfoResponse> {
        let (http, model_id) = (self.http().clone(), self.inner.model_id.clone());
        self.http().start(async move {
            let call = Call::post("get_info", &GetInfoRequest { model_id })?.pool(Pool::Training);
            http.send_json(&call).await
        })
    }

    /// What the server knew of the run when it was made; asks nobody.
    pub fn info(&self) -> &GetInfoResponse {
        &self.inner.info
    }

    /// Applies the pending gradient and clears it.
    ///
    /// # Errors
    ///
    /// Settings that the optimizer refuses; a gradient that is not finite.
    pub fn optim_step(&self, params: impl Into<OptimParams>) -> ApiFuture<OptimStepResponse> {
        let (model_id, params) = (self.inner.model_id.clone(), params.into());
        let (adam_params, optimizer_params) = match params {
            OptimParams::Adam(params) => (Some(params), None),
            OptimParams::Other(params) => (None, Some(params)),
        };
        self.call("optim_step", "OptimStep", true, move |seq_id| OptimStepRequest {
            model_id,
            seq_id: Some(seq_id),
            adam_params,
            optimizer_params,
        })
    }

    /// Gives the run's memory back to the server; later calls fail. Its checkpoints stay.
    ///
    /// # Errors
    ///
    /// The server does not offer it.
    pub fn unload_model(&self) -> ApiFuture<UnloadModelResponse> {
        let request = UnloadModelRequest { model_id: self.inner.model_id.clone() };
        let (http, poll) = (self.http().clone(), self.poll.clone());
        self.http().start(async move {
            let api = Api::of(http);
            api.submit("unload_model", &request, Pool::Training)
                .await?
                .wait("UnloadModel", &poll)
                .await
        })
    }

    pub(crate) fn http(&self) -> &Http {
        &self.inner.session.http
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.inner.session
    }

    pub(crate) fn poll_options(&self) -> &PollOptions {
        &self.poll
    }

    /// A queued call whose request and result are JSON.
    fn call<Q, T>(
        &self,
        path: &'static str,
        request_type: &'static str,
        inner_retries: bool,
        request: impl FnOnce(SeqId) -> Q + Send + 'static,
    ) -> ApiFuture<T>
    where
        Q: Serialize + Send + Sync + 'static,
        T: DeserializeOwned + Send + 'static,
    {
        let (inner, poll) = (Arc::clone(&self.inner), self.poll.clone());
        let sender = Arc::clone(&self.inner);
        self.submit(
            1,
            move |first| async move {
                let call = Call::post(path, &request(SeqId(first)))?.pool(Pool::Training);
                Submitted::send(&sender.session.http, &call.retries(inner_retries, true)).await
            },
            move |submitted: Submitted| async move {
                let wanted = Wanted::json(request_type);
                submitted.result(&inner.session.http, wanted, &poll).await?.json()
            },
        )
    }

    /// Numbers a call now, sends it when its turn comes, and waits for its result without holding others up.
    /// What is sent is sent to its end, even where nobody waits for the result any more.
    fn submit<S, T, A, B>(
        &self,
        count: usize,
        send: impl FnOnce(i64) -> A + Send + 'static,
        wait: impl FnOnce(S) -> B + Send + 'static,
    ) -> ApiFuture<T>
    where
        S: Send + 'static,
        T: Send + 'static,
        A: Future<Output = Result<S>> + Send + 'static,
        B: Future<Output = Result<T>> + Send + 'static,
    {
        let (inner, http) = (Arc::clone(&self.inner), self.http().clone());
        let first = inner.turns.reserve(count);
        let model_id = self.model_id().to_owned();
        // Spawned here, so that the turn is taken even where the caller gives the call up at once.
        let sent = http.begin(async move {
            let turn = inner.turns.begin(first, count).await?;
            tracing::debug!(target: "tinsmith::operation", phase = "sending", model_id, seq_id = first);
            let sent = send(first).await;
            turn.end(&sent);
            sent
        });
        self.http().start(async move { wait(sent.await?).await })
    }
}

impl fmt::Debug for TrainingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainingClient")
            .field("model_id", &self.inner.model_id)
            .finish_non_exhaustive()
    }
}

/// Settings of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub enum OptimParams {
    /// `AdamW`'s.
    Adam(AdamParams),
    /// Those of another optimizer, with their `type`.
    Other(BTreeMap<String, serde_json::Value>),
}

impl From<AdamParams> for OptimParams {
    fn from(params: AdamParams) -> Self {
        Self::Adam(params)
    }
}

impl From<BTreeMap<String, serde_json::Value>> for OptimParams {
    fn from(params: BTreeMap<String, serde_json::Value>) -> Self {
        Self::Other(params)
    }
}
