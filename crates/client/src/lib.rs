//! Drives a server of the Tinker training API: Tinsmith, or any other.
//!
//! Every call that is queued on the server returns an [`ApiFuture`] that has already started: submit
//! the next request before you await the first.
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
//! println!("{}", loss.await?.metrics["loss:sum"]);
//! step.await?;
//! let sampler = training.save_weights_and_get_sampling_client().await?;
//! let sample = sampler.sample(&[1, 2], 1, SamplingParams::default()).await?;
//! println!("{:?}", sample.sequences[0].tokens);
//! # Ok(()) }
//! ```

#![warn(missing_docs)]

pub mod chat;
mod config;
pub mod custom;
pub mod dataset;
mod datum;
mod error;
mod future;
mod http;
mod loss;
mod model_input;
mod sampling;
mod schedule;
mod service;
mod tensor;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tokenizer;
mod training;

pub use chat::{Conversation, TrainOn};
pub use config::Config;
pub use dataset::{Dataset, Row};
pub use datum::{Advantages, Datum, Keep, PreferencePair, ProvenanceSpan, Trajectory};
pub use error::{Error, Result};
pub use future::ApiFuture;
pub use loss::{
    Cispo, ClippedInputs, CrossEntropyInputs, CustomInput, Dro, Gspo, GspoInputs, Loss, LossFn,
    LossInputs, PolicyInputs, Ppo, SoftTargetInputs, StableReinforce, StableReinforceInputs,
};
pub use model_input::{ImageFormat, ModelInput, ModelInputChunk};
pub use sampling::{SampleResult, SampledSequence, SamplingClient};
pub use schedule::{Schedule, Shape};
pub use service::{LoraOptions, ServiceClient};
pub use tensor::TensorData;
pub use tinsmith_types::{
    futures::Category,
    sampling::{SamplingParams, Stop, StopReason},
    tensor::{DataType, Values},
    training::{AdamParams, LossConfigValue},
};
pub use tokenizer::{Tokenizer, load_tokenizer};
pub use training::{ForwardBackwardResult, Info, TrainingClient};
