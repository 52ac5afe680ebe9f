//! One HTTP request, sent again where that is safe, and the long poll for a queued result.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tinsmith_types::{
    futures::{Failed, RetrieveFutureRequest, UntypedFuture},
    ids::RequestId,
};
use tokio::time::{Instant, sleep};

use crate::{Config, Error, Result};

/// The server holds a poll for at most 30 s.
const POLL_TIMEOUT: Duration = Duration::from_secs(45);
const RETRY_WAIT_MIN: Duration = Duration::from_millis(500);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);
/// Polls that may fail with a 400 one after another.
const BAD_POLLS_MAX: u32 = 3;
const PROTOBUF: &str = "application/x-protobuf";

/// The connection to one server.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: Client,
    pub(crate) config: Config,
}

/// A request's body.
#[derive(Clone, Debug)]
enum Body {
    Json(Bytes),
    Protobuf(Bytes),
}

impl Http {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("tinsmith-rust/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            .build()
            .map_err(|error| Error::Validation { message: error.to_string() })?;
        Ok(Self { client, config })
    }

    /// Posts JSON, reads JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        name: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::Validation { message: error.to_string() })?;
        parse(&self.send(name, &Body::Json(body.into())).await?)
    }

    /// Posts protobuf, reads JSON.
    pub(crate) async fn post_protobuf<T: DeserializeOwned>(
        &self,
        name: &str,
        message: &impl prost::Message,
    ) -> Result<T> {
        parse(&self.send(name, &Body::Protobuf(message.encode_to_vec().into())).await?)
    }

    /// Posts a body until it is answered with something else than "not now".
    async fn send(&self, name: &str, body: &Body) -> Result<Bytes> {
        let deadline = deadline(self.config.retry_timeout);
        // One key for all attempts: the server knows a repeated request by it.
        let key = format!("tinsmith-rust-{}", uuid::Uuid::new_v4());
        let mut wait = RETRY_WAIT_MIN;
        loop {
            let request = self.request(name, body).header("x-idempotency-key", &key);
            let (error, asked) = match request.timeout(self.config.timeout).send().await {
                Ok(response) if response.status().is_success() => return read(response).await,
                Ok(response) if is_transient(response.status()) => {
                    let asked = retry_after(&response);
                    (refused(response).await, asked)
                }
                Ok(response) => return Err(refused(response).await),
                Err(error) => (Error::Connection { message: chain(&error) }, None),
            };
            let pause = asked.unwrap_or(wait);
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, endpoint = name, "sending again");
            sleep(pause).await;
            wait = (wait * 2).min(RETRY_WAIT_MAX);
        }
    }

    /// Waits for a queued result; protobuf where `accept_protobuf` and the server speaks it.
    pub(crate) async fn result(
        &self,
        future: &UntypedFuture,
        accept_protobuf: bool,
    ) -> Result<Answer> {
        let request_id = &future.request_id;
        let deadline = deadline(self.config.result_timeout);
        let mut wait = RETRY_WAIT_MIN;
        let mut bad_polls = 0;
        while Instant::now() < deadline {
            let error = match self.poll(request_id, accept_protobuf).await {
                Ok(Polled::Finished(answer)) => return Ok(answer),
                Ok(Polled::Pending) => {
                    wait = RETRY_WAIT_MIN;
                    continue;
                }
                Err(error) => error,
            };
            match &error {
                Error::Connection { .. } => {}
                Error::Api { status: 429 | 500.., .. } => {}
                Error::Api { status: 400, .. } if bad_polls < BAD_POLLS_MAX => bad_polls += 1,
                Error::Api { .. }
                | Error::Validation { .. }
                | Error::RequestFailed { .. }
                | Error::Expired { .. }
                | Error::Timeout { .. }
                | Error::Response { .. }
                | Error::Broken
                | Error::Stopped => return Err(error),
            }
            tracing::debug!(%error, request.id = %request_id, "polling again");
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_WAIT_MAX);
        }
        Err(Error::Timeout { request_id: request_id.to_string() })
    }

    async fn poll(&self, request_id: &RequestId, accept_protobuf: bool) -> Result<Polled> {
        let body =
            RetrieveFutureRequest { request_id: request_id.clone(), allow_metadata_only: false };
        let body = serde_json::to_vec(&body)
            .map_err(|error| Error::Validation { message: error.to_string() })?;
        let accept = if accept_protobuf { PROTOBUF } else { "application/json" };
        let request =
            self.request("retrieve_future", &Body::Json(body.into())).header("accept", accept);
        let response = request
            .timeout(POLL_TIMEOUT)
            .send()
            .await
            .map_err(|error| Error::Connection { message: chain(&error) })?;
        match response.status() {
            StatusCode::REQUEST_TIMEOUT => return Ok(Polled::Pending),
            StatusCode::GONE => return Err(Error::Expired { request_id: request_id.to_string() }),
            status if !status.is_success() => return Err(refused(response).await),
            _ => {}
        }
        let is_protobuf =
            header(&response, "content-type").is_some_and(|kind| kind.contains(PROTOBUF));
        let bytes = read(response).await?;
        if is_protobuf {
            return Ok(Polled::Finished(Answer::Protobuf(bytes)));
        }
        let value: Value = parse(&bytes)?;
        if value.get("type").and_then(Value::as_str) == Some("try_again") {
            return Ok(Polled::Pending);
        }
        if value.get("error").is_some() {
            let failed: Failed = parse(&bytes)?;
            return Err(Error::RequestFailed {
                request_id: request_id.to_string(),
                category: failed.category,
                message: failed.error,
            });
        }
        Ok(Polled::Finished(Answer::Json(value)))
    }

    fn request(&self, name: &str, body: &Body) -> RequestBuilder {
        let (kind, bytes) = match body {
            Body::Json(bytes) => ("application/json", bytes),
            Body::Protobuf(bytes) => (PROTOBUF, bytes),
        };
        self.client
            .post(format!("{}/api/v1/{name}", self.config.base_url))
            .header("x-api-key", &self.config.api_key)
            .header("content-type", kind)
            .body(bytes.clone())
    }
}

/// What a poll found.
enum Polled {
    Pending,
    Finished(Answer),
}

/// A result as it came.
#[derive(Debug)]
pub(crate) enum Answer {
    Protobuf(Bytes),
    Json(Value),
}

impl Answer {
    /// A result that only JSON carries.
    pub(crate) fn json<T: DeserializeOwned>(self) -> Result<T> {
        match self {
            Self::Json(value) => serde_json::from_value(value)
                .map_err(|error| Error::Response { message: error.to_string() }),
            Self::Protobuf(_) => {
                Err(Error::Response { message: "protobuf where JSON was asked for".to_owned() })
            }
        }
    }
}

fn deadline(after: Duration) -> Instant {
    Instant::now() + after
}

fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 409 | 429 | 500..)
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// What the server asks for, if that is reasonable.
fn retry_after(response: &Response) -> Option<Duration> {
    let number = |name: &str| header(response, name).and_then(|text| text.parse::<f64>().ok());
    let seconds =
        number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after"))?;
    (seconds > 0.0 && seconds <= 60.0).then(|| Duration::from_secs_f64(seconds))
}

async fn read(response: Response) -> Result<Bytes> {
    response.bytes().await.map_err(|error| Error::Connection { message: chain(&error) })
}

async fn refused(response: Response) -> Error {
    let status = response.status().as_u16();
    let bytes = response.bytes().await.unwrap_or_default();
    let body = serde_json::from_slice::<Value>(&bytes).ok();
    let detail = body.as_ref().and_then(|body| body.get("detail"));
    let detail =
        detail.map(|detail| detail.as_str().map_or_else(|| detail.to_string(), str::to_owned));
    let detail = detail.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
    Error::Api { status, detail }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::Response { message: error.to_string() })
}

/// reqwest's message alone does not say why a connection failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
