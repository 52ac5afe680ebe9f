//! Where the server is, who asks, and how long to wait.

mod builder;
mod env;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde_json::Value;

pub use builder::ConfigBuilder;

use crate::{
    Clock, PollOptions, Result,
    http::{limits::RateLimit, retry::RetryPolicy},
};

/// For one HTTP request.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// For the result of a queued request.
pub const DEFAULT_POLL_TIMEOUT: Duration = Duration::from_secs(3600);
/// Between two signs of life of a session.
pub const DEFAULT_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Settings of a [`crate::ServiceClient`]. Cheap to clone; clones share the pause that a busy server asks for.
#[derive(Clone)]
pub struct Config {
    pub(crate) inner: Arc<ConfigInner>,
    /// Shared by all that use this configuration.
    pub(crate) rate_limit: Arc<RateLimit>,
}

#[derive(Clone)]
pub(crate) struct ConfigInner {
    pub(crate) base_url: String,
    pub(crate) api_key: Secret,
    pub(crate) project_id: Option<String>,
    pub(crate) display_name: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) poll: PollOptions,
    pub(crate) retry: RetryPolicy,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) tags: Vec<String>,
    pub(crate) user_metadata: BTreeMap<String, Value>,
    pub(crate) default_headers: Vec<(String, Secret)>,
    pub(crate) default_query: Vec<(String, String)>,
    pub(crate) proxy: Option<Secret>,
    pub(crate) ca_certificates: Vec<Vec<u8>>,
    pub(crate) telemetry: bool,
    pub(crate) circuit_breaker: Option<crate::http::limits::BreakerPolicy>,
    pub(crate) max_connections: usize,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Config {
    /// The defaults, for a server without keys.
    pub fn new(base_url: impl Into<String>) -> Self {
        ConfigBuilder::default().base_url(base_url).assemble()
    }

    /// To set more than the address.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// From `TINKER_BASE_URL` (default `http://localhost:8000`), `TINKER_API_KEY` and the other variables
    /// that [`ConfigBuilder::from_env`] lists.
    ///
    /// # Errors
    ///
    /// A variable that cannot be read, and no key for a server that is not on this machine.
    pub fn from_env() -> Result<Self> {
        ConfigBuilder::from_env()?.build()
    }

    /// This configuration as a builder, to change some of it.
    pub fn to_builder(&self) -> ConfigBuilder {
        ConfigBuilder::of(self.inner.as_ref().clone())
    }

    /// Without a trailing slash.
    pub fn base_url(&self) -> &str {
        &self.inner.base_url
    }

    /// For one HTTP request.
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    /// How results are waited for.
    pub fn poll_options(&self) -> &PollOptions {
        &self.inner.poll
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        f.debug_struct("Config")
            .field("base_url", &inner.base_url)
            .field("api_key", &inner.api_key)
            .field("project_id", &inner.project_id)
            .field("timeout", &inner.timeout)
            .field("poll", &inner.poll)
            .field("retry", &inner.retry)
            .field("heartbeat_interval", &inner.heartbeat_interval)
            .field("tags", &inner.tags)
            .field("default_headers", &inner.default_headers)
            .field("proxy", &inner.proxy)
            .field("telemetry", &inner.telemetry)
            .finish_non_exhaustive()
    }
}

/// A text that is never shown whole.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell two keys apart, too little to use one.
        let begin: String = self.0.chars().take(4).collect();
        if self.0.chars().count() > 12 { write!(f, "{begin}…") } else { f.write_str("…") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let config = Config::builder()
            .api_key("tml-0123456789-very-secret")
            .base_url("http://localhost:8080/")
            .default_header("authorization", "Bearer 0123456789abcdef")
            .proxy("http://user:password@proxy.example:3128")
            .build()
            .unwrap();
        let shown = format!("{config:?}");
        for secret in ["very-secret", "0123456789", "password"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert_eq!(config.base_url(), "http://localhost:8080");
    }

    #[test]
    fn defaults_are_those_of_the_documents() {
        let config = Config::new("http://localhost:8000");
        assert_eq!(config.timeout(), Duration::from_secs(60));
        assert_eq!(config.poll_options().timeout, Some(DEFAULT_POLL_TIMEOUT));
        assert!(!config.inner.telemetry);
    }
}
