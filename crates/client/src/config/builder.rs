//! Puts a [`Config`] together, and checks it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    Config, ConfigInner, DEFAULT_HEARTBEAT_INTERVAL, DEFAULT_TIMEOUT, Secret, env::Environment,
};
use crate::{
    Clock, Error, PollOptions, Result, SystemClock,
    http::{
        limits::{BreakerPolicy, RateLimit},
        retry::RetryPolicy,
    },
};

const LOCAL_URL: &str = "http://localhost:8000";
/// What a server without keys is given.
const LOCAL_KEY: &str = "tml-local";
/// Idle connections of each kind that are kept.
const MAX_CONNECTIONS: usize = 64;

/// Builds a [`Config`].
#[derive(Clone)]
#[must_use]
pub struct ConfigBuilder {
    pub(super) inner: ConfigInner,
}

impl std::fmt::Debug for ConfigBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.clone().assemble().fmt(f)
    }
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        Self::of(ConfigInner {
            base_url: LOCAL_URL.to_owned(),
            api_key: Secret(LOCAL_KEY.to_owned()),
            project_id: None,
            display_name: None,
            timeout: DEFAULT_TIMEOUT,
            poll: PollOptions::default(),
            retry: RetryPolicy::default(),
            heartbeat_interval: DEFAULT_HEARTBEAT_INTERVAL,
            tags: vec!["tinsmith-rust".to_owned()],
            user_metadata: BTreeMap::new(),
            default_headers: Vec::new(),
            default_query: Vec::new(),
            proxy: None,
            ca_certificates: Vec::new(),
            telemetry: false,
            circuit_breaker: None,
            max_connections: MAX_CONNECTIONS,
            clock: Arc::new(SystemClock),
        })
    }
}

impl ConfigBuilder {
    pub(super) fn of(inner: ConfigInner) -> Self {
        Self { inner }
    }

    /// Reads the environment:
    ///
    /// | variable | sets |
    /// |---|---|
    /// | `TINKER_BASE_URL` | [`Self::base_url`] (default `http://localhost:8000`) |
    /// | `TINKER_API_KEY` | [`Self::api_key`]; needed for a server that is not on this machine |
    /// | `TINKER_PROJECT_ID` | [`Self::project_id`] |
    /// | `TINKER_TAGS` | [`Self::tags`], separated by commas |
    /// | `TINKER_TELEMETRY` | [`Self::telemetry`]: `1`/`true` or `0`/`false` (default) |
    /// | `CLOUDFLARE_ACCESS_CLIENT_ID`, `CLOUDFLARE_ACCESS_CLIENT_SECRET` | the headers of Cloudflare Access |
    /// | `TINSMITH_PROXY` | [`Self::proxy`] |
    ///
    /// # Errors
    ///
    /// A variable that is not UTF-8 or has no meaning, or no key where one is needed.
    pub fn from_env() -> Result<Self> {
        Environment::of_process().builder()
    }

    /// Where the server is, such as `http://127.0.0.1:8000`; a trailing slash is left off.
    pub fn base_url(mut self, base_url: impl Into<String>) -> Self {
        let mut base_url = base_url.into();
        base_url.truncate(base_url.trim_end_matches('/').len());
        self.inner.base_url = base_url;
        self
    }

    /// Sent as `X-API-Key`. Any text: it is the server's business what a key looks like.
    pub fn api_key(mut self, api_key: impl Into<String>) -> Self {
        self.inner.api_key = Secret(api_key.into());
        self
    }

    /// The project that sessions count to.
    pub fn project_id(mut self, project_id: impl Into<String>) -> Self {
        self.inner.project_id = Some(project_id.into());
        self
    }

    /// A name of the session for people.
    pub fn display_name(mut self, name: impl Into<String>) -> Self {
        self.inner.display_name = Some(name.into());
        self
    }

    /// For one HTTP request (default 60 s).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.inner.timeout = timeout;
        self
    }

    /// For the result of a queued request (default 1 h); `None` is for ever.
    pub fn poll_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.inner.poll.timeout = timeout;
        self
    }

    /// How results are waited for.
    pub fn poll_options(mut self, options: PollOptions) -> Self {
        self.inner.poll = options;
        self
    }

    /// How often a request is sent again.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.inner.retry = policy;
        self
    }

    /// Repeats of one HTTP request within one attempt (default 10).
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.inner.retry.max_retries = retries;
        self
    }

    /// For a request that the server cannot take now, all its attempts together (default 5 min).
    pub fn retry_timeout(mut self, timeout: Duration) -> Self {
        self.inner.retry.timeout = timeout;
        self
    }

    /// Between two signs of life of a session (default 10 s).
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.inner.heartbeat_interval = interval;
        self
    }

    /// Labels of sessions.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.inner.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Notes on sessions.
    pub fn user_metadata(mut self, metadata: BTreeMap<String, Value>) -> Self {
        self.inner.user_metadata = metadata;
        self
    }

    /// One more header of every request.
    pub fn default_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.inner.default_headers.push((name.into(), Secret(value.into())));
        self
    }

    /// One more query parameter of every request.
    pub fn default_query(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.inner.default_query.push((name.into(), value.into()));
        self
    }

    /// An HTTP proxy, with `user:password@` where it asks for them.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.inner.proxy = Some(Secret(url.into()));
        self
    }

    /// A certificate authority (PEM) that is trusted besides the usual ones.
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.inner.ca_certificates.push(pem.into());
        self
    }

    /// Send reports of what the client does to the server (default: no).
    pub fn telemetry(mut self, enabled: bool) -> Self {
        self.inner.telemetry = enabled;
        self
    }

    /// Stop sending for a while when calls fail one after another (default: off).
    pub fn circuit_breaker(mut self, policy: BreakerPolicy) -> Self {
        self.inner.circuit_breaker = Some(policy);
        self
    }

    /// Idle connections of each kind that are kept (default 64).
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.inner.max_connections = connections;
        self
    }

    /// What the client goes by when it waits between attempts: tests give one that does not wait.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.inner.clock = clock;
        self
    }

    /// The configuration.
    ///
    /// # Errors
    ///
    /// [`Error::Validation`] that names the setting.
    pub fn build(self) -> Result<Config> {
        let inner = &self.inner;
        let url = reqwest::Url::parse(&inner.base_url).map_err(|error| {
            Error::validation(format!("base_url `{}` is no address: {error}", inner.base_url))
        })?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            let message = format!(
                "base_url `{}` has to begin with http:// or https:// and name a host",
                inner.base_url
            );
            return Err(Error::validation(message));
        }
        if inner.api_key.0.is_empty() || !is_header_text(&inner.api_key.0) {
            let message = "api_key has to be visible ASCII text: it travels in a header";
            return Err(Error::validation(message));
        }
        for (name, limit) in
            [("timeout", inner.timeout), ("heartbeat_interval", inner.heartbeat_interval)]
        {
            if limit.is_zero() {
                return Err(Error::validation(format!("{name} has to be more than 0 s")));
            }
        }
        for (name, value) in &inner.default_headers {
            if name.is_empty() || !is_header_text(name) || !is_header_text(&value.0) {
                return Err(Error::validation(format!(
                    "header `{name}` is not visible ASCII text"
                )));
            }
        }
        Ok(self.assemble())
    }

    pub(super) fn assemble(self) -> Config {
        Config { inner: Arc::new(self.inner), rate_limit: Arc::new(RateLimit::default()) }
    }
}

fn is_header_text(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_and_any_address_of_http_will_do() {
        let config = Config::builder().api_key("test-key").base_url("http://localhost:8080");
        assert_eq!(config.build().unwrap().base_url(), "http://localhost:8080");
    }

    #[test]
    fn wrong_settings_are_named() {
        let message = |builder: ConfigBuilder| builder.build().unwrap_err().to_string();
        let builder = Config::builder;
        assert!(message(builder().base_url("localhost:8000")).contains("base_url"));
        assert!(message(builder().base_url("")).contains("base_url"));
        assert!(message(builder().api_key("")).contains("api_key"));
        assert!(message(builder().api_key("a\nb")).contains("api_key"));
        assert!(message(builder().timeout(Duration::ZERO)).contains("timeout"));
        assert!(message(builder().default_header("x\n", "y")).contains("header"));
    }
}
