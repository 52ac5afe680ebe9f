//! The clients for plain threads: every method waits, and returns a [`Result`].
//!
//! ```no_run
//! use tinsmith::{AdamParams, Config, Datum, LoraOptions, blocking::ServiceClient};
//!
//! fn main() -> tinsmith::Result<()> {
//!     let service = ServiceClient::connect(Config::from_env()?)?;
//!     let training = service.create_lora_training_client(LoraOptions::new("base").rank(8))?;
//!     let datum = Datum::next_token(&[1, 2, 3], &[2, 3, 4], &[1.0, 1.0, 1.0])?;
//!     let output = training.forward_backward(vec![datum], "cross_entropy")?;
//!     training.optim_step(AdamParams { learning_rate: 1e-3, ..AdamParams::default() })?;
//!     println!("{:?}", output.loss());
//!     Ok(())
//! }
//! ```

use std::time::Duration;

pub use crate::faces::twins::{
    AdminClient, RestClient, SamplingClient, ServiceClient, TrainingClient,
};
use crate::{ApiFuture, Config, ObserverGuard, QueueStateObserver, Result, future::limited};

impl ServiceClient {
    /// Opens a session and keeps it alive in the background.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or refuses; inside an async runtime, an error that says so.
    pub fn connect(config: Config) -> Result<Self> {
        crate::ServiceClient::connect_blocking(config).map(Into::into)
    }

    /// [`crate::ServiceClient::on_queue_state_change`].
    pub fn on_queue_state_change(
        &self,
        observer: impl QueueStateObserver + 'static,
    ) -> ObserverGuard {
        self.inner.on_queue_state_change(observer)
    }

    /// The session's id.
    pub fn session_id(&self) -> &crate::SessionId {
        self.inner.session_id()
    }

    /// Whether it was not closed.
    pub fn is_alive(&self) -> bool {
        self.inner.is_alive()
    }
}

impl RestClient {
    /// [`crate::RestClient::new`].
    ///
    /// # Errors
    ///
    /// The configuration cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        crate::RestClient::new(config).map(Into::into)
    }
}

impl AdminClient {
    /// [`crate::AdminClient::new`].
    ///
    /// # Errors
    ///
    /// The configuration cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        crate::AdminClient::new(config).map(Into::into)
    }
}

impl TrainingClient {
    /// The run's id.
    pub fn model_id(&self) -> &str {
        self.inner.model_id()
    }

    /// [`Self::save_weights_and_get_sampling_client`] with a limit of time.
    ///
    /// # Errors
    ///
    /// Those of the call; [`crate::Error::Timeout`] after `limit`.
    pub fn save_weights_and_get_sampling_client_sync(
        &self,
        limit: Duration,
    ) -> Result<SamplingClient> {
        self.inner.save_weights_and_get_sampling_client().wait_timeout(limit).map(Into::into)
    }
}

/// [`crate::await_many`] for plain threads: all results in the order of the calls; none is given up because
/// another failed.
pub fn await_many<T: Send + 'static>(
    futures: Vec<ApiFuture<T>>,
    limit: Option<Duration>,
) -> Vec<Result<T>> {
    limited(futures, limit).into_iter().map(ApiFuture::wait).collect()
}

/// [`crate::try_await_many`] for plain threads.
///
/// # Errors
///
/// The first error in the order of the calls; all calls are waited for all the same.
pub fn try_await_many<T: Send + 'static>(
    futures: Vec<ApiFuture<T>>,
    limit: Option<Duration>,
) -> Result<Vec<T>> {
    await_many(futures, limit).into_iter().collect()
}
