//! A session with a server: where training and sampling clients come from.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use tinsmith_types::{
    futures::UntypedFuture,
    ids::SessionId,
    sampling::{CreateSamplingSessionRequest, CreateSamplingSessionResponse},
    session::{
        CreateSessionRequest, CreateSessionResponse, FinishReason, FinishSessionRequest,
        HeartbeatRequest, HeartbeatResponse,
    },
    training::{CreateModelRequest, CreateModelResponse, LoraConfig, OptimizerConfig},
};
use tokio::task::AbortHandle;

use crate::{Config, Error, Result, SamplingClient, TrainingClient, http::Http};

/// A session. Cheap to clone; it lives until the last clone, and the last client made from it, is dropped.
#[derive(Clone, Debug)]
pub struct ServiceClient {
    session: Arc<Session>,
}

/// What all clients of a session share.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) http: Http,
    pub(crate) id: SessionId,
    models: AtomicI64,
    samplers: AtomicI64,
    heartbeat: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

impl Session {
    /// The number of the next sampling session.
    pub(crate) fn next_sampler(&self) -> i64 {
        self.samplers.fetch_add(1, Ordering::Relaxed)
    }
}

/// What a new adapter is like.
#[derive(Clone, Debug)]
pub struct LoraOptions {
    base_model: String,
    lora: LoraConfig,
}

impl LoraOptions {
    /// Rank 32 on every linear layer of `base_model`.
    pub fn new(base_model: impl Into<String>) -> Self {
        Self { base_model: base_model.into(), lora: LoraConfig::default() }
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

    /// Adapt attention, feed-forward layers, unembedding.
    #[must_use]
    pub fn train(mut self, attn: bool, mlp: bool, unembed: bool) -> Self {
        (self.lora.train_attn, self.lora.train_mlp, self.lora.train_unembed) = (attn, mlp, unembed);
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
        let request = CreateSessionRequest {
            sdk_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..CreateSessionRequest::default()
        };
        let created: CreateSessionResponse = http.post("create_session", &request).await?;
        let id = created.session_id;
        let heartbeat = tokio::spawn(heartbeat(http.clone(), id.clone())).abort_handle();
        let (models, samplers) = (AtomicI64::new(0), AtomicI64::new(0));
        Ok(Self { session: Arc::new(Session { http, id, models, samplers, heartbeat }) })
    }

    /// A new training run with a fresh adapter.
    ///
    /// # Errors
    ///
    /// The model or its options are refused.
    pub async fn create_lora_training_client(
        &self,
        options: LoraOptions,
    ) -> Result<TrainingClient> {
        let request = CreateModelRequest {
            session_id: self.session.id.clone(),
            model_seq_id: self.session.models.fetch_add(1, Ordering::Relaxed),
            base_model: options.base_model,
            user_metadata: None,
            lora_config: options.lora,
            optimizer_config: OptimizerConfig::default(),
        };
        let http = &self.session.http;
        let future: UntypedFuture = http.post("create_model", &request).await?;
        let created: CreateModelResponse = http.result(&future, false).await?.json()?;
        Ok(TrainingClient::new(Arc::clone(&self.session), created.model_id))
    }

    /// A sampler of a base model as it is.
    ///
    /// # Errors
    ///
    /// The model is not offered.
    pub async fn create_sampling_client(
        &self,
        base_model: impl Into<String>,
    ) -> Result<SamplingClient> {
        self.sampler(Some(base_model.into()), None).await
    }

    /// A sampler of a checkpoint, `tinker://<run>/sampler_weights/<name>`.
    ///
    /// # Errors
    ///
    /// There is no such checkpoint.
    pub async fn create_sampling_client_from_path(
        &self,
        path: impl Into<String>,
    ) -> Result<SamplingClient> {
        self.sampler(None, Some(path.into())).await
    }

    async fn sampler(
        &self,
        base_model: Option<String>,
        model_path: Option<String>,
    ) -> Result<SamplingClient> {
        let request = CreateSamplingSessionRequest {
            session_id: self.session.id.clone(),
            sampling_session_seq_id: self.session.next_sampler(),
            base_model,
            model_path,
        };
        let made: CreateSamplingSessionResponse =
            self.session.http.post("create_sampling_session", &request).await?;
        Ok(SamplingClient::new(Arc::clone(&self.session), made.sampling_session_id))
    }

    /// Ends the session; later operations on it are refused.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub async fn close(self) -> Result<()> {
        let name = format!("sessions/{}/finish", self.session.id);
        let request = FinishSessionRequest { reason: FinishReason::Success, detail: None };
        self.session.heartbeat.abort();
        self.session.http.post::<serde_json::Value>(&name, &request).await.map(drop)
    }
}

async fn heartbeat(http: Http, session_id: SessionId) {
    let request = HeartbeatRequest { session_id };
    loop {
        tokio::time::sleep(http.config.heartbeat_interval).await;
        match http.post::<HeartbeatResponse>("session_heartbeat", &request).await {
            Ok(_) => {}
            // The session has ended: nothing can bring it back.
            Err(Error::Api { status: 404 | 410, .. }) => return,
            Err(error) => tracing::warn!(%error, "a heartbeat was lost"),
        }
    }
}
