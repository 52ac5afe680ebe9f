//! URLs of this server that need no key and expire.
//!
//! [`Base`] is what a client calls this server, [`sign`] makes a link to one of its paths, and a handler that
//! takes [`Signed`] answers only to links that were made here and still hold, also after a restart.

use axum::{
    extract::FromRequestParts,
    http::{
        HeaderMap, Uri, header,
        request::Parts,
        uri::{Authority, PathAndQuery},
    },
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    error::{Error, Result},
    state::{App, Shared},
};

/// A URL that is good without a key until it expires.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Link {
    pub(crate) url: String,
    /// In whole seconds.
    pub(crate) expires: Timestamp,
}

/// Signs a path, which stands as it travels (percent-encoded), for `config.link_life` from now on.
pub(crate) fn sign(app: &App, base: &Base, path: &str) -> Link {
    let life = SignedDuration::try_from(app.config.link_life).unwrap_or(SignedDuration::MAX);
    let expires = app.clock.now().saturating_add(life).unwrap_or(Timestamp::MAX).as_second();
    let signature = signature(app, path, expires).to_hex();
    Link {
        url: format!("{}{path}?expires={expires}&signature={signature}", base.0),
        expires: Timestamp::from_second(expires).unwrap_or(Timestamp::MAX),
    }
}

/// Scheme, host and port under which the client that asks reaches this server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Base(String);

impl FromRequestParts<Shared> for Base {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self> {
        base(&parts.uri, &parts.headers, app.config.behind_proxy)
    }
}

/// The request's own URL is a link that holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed;

impl FromRequestParts<Shared> for Signed {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self> {
        check(app, parts.uri.path_and_query())
    }
}

fn base(uri: &Uri, headers: &HeaderMap, behind_proxy: bool) -> Result<Base> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST.as_str()).or_else(|| uri.authority().map(Authority::as_str));
    let host = host.filter(|host| host.parse::<Authority>().is_ok() && !host.contains('@'));
    let Some(host) = host else {
        let detail = "the Host header has to say how you reach this server: links are made with it";
        return Err(Error::invalid("host_required", detail));
    };
    let scheme = if behind_proxy { text("x-forwarded-proto") } else { None };
    // Proxies in a row add to a list; the first of it is the client's.
    let scheme = scheme.and_then(|list| list.split(',').next()).map(str::trim);
    let is_https = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    Ok(Base(format!("{}://{host}", if is_https { "https" } else { "http" })))
}

fn check(app: &App, url: Option<&PathAndQuery>) -> Result<Signed> {
    let refuse = |code, detail: &str| Err(Error::Forbidden { code, detail: detail.to_owned() });
    let found = url.and_then(|url| Some((url.path(), read(url.query()?)?)));
    let Some((path, (expires, given))) = found else {
        return refuse(
            "link_invalid",
            "this URL wants the expires and signature it was given with",
        );
    };
    // Compared in constant time.
    if signature(app, path, expires) != given {
        return refuse("link_invalid", "the signature is not of this URL; ask for a new one");
    }
    if app.clock.now().as_second() >= expires {
        return refuse("link_expired", "this URL has expired; ask for a new one");
    }
    Ok(Signed)
}

/// `expires` and `signature`; other parameters are not looked at.
fn read(query: &str) -> Option<(i64, blake3::Hash)> {
    let value =
        |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let expires = value("expires")?.parse().ok()?;
    Some((expires, blake3::Hash::from_hex(value("signature")?).ok()?))
}

fn signature(app: &App, path: &str, expires: i64) -> blake3::Hash {
    let key = app.store.secret("links");
    blake3::keyed_hash(&key, format!("{expires} {path}").as_bytes())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check_base(headers: &[(&'static str, &'static str)], behind_proxy: bool) -> String {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_static(value))
            })
            .collect();
        match base(&Uri::from_static("/x"), &headers, behind_proxy) {
            Ok(Base(base)) => base,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn base_is_what_the_client_calls_the_server() {
        let proxied = [("host", "gpu.example"), ("x-forwarded-proto", "https, http")];
        assert_eq!(check_base(&[("host", "localhost:8000")], false), "http://localhost:8000");
        assert_eq!(check_base(&[("host", "[::1]:8000")], false), "http://[::1]:8000");
        assert_eq!(check_base(&proxied, true), "https://gpu.example");
        assert_eq!(check_base(&proxied, false), "http://gpu.example");
        for host in ["", "a b", "a/b", "me@evil.example"] {
            assert!(check_base(&[("host", host)], true).starts_with("the Host header"), "{host}");
        }
        assert!(check_base(&[], true).starts_with("the Host header"));
    }

    #[test]
    fn query_is_read_in_any_order() {
        let hash = blake3::hash(b"x");
        let hex = hash.to_hex();
        assert_eq!(read(&format!("expires=7&signature={hex}")), Some((7, hash)));
        assert_eq!(read(&format!("a=1&signature={hex}&expires=7&b")), Some((7, hash)));
        for broken in ["", "expires=7", "expires=x&signature=00", "expires=7&signature=zz"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
