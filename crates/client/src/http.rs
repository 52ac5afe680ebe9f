//! One HTTP request, sent again where that is safe.

mod call;
mod clients;
pub(crate) mod limits;
pub(crate) mod retry;
pub(crate) mod tls;

use std::{
    future::Future,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header::HeaderMap};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tinsmith_types::{
    auth::AuthTokenResponse,
    futures::CancelFutureRequest,
    ids::RequestId,
    service::{ClientConfig, ClientConfigRequest, DynamicConfig},
};
use tokio::sync::OnceCell;

use crate::{
    ApiFuture, Clock, Config, Error, Result, config::Secret, metrics::Metrics,
    queue_state::Observers, runtime::Runtime,
};
use call::encode;
pub(crate) use call::{Body, Call};
use limits::{ByteBudget, CircuitBreaker};

/// For one of `client/config`, `client/dynamic_config`, `session_heartbeat`.
pub(crate) const SHORT_TIMEOUT: Duration = Duration::from_secs(10);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);
/// An answer may not be larger: 1 GiB.
const ANSWER_BYTES_MAX: usize = 1 << 30;
/// Bytes of an answer that an error quotes.
const EXCERPT_BYTES: usize = 300;
/// Between two attempts while the account is not paid.
pub(crate) const BILLING_PAUSE: Duration = Duration::from_secs(5);
const BILLING_PAUSE_MAX_SECONDS: u64 = 3600;
pub(crate) const PROTOBUF: &str = "application/x-protobuf";
pub(crate) const JSON: &str = "application/json";

/// Requests of one kind have connections of their own, so that thousands of polls hold up nothing else.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pool {
    Session,
    Training,
    Sampling,
    Futures,
    Rest,
    Telemetry,
}

const POOLS: usize = 6;

/// The connection to one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    pub(crate) config: Config,
    inner: Arc<Inner>,
    runtime: Arc<Runtime>,
}

#[derive(Debug)]
struct Inner {
    clients: [Client; POOLS],
    /// The token that stands for the key, where the server wants one.
    token: RwLock<Option<Secret>>,
    server: OnceCell<Server>,
    breaker: Option<CircuitBreaker>,
    observers: Observers,
    metrics: Metrics,
    takes_protobuf: OnceLock<bool>,
}

/// What the server said of itself at the start.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) config: ClientConfig,
    pub(crate) dynamic: RwLock<DynamicConfig>,
    /// Prompts being submitted.
    pub(crate) sample_bytes: ByteBudget,
    /// Training requests being submitted.
    pub(crate) training_bytes: ByteBudget,
    /// Results being downloaded.
    pub(crate) answer_bytes: ByteBudget,
}

/// A good answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

/// A bad answer, or none.
#[derive(Debug)]
struct Failure {
    error: Error,
    is_transient: bool,
    asked: Option<Duration>,
    is_token_refused: bool,
}

impl Http {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let client = clients::of(&config)?;
        let clients = [(); POOLS].map(|()| client()).into_iter().collect::<Result<Vec<_>>>()?;
        let clients = clients.try_into().map_err(|_| Error::Stopped)?;
        let breaker = config.inner.circuit_breaker.map(CircuitBreaker::new);
        let inner = Inner {
            clients,
            token: RwLock::new(None),
            server: OnceCell::new(),
            breaker,
            observers: Observers::default(),
            metrics: Metrics::default(),
            takes_protobuf: OnceLock::new(),
        };
        Ok(Self { config, inner: Arc::new(inner), runtime: Arc::new(Runtime::start()?) })
    }

    /// A client for links to elsewhere, which are signed: neither the key nor the default headers go there. What
    /// says nothing for `idle_max` is given up.
    pub(crate) fn download_client(&self, idle_max: Duration) -> Result<Client> {
        clients::of_links(&self.config, idle_max)
    }

    /// Starts a call on the client's own thread.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> ApiFuture<T> {
        ApiFuture::start(&self.runtime, call)
    }

    /// A task that nobody waits for.
    pub(crate) fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::AbortHandle {
        self.runtime.spawn(task).abort_handle()
    }

    /// Runs `task` to its end, even where the one that waits for it is stopped.
    pub(crate) fn begin<T, F>(&self, task: F) -> impl Future<Output = Result<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let task = self.runtime.spawn(task);
        async move {
            match task.await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Err(Error::Stopped),
                },
            }
        }
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.config.clock().as_ref()
    }

    pub(crate) fn observers(&self) -> &Observers {
        &self.inner.observers
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// What the circuit breaker does, where there is one.
    pub(crate) fn breaker(&self) -> Option<&CircuitBreaker> {
        self.inner.breaker.as_ref()
    }

    /// Whether the server takes protobuf has been seen.
    pub(crate) fn set_takes_protobuf(&self, takes: bool) {
        self.inner.takes_protobuf.get_or_init(|| takes);
    }

    /// None before it has been seen.
    pub(crate) fn takes_protobuf(&self) -> Option<bool> {
        self.inner.takes_protobuf.get().copied()
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T> {
        let mut call = Call::new(Method::GET, path, Body::None);
        call.query =
            query.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        parse(&self.send(&call).await?.bytes)
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        parse(&self.send(&Call::post(path, body)?).await?.bytes)
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let call = Call::new(Method::PUT, path, Body::Json(encode(body)?));
        parse(&self.send(&call).await?.bytes)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        self.send(&Call::new(Method::DELETE, path, Body::None)).await.map(drop)
    }

    /// Sends a call whose JSON answer is wanted.
    pub(crate) async fn send_json<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        parse(&self.send(call).await?.bytes)
    }

    /// Sends a request in attempts, until one is answered well or time is up.
    pub(crate) async fn send(&self, call: &Call) -> Result<Reply> {
        let server = self.server().await?;
        let clock = self.clock();
        let start = clock.now();
        let mut unpaid_since = None;
        let mut attempts = 0;
        loop {
            let error = match self.attempt(call).await {
                Ok(reply) => return Ok(reply),
                Err(failure) if !call.outer_retries => return Err(failure.error),
                Err(failure) if matches!(failure.error, Error::Api { status: 402, .. }) => {
                    let since = *unpaid_since.get_or_insert_with(|| clock.now());
                    if clock.now().duration_since(since) >= billing_pause_max(&server.config) {
                        return Err(failure.error);
                    }
                    tracing::warn!(error = %failure.error, "the server asks for payment: waiting");
                    clock.sleep(BILLING_PAUSE).await;
                    continue;
                }
                Err(failure) if failure.is_transient => failure.error,
                Err(failure) => return Err(failure.error),
            };
            let pause = retry::outer_delay(attempts);
            if clock.now().duration_since(start) + pause > self.config.inner.retry.timeout {
                return Err(error);
            }
            tracing::debug!(%error, endpoint = call.path, "attempting again");
            clock.sleep(pause).await;
            attempts += 1;
        }
    }

    /// One idempotency key, several requests.
    async fn attempt(&self, call: &Call) -> Result<Reply, Failure> {
        let policy = &self.config.inner.retry;
        let key = format!("tinsmith-rust-{}", uuid::Uuid::new_v4());
        let mut is_token_new = false;
        let mut retries = 0;
        loop {
            let failure = match self.once(call, &key, retries).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            if failure.is_token_refused && !is_token_new && self.token().is_some() {
                is_token_new = true;
                Box::pin(self.exchange()).await.map_err(Failure::terminal)?;
                continue;
            }
            if !failure.is_transient || !call.inner_retries || retries >= policy.max_retries {
                return Err(failure);
            }
            let pause = failure.asked.unwrap_or_else(|| policy.delay(retries, retry::random()));
            tracing::debug!(error = %failure.error, endpoint = call.path, "sending again");
            self.inner.metrics.count("retries");
            self.clock().sleep(pause).await;
            retries += 1;
        }
    }

    /// One request; a status that is not good is an error.
    async fn once(&self, call: &Call, key: &str, retries: u32) -> Result<Reply, Failure> {
        if let Some(breaker) = &self.inner.breaker {
            breaker.allow(self.clock().now()).map_err(Failure::terminal)?;
        }
        let mut request = self.request(call).header("x-stainless-retry-count", retries);
        if call.method != Method::GET {
            request = request.header("x-idempotency-key", key);
        }
        let started = self.clock().now();
        let result = self.exchange_bytes(request).await;
        self.inner.metrics.count("requests");
        self.inner.metrics.took(self.clock().now().saturating_duration_since(started));
        let result = match result {
            Ok(reply) if reply.status.is_success() => Ok(reply),
            Ok(reply) => Err(Failure::of(&reply)),
            Err(error) => Err(Failure { is_transient: true, ..Failure::terminal(error) }),
        };
        if result.is_err() {
            self.inner.metrics.count("requests_failed");
        }
        if let Some(breaker) = &self.inner.breaker {
            // A request that is refused for what it says shows that the server works.
            let works = result.as_ref().err().is_none_or(|failure| !failure.is_transient);
            breaker.record(self.clock().now(), works);
        }
        result
    }

    /// Sends one request as it is, and reads its answer whatever its status.
    pub(crate) async fn exchange_bytes(&self, request: RequestBuilder) -> Result<Reply> {
        let started = self.clock().now();
        let response = request.send().await.map_err(|error| unreachable(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = read(response).await?;
        let ms = self.clock().now().duration_since(started).as_millis();
        tracing::trace!(target: "tinsmith::http", status = status.as_u16(), bytes = bytes.len(), ms, "answered");
        note_deprecation(&headers);
        Ok(Reply { status, headers, bytes })
    }

    /// A request with everything but its retry headers.
    pub(crate) fn request(&self, call: &Call) -> RequestBuilder {
        let inner = &self.config.inner;
        let url = format!("{}/api/v1/{}", inner.base_url, call.path);
        let timeout = call.timeout.unwrap_or(inner.timeout);
        let mut request = self.inner.clients[call.pool as usize]
            .request(call.method.clone(), url)
            .timeout(timeout)
            .header("accept", call.accept);
        request = match self.token() {
            Some(token) => request.header("x-api-key", token.0),
            None => request.header("x-api-key", &inner.api_key.0),
        };
        if !inner.default_query.is_empty() {
            request = request.query(&inner.default_query);
        }
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        match &call.body {
            Body::None => request,
            Body::Json(bytes) => request.header("content-type", JSON).body(bytes.clone()),
            Body::Protobuf { bytes, is_zstd } => {
                let request = request.header("content-type", PROTOBUF).body(bytes.clone());
                if *is_zstd { request.header("content-encoding", "zstd") } else { request }
            }
        }
    }

    fn token(&self) -> Option<Secret> {
        self.inner.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Exchanges the key for a token.
    async fn exchange(&self) -> Result<()> {
        *self.inner.token.write().unwrap_or_else(PoisonError::into_inner) = None;
        let call = Call::post("auth/token", &json!({}))?.pool(Pool::Session);
        let made: AuthTokenResponse = self.plain(&call).await?;
        *self.inner.token.write().unwrap_or_else(PoisonError::into_inner) = Some(Secret(made.jwt));
        Ok(())
    }

    /// What the server says of itself; asked for once.
    pub(crate) async fn server(&self) -> Result<&Server> {
        self.inner.server.get_or_try_init(|| self.introduce()).await
    }

    /// The same, where it was asked for.
    pub(crate) fn known_server(&self) -> Option<&Server> {
        self.inner.server.get()
    }

    async fn introduce(&self) -> Result<Server> {
        let who = ClientConfigRequest { sdk_version: Some(env!("CARGO_PKG_VERSION").to_owned()) };
        let call = Call::post("client/config", &who)?.pool(Pool::Session);
        let config: ClientConfig = unless_missing(self.plain(&call).await)?;
        if config.pjwt_auth_enabled == Some(true) {
            self.exchange().await?;
        }
        let call = Call::post("client/dynamic_config", &who)?.pool(Pool::Session);
        let call = call.timeout(SHORT_TIMEOUT);
        let dynamic: DynamicConfig = unless_missing(self.plain(&call).await)?;
        let bytes = |set: Option<u64>, default| ByteBudget::new(set.unwrap_or(default));
        Ok(Server {
            sample_bytes: bytes(config.sample_dispatch_bytes_semaphore_size, 10 << 20),
            training_bytes: bytes(config.fwdbwd_dispatch_bytes_semaphore_size, 50_000_000),
            answer_bytes: bytes(config.inflight_response_bytes_semaphore_size, 50 << 20),
            dynamic: RwLock::new(dynamic),
            config,
        })
    }

    /// A call that needs no introduction, with repeats.
    async fn plain<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let start = self.clock().now();
        let mut attempts = 0;
        loop {
            let failure = match self.attempt(call).await {
                Ok(reply) => return parse(&reply.bytes),
                Err(failure) => failure,
            };
            let pause = retry::outer_delay(attempts);
            let waited = self.clock().now().duration_since(start);
            if !failure.is_transient || waited + pause > self.config.inner.retry.timeout {
                return Err(failure.error);
            }
            self.clock().sleep(pause).await;
            attempts += 1;
        }
    }

    /// Tells the server that nobody waits for a sample any more; whether it worked is not looked at.
    pub(crate) fn cancel_request(&self, request_id: RequestId) {
        let http = self.clone();
        self.spawn(async move {
            let Ok(call) = Call::post("cancel_future", &CancelFutureRequest { request_id }) else {
                return;
            };
            let call = call.pool(Pool::Sampling).retries(false, true).timeout(CANCEL_TIMEOUT);
            if let Err(error) = http.send(&call).await {
                tracing::debug!(%error, "a cancellation did not reach the server");
            }
        });
    }
}

impl Failure {
    fn terminal(error: Error) -> Self {
        Self { error, is_transient: false, asked: None, is_token_refused: false }
    }

    #[expect(clippy::disallowed_methods, reason = "dates in headers are of the world's clock")]
    fn of(reply: &Reply) -> Self {
        let challenge = reply.headers.get("www-authenticate").and_then(|text| text.to_str().ok());
        Self {
            is_transient: retry::is_transient(reply.status, &reply.headers),
            asked: retry::asked(&reply.headers, SystemTime::now()),
            is_token_refused: reply.status == StatusCode::UNAUTHORIZED
                && challenge.is_some_and(|text| text.contains("error=\"invalid_token\"")),
            error: refused(reply),
        }
    }
}

/// How long a 402 is taken for a pause.
pub(crate) fn billing_pause_max(config: &ClientConfig) -> Duration {
    let seconds = config.billing_exception_max_pause_duration_sec;
    Duration::from_secs(seconds.unwrap_or(BILLING_PAUSE_MAX_SECONDS))
}

/// Servers of older generations lack some endpoints.
fn unless_missing<T: Default>(answer: Result<T>) -> Result<T> {
    match answer {
        Err(Error::Api { status: 404 | 405, .. }) => Ok(T::default()),
        answer => answer,
    }
}

/// Empty answers stand for `null`.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let text = if bytes.is_empty() { b"null" } else { bytes };
    serde_json::from_slice(text).map_err(|error| {
        let excerpt = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT_BYTES)]);
        Error::response(format!("{error}, in `{excerpt}`"))
    })
}

async fn read(mut response: Response) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
        if bytes.is_empty() && response.content_length() == Some(chunk.len() as u64) {
            return Ok(chunk);
        }
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            let message = format!("it is larger than {ANSWER_BYTES_MAX} bytes");
            return Err(Error::response(message));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// What an answer with a bad status says.
pub(crate) fn refused(reply: &Reply) -> Error {
    let body = serde_json::from_slice::<Value>(&reply.bytes).ok();
    let detail = body.as_ref().and_then(|body| body.get("detail"));
    let detail =
        detail.map(|detail| detail.as_str().map_or_else(|| detail.to_string(), str::to_owned));
    let detail = detail.unwrap_or_else(|| {
        let excerpt = &reply.bytes[..reply.bytes.len().min(EXCERPT_BYTES)];
        String::from_utf8_lossy(excerpt).into_owned()
    });
    Error::Api { status: reply.status.as_u16(), detail }
}

fn unreachable(error: &reqwest::Error) -> Error {
    Error::Connection { message: chain(error) }
}

/// reqwest's message alone does not say why a connection failed.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn note_deprecation(headers: &HeaderMap) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(note) = text("x-deprecation-note") else { return };
    if text("x-deprecation-level") == Some("error") {
        tracing::error!(note, "the server says that this is deprecated");
    } else {
        tracing::warn!(note, "the server says that this is deprecated");
    }
}
