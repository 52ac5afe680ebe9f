//! Where the server is, and how long to wait for it.

use std::time::Duration;

use crate::{Error, Result};

/// Settings of a [`crate::ServiceClient`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Without a trailing slash, such as `http://127.0.0.1:8000`.
    pub base_url: String,
    /// Sent as `X-API-Key`; a server without keys takes any.
    pub api_key: String,
    /// For one HTTP request (default 60 s).
    pub timeout: Duration,
    /// For a request that the server cannot take now (default 5 min): it is sent again meanwhile.
    pub retry_timeout: Duration,
    /// For the result of a queued request (default 1 h).
    pub result_timeout: Duration,
    /// Between two signs of life of a session (default 10 s).
    pub heartbeat_interval: Duration,
}

impl Config {
    /// The defaults, for a server without keys.
    pub fn new(base_url: impl Into<String>) -> Self {
        let mut base_url: String = base_url.into();
        base_url.truncate(base_url.trim_end_matches('/').len());
        Self {
            base_url,
            api_key: "tml-local".to_owned(),
            timeout: Duration::from_secs(60),
            retry_timeout: Duration::from_secs(300),
            result_timeout: Duration::from_secs(3600),
            heartbeat_interval: Duration::from_secs(10),
        }
    }

    /// From `TINKER_BASE_URL` (default `http://localhost:8000`) and `TINKER_API_KEY`.
    ///
    /// # Errors
    ///
    /// A variable that is not UTF-8.
    #[expect(clippy::disallowed_methods, reason = "this is where users' configuration is read")]
    pub fn from_env() -> Result<Self> {
        let read = |name: &str| match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(error) => Err(Error::Validation { message: format!("read {name}: {error}") }),
        };
        let base_url = read("TINKER_BASE_URL")?;
        let mut config = Self::new(base_url.unwrap_or_else(|| "http://localhost:8000".to_owned()));
        if let Some(key) = read("TINKER_API_KEY")? {
            config.api_key = key;
        }
        Ok(config)
    }
}
