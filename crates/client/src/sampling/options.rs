//! What a sampler is made of, and what can be asked of it.

use std::time::Duration;

use tinsmith_types::sampling::SamplingParams;
pub use tinsmith_types::weights::SamplerKind;

use super::Source;
use crate::{Error, PollOptions, QueueStateObserver, Result, TensorData, training::check_path};

/// How a sampling client is made. The name of a base model, or the `tinker://` path of a checkpoint, will do.
#[derive(Clone, Debug, Default)]
pub struct SamplingOptions {
    base_model: Option<String>,
    model_path: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) kind: Option<SamplerKind>,
    pub(crate) retry: Option<SampleRetry>,
    pub(crate) record_stability_info: bool,
    pub(crate) poll: Option<PollOptions>,
}

impl SamplingOptions {
    /// Nothing chosen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A base model as it is.
    #[must_use]
    pub fn base_model(mut self, name: impl Into<String>) -> Self {
        self.base_model = Some(name.into());
        self
    }

    /// A checkpoint: `tinker://<run>/sampler_weights/<name>`, or `…/weights/<name>` where the server takes it.
    #[must_use]
    pub fn model_path(mut self, path: impl Into<String>) -> Self {
        self.model_path = Some(path.into());
        self
    }

    /// Weights that are saved for it stay under this name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Weights that are saved for it stand still (`Snapshot`, the default) or move on with every such save.
    #[must_use]
    pub fn kind(mut self, kind: SamplerKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// How a sample is repeated when it fails.
    #[must_use]
    pub fn retry(mut self, retry: SampleRetry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// The server keeps what `stable_reinforce` needs of each sample.
    #[must_use]
    pub fn record_stability_info(mut self, record: bool) -> Self {
        self.record_stability_info = record;
        self
    }

    /// How results are waited for, instead of the configuration's.
    #[must_use]
    pub fn poll_options(mut self, options: PollOptions) -> Self {
        self.poll = Some(options);
        self
    }

    /// Exactly one thing to sample from.
    pub(crate) fn source(&self) -> Result<Source> {
        match (&self.base_model, &self.model_path) {
            (Some(name), None) if !name.trim().is_empty() => Ok(Source::BaseModel(name.clone())),
            (None, Some(path)) => check_path(path).map(|()| Source::Path(path.clone())),
            (Some(_), None) => {
                Err(Error::validation("base_model is empty: name a model of the server"))
            }
            (Some(_), Some(_)) => {
                Err(Error::validation("base_model and model_path exclude each other: give one"))
            }
            (None, None) => Err(Error::validation("give base_model or model_path to sample from")),
        }
    }
}

impl From<&str> for SamplingOptions {
    fn from(source: &str) -> Self {
        if source.starts_with("tinker://") {
            Self::new().model_path(source)
        } else {
            Self::new().base_model(source)
        }
    }
}

impl From<String> for SamplingOptions {
    fn from(source: String) -> Self {
        source.as_str().into()
    }
}

/// How a sample is repeated as a new one when it failed for no fault of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRetry {
    /// Repeat at all (default: yes).
    pub enabled: bool,
    /// The first pause (default 0.5 s); it doubles.
    pub base_delay: Duration,
    /// The longest pause (default 10 s).
    pub max_delay: Duration,
    /// Each pause is shortened by up to this part of it (default 0.25).
    pub jitter: f64,
    /// Give up when no sample of this client has come back for so long (default 2 h).
    pub progress_timeout: Duration,
    /// Samples in flight at a time (default: as the server says, or 2,000).
    pub max_connections: Option<usize>,
}

impl Default for SampleRetry {
    fn default() -> Self {
        Self {
            enabled: true,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(10),
            jitter: 0.25,
            progress_timeout: Duration::from_secs(7200),
            max_connections: None,
        }
    }
}

/// Everything that can be asked of a sample.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Independent continuations.
    pub num_samples: u32,
    /// How tokens are drawn.
    pub params: SamplingParams,
    /// The logprob of each prompt token.
    pub prompt_logprobs: bool,
    /// The most probable tokens at each prompt position.
    pub topk_prompt_logprobs: u32,
    /// The most probable tokens at each drawn position.
    pub topk_sample_logprobs: u32,
    /// Token ids `[prompt - 1, k]` whose logprobs are wanted; -1 is none.
    pub target_prompt_logprobs: Option<TensorData>,
    /// Tokens drawn at each prompt position.
    pub prompt_alt_tokens_k: u32,
    /// Only so many of the last prompt tokens are scored.
    pub prompt_logprobs_last_n: Option<u32>,
    /// The server keeps what `stable_reinforce` needs.
    pub record_stability_info: bool,
    /// How the result is waited for, instead of the client's way.
    pub poll: Option<PollOptions>,
    pub(crate) observers: Vec<std::sync::Arc<dyn QueueStateObserver>>,
    pub(crate) poll_timeout: Option<Duration>,
}

impl SampleOptions {
    /// Continuations alone.
    pub fn new(num_samples: u32, params: SamplingParams) -> Self {
        Self {
            num_samples,
            params,
            prompt_logprobs: false,
            topk_prompt_logprobs: 0,
            topk_sample_logprobs: 0,
            target_prompt_logprobs: None,
            prompt_alt_tokens_k: 0,
            prompt_logprobs_last_n: None,
            record_stability_info: false,
            poll: None,
            observers: Vec::new(),
            poll_timeout: None,
        }
    }

    /// The logprob of each prompt token.
    #[must_use]
    pub fn prompt_logprobs(mut self, wanted: bool) -> Self {
        self.prompt_logprobs = wanted;
        self
    }

    /// Told of the queue's changes.
    #[must_use]
    pub fn observer(mut self, observer: impl QueueStateObserver + 'static) -> Self {
        self.observers.push(std::sync::Arc::new(observer));
        self
    }

    /// For all polls of the result together.
    #[must_use]
    pub fn poll_timeout(mut self, timeout: Duration) -> Self {
        self.poll_timeout = Some(timeout);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.num_samples == 0 {
            return Err(Error::validation("num_samples has to be at least 1"));
        }
        if self.prompt_logprobs_last_n.is_some() && !self.prompt_logprobs {
            return Err(Error::validation("prompt_logprobs_last_n needs prompt_logprobs"));
        }
        Ok(())
    }

    /// How the result is waited for.
    pub(crate) fn poll_options(&self, default: &PollOptions) -> PollOptions {
        let mut options = self.poll.clone().unwrap_or_else(|| default.clone());
        options.observers.extend(self.observers.iter().cloned());
        options.timeout = self.poll_timeout.or(options.timeout);
        options
    }
}

impl std::fmt::Debug for dyn QueueStateObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueueStateObserver")
    }
}
