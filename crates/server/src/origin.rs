//! Keeps web pages out: no browser tab may train or sample because somebody has it open.
//!
//! A page of another origin is told by its `Origin`. A page whose name was made to resolve to this machine
//! is told by the name in `Host`, which only a server of loopback addresses can know to be foreign.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    error::{Error, Result},
    state::Shared,
};

/// Wraps all handlers. Programs that are no browsers send no `Origin`, and pass.
pub(crate) async fn same(State(app): State<Shared>, request: Request, next: Next) -> Response {
    match check(request.headers(), app.config.loopback_only) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(headers: &HeaderMap, loopback_only: bool) -> Result<()> {
    let host = text(headers, &header::HOST);
    if let Some(host) = &host
        && loopback_only
        && !is_loopback(host)
    {
        let detail = format!(
            "the host {host:?} is no name of the address that this server listens on; use localhost, \
             127.0.0.1 or [::1]"
        );
        return Err(Error::Forbidden { code: "foreign_host", detail });
    }
    let Some(origin) = text(headers, &header::ORIGIN) else { return Ok(()) };
    let from = origin.split_once("://").map(|(_scheme, authority)| authority);
    if from.is_some_and(|from| host.is_some_and(|host| from.eq_ignore_ascii_case(&host))) {
        return Ok(());
    }
    let detail = format!("web pages of {origin:?} may not use this server");
    Err(Error::Forbidden { code: "foreign_origin", detail })
}

/// What is no text stays different from every name.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// An address cannot be made to resolve elsewhere, so any loopback address is as good as `localhost`.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(headers: &[(HeaderName, &'static str)], loopback_only: bool) -> &'static str {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), axum::http::HeaderValue::from_static(value)))
            .collect();
        match check(&headers, loopback_only) {
            Ok(()) => "fine",
            Err(Error::Forbidden { code, .. }) => code,
            Err(_) => "another error",
        }
    }

    #[test]
    fn loopback_servers_have_loopback_names() {
        let host = |name: &'static str| code(&[(header::HOST, name)], true);
        for name in
            ["localhost", "LocalHost:80", "127.0.0.1:8000", "127.0.0.1", "[::1]", "[::1]:8000"]
        {
            assert_eq!(host(name), "fine", "{name}");
        }
        for name in [
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1:8000",
            "0.0.0.0:8000",
            "",
            "a b",
        ] {
            assert_eq!(host(name), "foreign_host", "{name}");
        }
        assert_eq!(code(&[], true), "fine");
        assert_eq!(code(&[(header::HOST, "gpu.example:8000")], false), "fine");
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let from = |origin: &'static str| {
            code(&[(header::HOST, "localhost:8000"), (header::ORIGIN, origin)], true)
        };
        assert_eq!(from("http://localhost:8000"), "fine");
        assert_eq!(from("http://LOCALHOST:8000"), "fine");
        for origin in [
            "http://evil.example",
            "http://localhost:3000",
            "http://localhost",
            "null",
            "",
            "localhost:8000",
        ] {
            assert_eq!(from(origin), "foreign_origin", "{origin}");
        }
        assert_eq!(code(&[(header::ORIGIN, "http://a")], false), "foreign_origin");
        let page = [(header::HOST, "gpu.example"), (header::ORIGIN, "https://gpu.example")];
        assert_eq!(code(&page, false), "fine");
    }
}
