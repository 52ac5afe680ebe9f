//! Draws tokens from a fixed set of weights.

mod dispatch;
mod feed;
mod handle;
mod options;
mod response;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use tinsmith_types::{
    futures::SAMPLES_PER_CLONE,
    ids::{SamplingSessionId, SeqId},
    sampling::{
        CreateSamplingSessionRequest, CreateSamplingSessionResponse, SampleRequest, SamplerInfo,
        SamplingParams,
    },
};
use tokio::sync::OnceCell;

pub use options::{SampleOptions, SampleRetry, SamplerKind, SamplingOptions};
pub use response::{PromptAltTokens, SampleResponse, SampledSequence, TopkRow};

use crate::{
    ApiFuture, Error, ModelInput, PollOptions, Result, ServiceClient, Telemetry,
    http::{Call, Http, Pool},
    session::Session,
    tokenizer::tokenizer_id,
};
use dispatch::Dispatch;
use feed::Feed;

/// A sampler. Cheap to clone.
#[derive(Clone)]
pub struct SamplingClient {
    inner: Arc<Inner>,
}

struct Inner {
    session: Arc<Session>,
    id: SamplingSessionId,
    base_model: OnceCell<String>,
    tokenizer_id: OnceCell<Option<String>>,
    options: SamplingOptions,
    dispatch: Dispatch,
    /// The next number within this client.
    next: AtomicI64,
    /// Which client of the sampler this is: 0 made it.
    clone_id: OnceCell<i64>,
    /// Where the server tells of all samples together.
    feed: OnceCell<Feed>,
}

/// What a sampler is made of.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    BaseModel(String),
    Path(String),
}

impl SamplingClient {
    /// A sampler of a base model or a checkpoint: what [`ServiceClient::create_sampling_client`] does.
    ///
    /// # Errors
    ///
    /// There is no such model or checkpoint.
    pub fn create(service: &ServiceClient, options: impl Into<SamplingOptions>) -> ApiFuture<Self> {
        let (session, options) = (Arc::clone(service.session()), options.into());
        let http = session.http.clone();
        match options.source() {
            Ok(source) => http.start(Self::create_in(session, source, options)),
            Err(error) => http.start(async { Err(error) }),
        }
    }

    pub(crate) async fn create_in(
        session: Arc<Session>,
        source: Source,
        options: SamplingOptions,
    ) -> Result<Self> {
        let (base_model, model_path) = match source {
            Source::BaseModel(name) => (Some(name), None),
            Source::Path(path) => (None, Some(path)),
        };
        let request = CreateSamplingSessionRequest {
            session_id: session.id.clone(),
            sampling_session_seq_id: session.next_sampler(),
            base_model: base_model.clone(),
            model_path,
        };
        let call = Call::post("create_sampling_session", &request)?;
        let call = call.pool(Pool::Sampling).retries(true, false);
        let made: CreateSamplingSessionResponse = session.http.send_json(&call).await?;
        let client = Self::new(session, made.sampling_session_id, base_model, options);
        client.learn_base_model().await?;
        Ok(client)
    }

    pub(crate) fn new(
        session: Arc<Session>,
        id: SamplingSessionId,
        base_model: Option<String>,
        options: SamplingOptions,
    ) -> Self {
        let inner = Inner {
            dispatch: Dispatch::new(&session.http, &options),
            session,
            id,
            base_model: OnceCell::new_with(base_model.filter(|name| !name.is_empty())),
            tokenizer_id: OnceCell::new(),
            options,
            next: AtomicI64::new(0),
            clone_id: OnceCell::new_with(Some(0)),
            feed: OnceCell::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What the server knows of the sampler; servers of older generations do not say.
    async fn ask(&self) -> Result<Option<SamplerInfo>> {
        let path = format!("samplers/{}", self.inner.id);
        match self.http().get(&path, &[]).await {
            Ok(info) => Ok(Some(info)),
            Err(Error::Api { status: 404 | 405, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks what lies under the checkpoint.
    async fn learn_base_model(&self) -> Result<&str> {
        let learn = || async {
            let info = self.ask().await?;
            if let Some(info) = &info {
                // Whoever was first says the same.
                drop(self.inner.tokenizer_id.set(info.tokenizer_id.clone()));
            }
            Ok(info.map(|info| info.base_model).unwrap_or_default())
        };
        self.inner.base_model.get_or_try_init(learn).await.map(String::as_str)
    }

    /// Where the tokenizer of the model under the weights is: as the server says, or else as the model's name
    /// tells.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub fn get_tokenizer_id(&self) -> ApiFuture<String> {
        let client = self.clone();
        self.http().start(async move {
            let base_model = client.learn_base_model().await?;
            let learn =
                || async { Ok::<_, Error>(client.ask().await?.and_then(|info| info.tokenizer_id)) };
            let said = client.inner.tokenizer_id.get_or_try_init(learn).await?;
            Ok(tokenizer_id(base_model, said.as_deref()))
        })
    }

    /// The sampler's id.
    pub fn sampling_session_id(&self) -> &str {
        self.inner.id.as_str()
    }

    /// The model under the weights.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub fn get_base_model(&self) -> ApiFuture<String> {
        let client = self.clone();
        self.http().start(async move { client.learn_base_model().await.map(str::to_owned) })
    }

    /// Draws `num_samples` continuations of a prompt.
    ///
    /// # Errors
    ///
    /// Settings that the server refuses; a prompt that is too long.
    pub fn sample(
        &self,
        prompt: impl Into<ModelInput>,
        num_samples: u32,
        params: SamplingParams,
    ) -> ApiFuture<SampleResponse> {
        self.sample_with(prompt, SampleOptions::new(num_samples, params))
    }

    /// [`Self::sample`] with everything else that can be asked for.
    ///
    /// # Errors
    ///
    /// As [`Self::sample`].
    pub fn sample_with(
        &self,
        prompt: impl Into<ModelInput>,
        options: SampleOptions,
    ) -> ApiFuture<SampleResponse> {
        let (client, prompt) = (self.clone(), prompt.into());
        self.http().start(async move {
            let bytes = prompt.estimated_bytes() as u64;
            let request = client.request(prompt, &options)?;
            client.inner.dispatch.run(&client, request, bytes, &options).await
        })
    }

    /// The logprob of each token of a text after those before it; the first is `None`.
    ///
    /// # Errors
    ///
    /// A text that is too long.
    pub fn compute_logprobs(&self, prompt: impl Into<ModelInput>) -> ApiFuture<Vec<Option<f32>>> {
        self.compute_logprobs_with(prompt, None)
    }

    /// [`Self::compute_logprobs`] of the last `n` tokens only: the others are `None`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn compute_logprobs_with(
        &self,
        prompt: impl Into<ModelInput>,
        last_n: Option<u32>,
    ) -> ApiFuture<Vec<Option<f32>>> {
        let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::default() };
        let mut options = SampleOptions::new(1, params).prompt_logprobs(true);
        options.prompt_logprobs_last_n = last_n;
        let sampled = self.sample_with(prompt, options);
        self.http().start(async move {
            sampled
                .await?
                .prompt_logprobs
                .ok_or_else(|| Error::response("no prompt_logprobs though they were asked for"))
        })
    }

    /// The next pause of the queue is logged at once, even if one was logged a moment ago.
    pub fn clear_queue_state_debounce(&self) {
        self.http().observers().clear_debounce();
    }

    fn request(&self, prompt: ModelInput, options: &SampleOptions) -> Result<SampleRequest> {
        options.check()?;
        let record = options.record_stability_info || self.inner.options.record_stability_info;
        Ok(SampleRequest {
            sampling_session_id: Some(self.inner.id.clone()),
            seq_id: None,
            base_model: None,
            model_path: None,
            num_samples: options.num_samples,
            prompt: prompt.json()?,
            sampling_params: options.params.clone(),
            prompt_logprobs: options.prompt_logprobs,
            topk_prompt_logprobs: options.topk_prompt_logprobs,
            topk_sample_logprobs: options.topk_sample_logprobs,
            target_prompt_logprobs: options.target_prompt_logprobs.clone().map(Into::into),
            prompt_alt_tokens_k: options.prompt_alt_tokens_k,
            prompt_logprobs_last_n: options.prompt_logprobs_last_n,
            record_stability_info: record,
        })
    }

    /// The feed of this client's samples, where the server has one. Somebody who observes the queue polls for
    /// himself: the feed does not tell its state.
    async fn feed(&self, poll: &PollOptions) -> Result<Option<&Feed>> {
        let http = self.http();
        let has_feed = http.server().await?.config.sample_use_retrieve_futures == Some(true);
        if !has_feed || !poll.observers.is_empty() || !http.observers().is_empty() {
            return Ok(None);
        }
        let inner = &self.inner;
        let start = || async {
            let clone_id = *inner.clone_id.get_or_try_init(|| self.join()).await?;
            Ok::<_, Error>(Feed::start(http, inner.id.clone(), clone_id))
        };
        inner.feed.get_or_try_init(start).await.map(Some)
    }

    /// What the client reports to the server, where the configuration says so.
    pub fn get_telemetry(&self) -> Option<&Telemetry> {
        self.inner.session.telemetry()
    }

    /// The number of the next sample.
    async fn number(&self) -> Result<SeqId> {
        let clone_id = *self.inner.clone_id.get_or_try_init(|| self.join()).await?;
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        Ok(SeqId(clone_id * SAMPLES_PER_CLONE + number))
    }

    pub(crate) fn http(&self) -> &Http {
        &self.inner.session.http
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.inner.session
    }
}

impl fmt::Debug for SamplingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplingClient").field("id", &self.inner.id).finish_non_exhaustive()
    }
}
