//! A request that a test server got, as tests look at it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use tinsmith_types::proto::{ForwardBackwardRequest, describe};

/// A request that the server got.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Requests that had come before.
    pub number: usize,
    /// Such as `POST`.
    pub method: String,
    /// Such as `/api/v1/optim_step`, percent signs decoded.
    pub path: String,
    /// Decoded.
    pub query: BTreeMap<String, String>,
    /// Their names in small letters.
    pub headers: BTreeMap<String, String>,
    /// JSON as it is; protobuf as recordings have it, with the name of the message under `message`; null where
    /// there is no body, or one that cannot be read.
    pub body: Value,
    /// What travelled.
    pub raw: Bytes,
}

impl Seen {
    /// The path behind `/api/v1/`.
    pub fn endpoint(&self) -> &str {
        self.path.strip_prefix("/api/v1/").unwrap_or(&self.path)
    }

    /// A header, by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// A text in the body, such as `model_id`.
    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.body[field].as_str()
    }

    /// A whole number in the body, such as `seq_id`.
    pub(super) fn number_in(&self, field: &str) -> Option<i64> {
        self.body[field].as_i64()
    }

    /// The message, where the body is one.
    pub(super) fn forward_backward(&self) -> Option<ForwardBackwardRequest> {
        message(&self.headers, &self.raw)
    }

    pub(super) fn new(number: usize, head: &hyper::http::request::Parts, raw: Bytes) -> Self {
        let header = |(name, value): (&hyper::http::HeaderName, &hyper::http::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let headers: BTreeMap<String, String> = head.headers.iter().map(header).collect();
        let body = decode(&headers, &raw).unwrap_or(Value::Null);
        Self {
            number,
            method: head.method.as_str().to_owned(),
            path: percent_decoded(head.uri.path()),
            query: head.uri.query().map(pairs).unwrap_or_default(),
            headers,
            body,
            raw,
        }
    }
}

fn says(headers: &BTreeMap<String, String>, name: &str, what: &str) -> bool {
    headers.get(name).is_some_and(|value| value.contains(what))
}

/// What travelled, without its compression.
fn plain(headers: &BTreeMap<String, String>, raw: &Bytes) -> Option<Bytes> {
    if says(headers, "content-encoding", "zstd") {
        return zstd::stream::decode_all(&raw[..]).ok().map(Bytes::from);
    }
    Some(raw.clone())
}

fn message(headers: &BTreeMap<String, String>, raw: &Bytes) -> Option<ForwardBackwardRequest> {
    if !says(headers, "content-type", "application/x-protobuf") {
        return None;
    }
    ForwardBackwardRequest::decode(plain(headers, raw)?).ok()
}

/// What a body says, by its headers; none where it cannot be read.
fn decode(headers: &BTreeMap<String, String>, raw: &Bytes) -> Option<Value> {
    if let Some(message) = message(headers, raw) {
        let mut body = describe::request(&message).ok()?;
        body["message"] = json!("ForwardBackwardRequest");
        return Some(body);
    }
    serde_json::from_slice(&plain(headers, raw)?).ok()
}

fn pairs(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text: &str| percent_decoded(&text.replace('+', " "));
            (decoded(name), decoded(value))
        })
        .collect()
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%')
            .then(|| tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded() {
        assert_eq!(percent_decoded("/a%3Ab%/c%zz%2"), "/a:b%/c%zz%2");
        assert_eq!(pairs("a=1+2&b=%26&&c")["b"], "&");
        assert_eq!(pairs("a=1+2&b=%26&&c").len(), 3);
    }
}
