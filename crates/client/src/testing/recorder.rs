//! A proxy that keeps what a client and a real server say to each other.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hyper::{Response, http::request::Parts};
use prost::Message as _;
use serde_json::{Value, json};
use tinsmith_types::proto::{ForwardBackwardOutput, SampleResponse, describe};

use super::{
    Exchange, RecordedBody, RecordedRequest, RecordedResponse, Recording, Seen,
    body::AnswerBody,
    transport::{Answered, Handler, Transport},
};
use crate::{Config, http::tls};

/// Exchanges that are kept; later ones are passed on and not kept.
const EXCHANGES_MAX: usize = 65_536;
/// A server holds a poll for half a minute.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Headers with secrets in them.
const SECRET: [&str; 4] =
    ["x-api-key", "authorization", "cf-access-client-secret", "x-tinker-weights-access-token"];
/// Headers that belong to one connection.
const OF_CONNECTION: [&str; 5] =
    ["host", "connection", "content-length", "transfer-encoding", "accept-encoding"];

/// A proxy on a free port of 127.0.0.1 in front of a server. What passes is kept, without keys and tokens in its
/// headers, and becomes a [`Recording`] that a [`MockServer`](super::MockServer) can repeat.
#[derive(Debug)]
pub struct Recorder {
    proxy: Arc<Proxy>,
    transport: Transport,
}

#[derive(Debug)]
struct Proxy {
    upstream: String,
    client: reqwest::Client,
    /// By the number of the request, so that those under way keep their place.
    exchanges: Mutex<(usize, BTreeMap<usize, Exchange>)>,
}

impl Recorder {
    /// Starts a proxy in front of a server, such as `http://127.0.0.1:8000`.
    ///
    /// # Errors
    ///
    /// No port is free, or no thread can be started.
    pub fn start(upstream: &str) -> io::Result<Self> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(tls::config(&[]).map_err(io::Error::other)?);
        let proxy = Arc::new(Proxy {
            upstream: upstream.trim_end_matches('/').to_owned(),
            client: client.build().map_err(io::Error::other)?,
            exchanges: Mutex::default(),
        });
        let transport = Transport::start(Arc::clone(&proxy))?;
        Ok(Self { proxy, transport })
    }

    /// Such as `http://127.0.0.1:34567`: where clients go instead.
    pub fn url(&self) -> String {
        self.transport.url()
    }

    /// A configuration for clients of it.
    pub fn config(&self) -> Config {
        Config::new(self.url())
    }

    /// What has passed, in the order in which the requests came.
    pub fn recording(&self) -> Recording {
        let exchanges = self.proxy.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        Recording { exchanges: exchanges.1.values().cloned().collect() }
    }
}

impl Proxy {
    async fn pass_on(&self, seen: &Seen, head: &Parts) -> reqwest::Result<reqwest::Response> {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let url = format!("{}{path}", self.upstream);
        let mut request = self.client.request(head.method.clone(), url).timeout(TIMEOUT);
        for (name, value) in &head.headers {
            if !OF_CONNECTION.contains(&name.as_str()) {
                request = request.header(name, value);
            }
        }
        request.body(seen.raw.clone()).send().await
    }

    fn keep(&self, seen: &Seen, response: RecordedResponse) {
        let content_type = seen.header("content-type").unwrap_or_default();
        let mut body = RecordedBody::new(content_type, &seen.raw, Some(seen.body.clone()));
        if let Some(body) = &mut body
            && seen.header("content-encoding").is_some_and(|encoding| encoding.contains("zstd"))
        {
            "protobuf+zstd".clone_into(&mut body.encoding);
        }
        let hidden = |(name, value): (&String, &String)| {
            let value = if SECRET.contains(&name.as_str()) { "<secret>" } else { value };
            (name.clone(), value.to_owned())
        };
        let request = RecordedRequest {
            method: seen.method.clone(),
            path: seen.path.clone(),
            query: seen.query.clone(),
            headers: seen.headers.iter().map(hidden).collect(),
            body,
        };
        let mut exchanges = self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        if exchanges.1.len() < EXCHANGES_MAX {
            exchanges.1.insert(seen.number, Exchange { request, response });
        }
    }

    fn number(&self) -> usize {
        let mut exchanges = self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        exchanges.0 += 1;
        exchanges.0 - 1
    }
}

impl Handler for Proxy {
    fn handle(self: Arc<Self>, head: Parts, body: Bytes) -> Answered {
        Box::pin(async move {
            let seen = Seen::new(self.number(), &head, body);
            let (status, headers, body) = match self.pass_on(&seen, &head).await {
                Ok(response) => {
                    let (status, headers) = (response.status(), response.headers().clone());
                    (status, headers, response.bytes().await.ok()?)
                }
                Err(error) => {
                    tracing::warn!(%error, "the recorded server cannot be reached");
                    self.keep(&seen, RecordedResponse::default());
                    return None;
                }
            };
            let mut response = Response::builder().status(status);
            let mut kept = BTreeMap::new();
            for (name, value) in &headers {
                if !OF_CONNECTION.contains(&name.as_str()) {
                    response = response.header(name, value);
                    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    kept.insert(name.as_str().to_owned(), text);
                }
            }
            let content_type = kept.get("content-type").cloned().unwrap_or_default();
            let recorded = if seen.endpoint() == "auth/token" {
                RecordedBody::new("application/json", &br#"{"jwt":"<secret>"}"#[..].into(), None)
            } else {
                RecordedBody::new(&content_type, &body, result(&seen, &body))
            };
            let status = Some(status.as_u16());
            self.keep(&seen, RecordedResponse { status, headers: kept, body: recorded });
            response.body(AnswerBody::new(body, None)).ok()
        })
    }
}

/// What a result in protobuf says: which message it is, the poll said.
fn result(poll: &Seen, body: &Bytes) -> Option<Value> {
    let (name, mut described) = if poll.header("x-tinker-request-type") == Some("Sample") {
        ("SampleResponse", describe::sample(&SampleResponse::decode(body.clone()).ok()?).ok()?)
    } else {
        let output = ForwardBackwardOutput::decode(body.clone()).ok()?;
        ("ForwardBackwardOutput", describe::output(&output).ok()?)
    };
    described["message"] = json!(name);
    Some(described)
}
