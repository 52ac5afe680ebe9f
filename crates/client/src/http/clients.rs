//! The HTTP clients under all requests.

use std::time::Duration;

use reqwest::{
    Client,
    header::{HeaderMap, HeaderName, HeaderValue},
};

use super::{chain, tls};
use crate::{Config, Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const USER_AGENT: &str = concat!("tinsmith-rust/", env!("CARGO_PKG_VERSION"));

/// Makes HTTP clients of the configuration.
pub(super) fn of(config: &Config) -> Result<impl Fn() -> Result<Client> + use<>> {
    let config = config.clone();
    let tls = tls::config(&config.inner.ca_certificates)?;
    let mut headers = HeaderMap::new();
    for (name, value) in &config.inner.default_headers {
        let wrong = || Error::validation(format!("header `{name}` cannot be sent"));
        let name = HeaderName::try_from(name.as_str()).map_err(|_| wrong())?;
        headers.append(name, HeaderValue::try_from(value.0.as_str()).map_err(|_| wrong())?);
    }
    Ok(move || {
        builder(&config, tls.clone())?
            .default_headers(headers.clone())
            .pool_max_idle_per_host(config.inner.max_connections)
            // The key would go wherever a redirect leads.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Error::validation(chain(&error)))
    })
}

/// What all clients have.
fn builder(config: &Config, tls: rustls::ClientConfig) -> Result<reqwest::ClientBuilder> {
    let builder = Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        .tls_backend_preconfigured(tls);
    let Some(proxy) = &config.inner.proxy else { return Ok(builder) };
    let proxy = reqwest::Proxy::all(&proxy.0)
        .map_err(|error| Error::validation(format!("proxy cannot be used: {error}")))?;
    Ok(builder.proxy(proxy))
}

/// One for signed links: neither the key nor the default headers go there.
pub(super) fn of_links(config: &Config, idle_max: Duration) -> Result<Client> {
    builder(config, tls::config(&config.inner.ca_certificates)?)?
        .read_timeout(idle_max)
        .build()
        .map_err(|error| Error::validation(chain(&error)))
}
