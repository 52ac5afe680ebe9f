//! A session with a server: where training and sampling clients come from.

use std::{collections::BTreeMap, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tinsmith_types::{
    ids::ModelId,
    service::Capabilities,
    session::FinishReason,
    training::{
        CreateModelRequest, CreateModelResponse, LoraConfig, OptimizerConfig, UnloadModelRequest,
    },
    weights::{
        LoadWeightsRequest, LoadWeightsResponse, Secret, WeightsInfoRequest, WeightsInfoResponse,
    },
};

use crate::{
    ApiFuture, CircuitBreaker, Config, Error, MetricsSnapshot, ObserverGuard, PollOptions,
    QueueStateObserver, RequestRef, Result, SamplingClient, SamplingOptions, SessionId, Telemetry,
    TrainingClient,
    api::Submitted,
    http::{Call, Http, Pool},
    poll::Wanted,
    session::Session,
    training::check_path,
};

/// A session. Cheap to clone, and to be used from any thread or task; it lives until the last clone, and the
/// last client made from it, is dropped, or until [`ServiceClient::close`].
///
/// Methods that ask the server return an [`ApiFuture`] that has started: `.await` it, or `.wait()` for it in
/// a plain thread. Each has an `_async` alias for those who come from other SDKs:
/// [`ServiceClient::get_server_capabilities_async`], [`ServiceClient::create_lora_training_client_async`],
/// [`ServiceClient::create_training_client_from_state_async`],
/// [`ServiceClient::create_training_client_from_state_with_optimizer_async`] and
/// [`ServiceClient::create_sampling_client_async`].
///
/// ```no_run
/// use tinsmith::{Config, LoraOptions, ServiceClient};
///
/// # async fn run() -> tinsmith::Result<()> {
/// let service = ServiceClient::connect(Config::from_env()?).await?;
/// // Both are made at the same time.
/// let training = service.create_lora_training_client(LoraOptions::new("base").rank(16));
/// let sampling = service.create_sampling_client("base");
/// let (training, sampling) = (training.await?, sampling.await?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ServiceClient {
    session: Arc<Session>,
}

/// What a new adapter is like.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    base_model: String,
    lora: LoraConfig,
    user_metadata: Option<BTreeMap<String, Value>>,
    optimizer: OptimizerConfig,
}

impl LoraOptions {
    /// Rank 32 on every linear layer of `base_model`, for `AdamW`.
    pub fn new(base_model: impl Into<String>) -> Self {
        Self {
            base_model: base_model.into(),
            lora: LoraConfig::default(),
            user_metadata: None,
            optimizer: OptimizerConfig::default(),
        }
    }

    /// Columns of A and rows of B.
    #[must_use]
    pub fn rank(mut self, rank: u32) -> Self {
        self.lora.rank = rank;
        self
    }

    /// Makes the adapter's first values the same every time.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.lora.seed = Some(seed);
        self
    }

    /// Adapt the feed-forward layers (default: yes).
    #[must_use]
    pub fn train_mlp(mut self, train: bool) -> Self {
        self.lora.train_mlp = train;
        self
    }

    /// Adapt attention (default: yes).
    #[must_use]
    pub fn train_attn(mut self, train: bool) -> Self {
        self.lora.train_attn = train;
        self
    }

    /// Adapt the unembedding (default: yes).
    #[must_use]
    pub fn train_unembed(mut self, train: bool) -> Self {
        self.lora.train_unembed = train;
        self
    }

    /// Notes on the run.
    #[must_use]
    pub fn user_metadata(mut self, metadata: BTreeMap<String, Value>) -> Self {
        self.user_metadata = Some(metadata);
        self
    }

    /// Another optimizer than `AdamW`, by its `type` and settings.
    #[must_use]
    pub fn optimizer(mut self, config: OptimizerConfig) -> Self {
        self.optimizer = config;
        self
    }

    fn check(&self) -> Result<()> {
        if self.base_model.trim().is_empty() {
            return Err(Error::validation("base_model is empty: name a model of the server"));
        }
        if self.lora.rank == 0 {
            return Err(Error::validation("rank has to be at least 1"));
        }
        if !(self.lora.train_mlp || self.lora.train_attn || self.lora.train_unembed) {
            let message = "one of train_mlp, train_attn and train_unembed has to be on";
            return Err(Error::validation(message));
        }
        Ok(())
    }
}

impl From<&str> for LoraOptions {
    fn from(base_model: &str) -> Self {
        Self::new(base_model)
    }
}

impl From<String> for LoraOptions {
    fn from(base_model: String) -> Self {
        Self::new(base_model)
    }
}

/// How a run is made from a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FromStateOptions {
    load_optimizer: bool,
    base_model: Option<String>,
    user_metadata: Option<BTreeMap<String, Value>>,
    weights_access_token: Option<Secret>,
    optimizer: Option<OptimizerConfig>,
}

impl FromStateOptions {
    /// The weights alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Load the optimizer's state too (default: no).
    #[must_use]
    pub fn load_optimizer(mut self, load: bool) -> Self {
        self.load_optimizer = load;
        self
    }

    /// Another variant of the checkpoint's base model.
    #[must_use]
    pub fn base_model(mut self, name: impl Into<String>) -> Self {
        self.base_model = Some(name.into());
        self
    }

    /// Notes on the new run.
    #[must_use]
    pub fn user_metadata(mut self, metadata: BTreeMap<String, Value>) -> Self {
        self.user_metadata = Some(metadata);
        self
    }

    /// Permission to read another account's checkpoint.
    #[must_use]
    pub fn weights_access_token(mut self, token: impl Into<String>) -> Self {
        self.weights_access_token = Some(Secret(token.into()));
        self
    }

    /// The new run's optimizer, where the checkpoint's is not loaded.
    #[must_use]
    pub fn optimizer(mut self, config: OptimizerConfig) -> Self {
        self.optimizer = Some(config);
        self
    }
}

/// How a checkpoint is copied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CopyOptions {
    pub(crate) destination_project_id: Option<String>,
    pub(crate) ttl_seconds: Option<i64>,
    pub(crate) weights_access_token: Option<Secret>,
}

impl CopyOptions {
    /// The project that the copy counts to.
    #[must_use]
    pub fn destination_project_id(mut self, id: impl Into<String>) -> Self {
        self.destination_project_id = Some(id.into());
        self
    }

    /// Seconds after which the copy is deleted: an hour to ten years.
    #[must_use]
    pub fn ttl_seconds(mut self, seconds: i64) -> Self {
        self.ttl_seconds = Some(seconds);
        self
    }

    /// Permission to read another account's checkpoint.
    #[must_use]
    pub fn weights_access_token(mut self, token: impl Into<String>) -> Self {
        self.weights_access_token = Some(Secret(token.into()));
        self
    }
}

impl ServiceClient {
    /// Opens a session and keeps it alive in the background.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or refuses.
    pub async fn connect(config: Config) -> Result<Self> {
        let http = Http::new(config)?;
        let opening = http.clone();
        let session = http.start(async move { Session::open(opening).await }).await?;
        Ok(Self { session })
    }

    /// [`Self::connect`] for plain threads; [`crate::blocking::ServiceClient::connect`] gives a client all of
    /// whose methods wait.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    pub fn connect_blocking(config: Config) -> Result<Self> {
        let http = Http::new(config)?;
        let opening = http.clone();
        let session = http.start(async move { Session::open(opening).await }).wait()?;
        Ok(Self { session })
    }

    /// The session's id.
    pub fn session_id(&self) -> &SessionId {
        &self.session.id
    }

    /// How it was made.
    pub fn config(&self) -> &Config {
        &self.session.http.config
    }

    /// Whether it was not closed.
    pub fn is_alive(&self) -> bool {
        self.session.is_open()
    }

    /// Where people look at the session: a page of the server.
    pub fn get_console_url(&self) -> String {
        format!("{}/sessions/{}", self.config().base_url(), self.session.id)
    }

    /// The models that the server offers.
    pub fn get_server_capabilities(&self) -> ApiFuture<Capabilities> {
        let http = self.session.http.clone();
        self.session.http.start(async move { http.get("get_server_capabilities", &[]).await })
    }

    /// A new training run with a fresh adapter: `LoraOptions::new("base").rank(8)`, or the model's name alone.
    ///
    /// ```compile_fail
    /// # fn run(service: tinsmith::ServiceClient) {
    /// service.create_lora_training_client(123);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The model or its options are refused.
    pub fn create_lora_training_client(
        &self,
        options: impl Into<LoraOptions>,
    ) -> ApiFuture<TrainingClient> {
        let (session, options) = (Arc::clone(&self.session), options.into());
        if let Err(error) = options.check() {
            return session.http.start(async { Err(error) });
        }
        // Numbered here, so that runs have the numbers of their calls.
        let number = session.next_model();
        let http = session.http.clone();
        http.start(create_model(session, number, options))
    }

    /// A new run with the weights of a checkpoint, its base model and its adapter's shape; the optimizer
    /// starts afresh.
    ///
    /// ```compile_fail
    /// # fn run(service: tinsmith::ServiceClient) {
    /// service.create_training_client_from_state(123);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// There is no such checkpoint.
    pub fn create_training_client_from_state(
        &self,
        path: impl Into<String>,
    ) -> ApiFuture<TrainingClient> {
        self.create_training_client_from_state_with(path, FromStateOptions::new())
    }

    /// [`Self::create_training_client_from_state`] with the optimizer's state.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn create_training_client_from_state_with_optimizer(
        &self,
        path: impl Into<String>,
    ) -> ApiFuture<TrainingClient> {
        let options = FromStateOptions::new().load_optimizer(true);
        self.create_training_client_from_state_with(path, options)
    }

    /// [`Self::create_training_client_from_state`] with options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn create_training_client_from_state_with(
        &self,
        path: impl Into<String>,
        options: FromStateOptions,
    ) -> ApiFuture<TrainingClient> {
        let (session, path) = (Arc::clone(&self.session), path.into());
        if let Err(error) = check_path(&path) {
            return session.http.start(async { Err(error) });
        }
        let number = session.next_model();
        let http = session.http.clone();
        http.start(from_state(session, number, path, options))
    }

    /// A sampler of a base model (`"base"`) or of a checkpoint (`"tinker://…"`), or as
    /// [`SamplingOptions`] say.
    ///
    /// # Errors
    ///
    /// There is no such model or checkpoint.
    pub fn create_sampling_client(
        &self,
        options: impl Into<SamplingOptions>,
    ) -> ApiFuture<SamplingClient> {
        SamplingClient::create(self, options)
    }

    /// A client of what the server keeps, on the same connections.
    pub fn create_rest_client(&self) -> crate::RestClient {
        crate::RestClient::of(self.session.http.clone())
    }

    /// Copies a checkpoint into a run of this account; gives its path.
    ///
    /// # Errors
    ///
    /// There is no such checkpoint, or no permission to read it.
    pub fn copy_weights(
        &self,
        path: impl Into<String>,
        mut options: CopyOptions,
    ) -> ApiFuture<String> {
        let project = || self.config().inner.project_id.clone();
        options.destination_project_id = options.destination_project_id.or_else(project);
        self.create_rest_client().copy_weights(path.into(), options)
    }

    /// Waits for a request that was queued elsewhere: by its id, or by the answer to its submission.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use tinsmith::{PollOptions, ServiceClient};
    ///
    /// # async fn run(service: ServiceClient) -> tinsmith::Result<()> {
    /// let options = PollOptions::default().timeout(Duration::from_secs(60)).metadata("user_id", "7");
    /// let result: serde_json::Value = service.poll("request-id", options).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The request failed, or its result did not come in time.
    pub fn poll<T: DeserializeOwned + Send + 'static>(
        &self,
        request: impl Into<RequestRef>,
        options: PollOptions,
    ) -> ApiFuture<T> {
        let (http, request) = (self.session.http.clone(), request.into());
        self.session
            .http
            .start(async move { http.result(&request.0, Wanted::json(""), &options).await?.json() })
    }

    /// Tells `observer` of the queue's changes for every request of this session, until the guard is dropped.
    pub fn on_queue_state_change(
        &self,
        observer: impl QueueStateObserver + 'static,
    ) -> ObserverGuard {
        self.session.http.observers().attach(Arc::new(observer))
    }

    /// Counts and latencies of what the clients of this session did.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.session.http.metrics().snapshot()
    }

    /// Begins to count anew.
    pub fn reset_metrics(&self) {
        self.session.http.metrics().reset();
    }

    /// What the client reports to the server, where the configuration says so.
    pub fn get_telemetry(&self) -> Option<&Telemetry> {
        self.session.telemetry()
    }

    /// What the circuit breaker does, where the configuration has one.
    pub fn circuit_breaker(&self) -> Option<&CircuitBreaker> {
        self.session.http.breaker()
    }

    /// Ends the session as a success; later operations on it are refused.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub fn close(&self) -> ApiFuture<()> {
        self.close_with(FinishReason::Success, None)
    }

    /// Ends the session, and says how the program went.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub fn close_with(&self, reason: FinishReason, detail: Option<String>) -> ApiFuture<()> {
        let session = Arc::clone(&self.session);
        self.session.http.start(async move { session.finish(reason, detail).await })
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

async fn create_model(
    session: Arc<Session>,
    number: i64,
    options: LoraOptions,
) -> Result<TrainingClient> {
    let request = CreateModelRequest {
        session_id: session.id.clone(),
        model_seq_id: number,
        base_model: options.base_model,
        user_metadata: options.user_metadata,
        lora_config: options.lora.clone(),
        optimizer_config: options.optimizer,
    };
    let call = Call::post("create_model", &request)?.pool(Pool::Training).retries(true, false);
    let created: CreateModelResponse = queued(&session.http, &call, "CreateModel").await?;
    TrainingClient::open(session, created.model_id, number, Some(options.lora)).await
}

/// The run that a checkpoint goes on as: in one request, or step by step with servers of older generations.
async fn from_state(
    session: Arc<Session>,
    number: i64,
    path: String,
    options: FromStateOptions,
) -> Result<TrainingClient> {
    let request = LoadWeightsRequest {
        session_id: Some(session.id.clone()),
        model_seq_id: Some(number),
        model_id: None,
        seq_id: None,
        base_model: options.base_model.clone(),
        user_metadata: options.user_metadata.clone(),
        path: path.clone(),
        optimizer: options.load_optimizer,
        optimizer_config: options.optimizer.clone(),
        weights_access_token: options.weights_access_token.clone(),
        read_as: None,
    };
    let call = Call::post("load_weights", &request)?.pool(Pool::Training);
    let loaded: Result<LoadWeightsResponse> = queued(&session.http, &call, "LoadWeights").await;
    match loaded {
        Ok(_) => {
            tracing::debug!(target: "tinsmith::from_state", %path, "loaded as a new run");
            // The server may leave the id out: it follows from the session's.
            let model_id = ModelId::of(&session.id, number);
            TrainingClient::open(session, model_id, number, None).await
        }
        Err(Error::Api { status: 400 | 404 | 405 | 422, .. }) => {
            step_by_step(session, number, path, options).await
        }
        Err(error) => Err(error),
    }
}

/// What the checkpoint is, a run like it, and its weights.
async fn step_by_step(
    session: Arc<Session>,
    number: i64,
    path: String,
    options: FromStateOptions,
) -> Result<TrainingClient> {
    let http = session.http.clone();
    let request = WeightsInfoRequest {
        tinker_path: path.clone(),
        weights_access_token: options.weights_access_token.clone(),
    };
    let info: WeightsInfoResponse = http.post("weights_info", &request).await?;
    tracing::debug!(target: "tinsmith::from_state", %path, info.base_model, "found the checkpoint");
    let lora = LoraConfig {
        rank: info.lora_rank.unwrap_or_else(|| LoraConfig::default().rank),
        train_unembed: info.train_unembed.unwrap_or(true),
        train_mlp: info.train_mlp.unwrap_or(true),
        train_attn: info.train_attn.unwrap_or(true),
        ..LoraConfig::default()
    };
    let created = LoraOptions {
        base_model: options.base_model.unwrap_or(info.base_model),
        lora,
        user_metadata: options.user_metadata,
        optimizer: options.optimizer.or(info.optimizer_config).unwrap_or_default(),
    };
    let client = create_model(session, number, created).await?;
    let model_id = client.model_id().to_owned();
    tracing::debug!(target: "tinsmith::from_state", %path, model_id, "made a run like it");
    let loaded = match (options.load_optimizer, options.weights_access_token) {
        (optimizer, Some(token)) => client.load_state_with_token(&path, optimizer, token.0).await,
        (true, None) => client.load_state_with_optimizer(&path).await,
        (false, None) => client.load_state(&path).await,
    };
    if let Err(error) = loaded {
        // A run without its weights is of no use to anybody.
        let request = UnloadModelRequest { model_id: model_id.into() };
        if let Ok(call) = Call::post("unload_model", &request) {
            let unloaded = http.send(&call.retries(false, false)).await;
            tracing::debug!(target: "tinsmith::from_state", failed = unloaded.is_err(), "unloaded the run");
        }
        return Err(error);
    }
    tracing::debug!(target: "tinsmith::from_state", %path, "loaded its weights");
    Ok(client)
}

async fn queued<T: DeserializeOwned>(
    http: &Http,
    call: &Call,
    request_type: &'static str,
) -> Result<T> {
    let submitted = Submitted::send(http, call).await?;
    let options = http.config.poll_options();
    submitted.result(http, Wanted::json(request_type), options).await?.json()
}
