//! Drives a server of the Tinker training API: Tinsmith, or any other.
//!
//! Every call that asks the server returns an [`ApiFuture`] that has already started: submit the next request
//! before you await the first. In plain threads, `.wait()` for it, or use [`blocking`].
//!
//! ```no_run
//! # async fn run() -> tinsmith::Result<()> {
//! use tinsmith::{AdamParams, Config, Datum, LoraOptions, SamplingParams, ServiceClient};
//!
//! let service = ServiceClient::connect(Config::new("http://127.0.0.1:8000")).await?;
//! let training = service.create_lora_training_client(LoraOptions::new("base").rank(8)).await?;
//! let datum = Datum::next_token(&[1, 2, 3], &[2, 3, 4], &[1.0, 1.0, 1.0])?;
//! let loss = training.forward_backward(vec![datum], "cross_entropy");
//! let step = training.optim_step(AdamParams { learning_rate: 1e-3, ..AdamParams::default() });
//! println!("{:?}", loss.await?.loss());
//! step.await?;
//! let sampler = training.save_weights_and_get_sampling_client().await?;
//! let sample = sampler.sample(&[1, 2], 1, SamplingParams::default()).await?;
//! println!("{:?}", sample.sequences[0].tokens);
//! # Ok(()) }
//! ```
//!
//! Data: [`Datum`] with a constructor for each way to train, [`Conversation`] through the model's chat template,
//! [`dataset`] for JSONL files, [`Loss`] with its settings, [`Schedule`] for learning rates.
//!
//! Features, none of them on: `testing` is a mock server and a test clock, `hub` fetches tokenizers from
//! the Hugging Face hub.

#![deny(missing_docs)]

mod admin;
pub mod api;
pub mod blocking;
pub mod chat;
mod clock;
mod config;
pub mod custom;
pub mod dataset;
mod datum;
mod download;
mod error;
mod faces;
mod future;
#[cfg(doctest)]
mod guide;
mod http;
mod loss;
mod metrics;
mod model_input;
mod poll;
mod queue_state;
mod recovery;
mod rest;
mod runtime;
mod sampling;
mod schedule;
mod service;
mod session;
mod telemetry;
mod tensor;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tokenizer;
mod training;
pub mod wire;

pub use admin::{AdminClient, AuditEventType};
pub use chat::{Conversation, TrainOn};
pub use clock::{Clock, Sleep, SystemClock};
pub use config::{
    Config, ConfigBuilder, DEFAULT_HEARTBEAT_INTERVAL, DEFAULT_POLL_TIMEOUT, DEFAULT_TIMEOUT,
};
pub use custom::{
    CustomLoss, Expression, LossHandle, RegularizedOutput, regularizers::Regularized,
};
pub use dataset::{Dataset, Row};
pub use datum::{Advantages, Datum, Keep, PreferencePair, ProvenanceSpan, Trajectory};
pub use download::{DownloadOptions, DownloadProgress, Downloaded, download_dir};
pub use error::{Category, Error, ErrorKind, Result};
pub use future::{ApiFuture, await_many, try_await_many};
pub use http::{
    limits::{BreakerPolicy, BreakerState, CircuitBreaker},
    retry::{Backoff, DEFAULT_MAX_RETRIES, DEFAULT_RETRY_TIMEOUT, RetryPolicy},
};
pub use loss::{
    Cispo, ClippedInputs, CrossEntropyInputs, CustomInput, Dro, Gspo, GspoInputs, Loss, LossFn,
    LossInputs, PolicyInputs, Ppo, SoftTargetInputs, StableReinforce, StableReinforceInputs,
};
pub use metrics::{Latency, MetricsSnapshot};
pub use model_input::{ImageFormat, ModelInput, ModelInputChunk};
pub use poll::{PollOptions, RequestRef};
pub use queue_state::{ObserverGuard, QueueState, QueueStateChange, QueueStateObserver};
pub use recovery::{Recovered, RecoveryMonitor, RecoveryPolicy, RecoveryStrategy};
pub use rest::{AccessScope, BlockingPages, ListOptions, Pages, RestClient, TinkerPath, Whoami};
pub use sampling::{
    PromptAltTokens, SampleOptions, SampleResponse, SampleRetry, SampledSequence, SamplerKind,
    SamplingClient, SamplingOptions, TopkRow,
};
pub use schedule::{Schedule, Shape};
pub use service::{CopyOptions, FromStateOptions, LoraOptions, ServiceClient};
pub use telemetry::{Severity, Telemetry};
pub use tensor::TensorData;
pub use tinsmith_types::{
    ids::SessionId,
    sampling::{SamplingParams, Stop, StopReason},
    session::FinishReason,
    tensor::{DataType, Values},
    training::{AdamParams, LoraConfig, LossConfigValue, OptimizerConfig},
};
pub use tokenizer::{Tokenizer, load_tokenizer};
pub use training::{ForwardBackwardOutput, OptimParams, SaveOptions, TrainingClient};
