//! Waits for the result of a queued request.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tinsmith_types::{
    futures::{RetrieveFutureRequest, UntypedFuture},
    ids::RequestId,
};

use crate::{
    Backoff, Category, Error, QueueState, QueueStateChange, QueueStateObserver, Result,
    config::DEFAULT_POLL_TIMEOUT,
    future::Waiting,
    http::{
        BILLING_PAUSE, Call, Http, JSON, PROTOBUF, Pool, Reply, billing_pause_max, parse, refused,
        retry,
    },
};

/// The server holds a poll for about 30 s.
const HTTP_TIMEOUT_MAX: Duration = Duration::from_secs(45);
/// A poll that the server held for so long has waited already: the next one follows at once.
const HELD: Duration = Duration::from_secs(1);
/// Polls that may be answered with 400 one after another.
const BAD_POLLS_MAX: u32 = 3;

/// How the result of a queued request is waited for.
///
/// Three limits are independent of each other: this one's `timeout` ends the polling, `http_timeout` one request of it, and [`crate::ApiFuture::wait_timeout`] the
/// caller's wait.
#[derive(Clone)]
pub struct PollOptions {
    /// For all polls of a result together (default 1 h); `None` is for ever.
    pub timeout: Option<Duration>,
    /// For one poll (default: [`crate::Config::timeout`], at most 45 s).
    pub http_timeout: Option<Duration>,
    /// Pauses between polls that are answered at once: 1, 2, 4, 8, 16, 30, 30, … s by default. A pause that
    /// the server asks for goes before, and one that it held the poll for counts.
    pub backoff: Backoff,
    /// Told of changes of the queue's state, besides those attached to the service.
    pub observers: Vec<Arc<dyn QueueStateObserver>>,
    /// Goes with every event of this request.
    pub metadata: BTreeMap<String, String>,
    /// A failure that is not the user's is polled for again; so many of the same one after another (default
    /// 3) are taken for the result. 0 never takes one for it.
    pub same_failures_max: u32,
    /// Poll again when the server cannot be reached (default: yes).
    pub retry_connection: bool,
}

impl Default for PollOptions {
    fn default() -> Self {
        Self {
            timeout: Some(DEFAULT_POLL_TIMEOUT),
            http_timeout: None,
            backoff: Backoff::default(),
            observers: Vec::new(),
            metadata: BTreeMap::new(),
            same_failures_max: 3,
            retry_connection: true,
        }
    }
}

impl PollOptions {
    /// For all polls together.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// For one poll.
    #[must_use]
    pub fn http_timeout(mut self, timeout: Duration) -> Self {
        self.http_timeout = Some(timeout);
        self
    }

    /// One more observer.
    #[must_use]
    pub fn observer(mut self, observer: impl QueueStateObserver + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// One more note that goes with every event.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }
}

impl fmt::Debug for PollOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollOptions")
            .field("timeout", &self.timeout)
            .field("http_timeout", &self.http_timeout)
            .field("backoff", &self.backoff)
            .field("observers", &self.observers.len())
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// Names a queued request: its id, or the answer to its submission.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestRef(pub(crate) RequestId);

impl From<&str> for RequestRef {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<String> for RequestRef {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl From<&UntypedFuture> for RequestRef {
    fn from(future: &UntypedFuture) -> Self {
        Self(future.request_id.clone())
    }
}

impl TryFrom<&Value> for RequestRef {
    type Error = Error;

    fn try_from(answer: &Value) -> Result<Self> {
        let id = answer.get("request_id").and_then(Value::as_str);
        let id = id.ok_or_else(|| Error::validation("the answer has no text `request_id`"))?;
        Ok(id.into())
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// As in the header `X-Tinker-Request-Type`.
    pub(crate) request_type: &'static str,
    /// The result travels as protobuf where the server speaks it.
    pub(crate) is_protobuf: bool,
    /// The server can stop the work.
    pub(crate) is_stoppable: bool,
    /// How long the submission took.
    pub(crate) roundtrip: Duration,
    /// The size of the result is known, and there is room for it.
    pub(crate) is_announced: bool,
}

impl Wanted {
    /// A result that travels as JSON.
    pub(crate) fn json(request_type: &'static str) -> Self {
        let roundtrip = Duration::ZERO;
        Self {
            request_type,
            is_protobuf: false,
            is_stoppable: false,
            roundtrip,
            is_announced: false,
        }
    }
}

/// A result as it came.
#[derive(Debug)]
pub(crate) enum Answer {
    Protobuf(Bytes),
    Json(Bytes),
}

impl Answer {
    /// A result that only JSON carries.
    pub(crate) fn json<T: DeserializeOwned>(self) -> Result<T> {
        match self {
            Self::Json(bytes) => parse(&bytes),
            Self::Protobuf(_) => Err(Error::response("protobuf where JSON was asked for")),
        }
    }
}

/// What one poll found.
enum Polled {
    Finished(Answer),
    /// Announced with its size, to be fetched.
    Announced(u64),
    Pending(Pending),
}

/// The parts of the answers that are no result.
#[derive(Deserialize)]
struct Pending {
    #[serde(default)]
    queue_state: Option<String>,
    #[serde(default)]
    queue_state_reason: Option<String>,
    #[serde(default)]
    retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Peek {
    #[serde(rename = "type", default)]
    kind: Option<Value>,
    #[serde(default)]
    status: Option<Value>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    category: Option<Value>,
    #[serde(default)]
    terminal: Option<bool>,
    #[serde(default)]
    response_payload_size: Option<u64>,
}

/// What has happened so far.
struct Poller<'a> {
    http: &'a Http,
    request_id: &'a RequestId,
    wanted: Wanted,
    options: &'a PollOptions,
    deadline: Option<Instant>,
    iteration: u32,
    /// Answers that came at once one after another.
    quick: u32,
    /// Failures one after another.
    failures: u32,
    bad_polls: u32,
    unpaid_since: Option<Instant>,
    state: Option<QueueState>,
    last_error: Option<Error>,
    same_failures: u32,
    /// The server says that a failure is for good, whoever's fault it is.
    is_terminal: bool,
    takes_announcements: bool,
}

impl Http {
    /// Waits for a queued result.
    pub(crate) async fn result(
        &self,
        request_id: &RequestId,
        wanted: Wanted,
        options: &PollOptions,
    ) -> Result<Answer> {
        let _waiting = Waiting::on(request_id, self.stoppable(&wanted));
        let mut poller = Poller {
            http: self,
            request_id,
            wanted,
            options,
            deadline: options.timeout.map(|timeout| self.clock().now() + timeout),
            iteration: 0,
            quick: 0,
            failures: 0,
            bad_polls: 0,
            unpaid_since: None,
            state: None,
            last_error: None,
            same_failures: 0,
            is_terminal: false,
            takes_announcements: wanted.is_protobuf && !wanted.is_announced,
        };
        let result = poller.run().await;
        let (polls, request_type) = (poller.iteration, wanted.request_type);
        match &result {
            Ok(_) => tracing::debug!(
                target: "tinsmith::operation", phase = "completed", %request_id, request_type, polls,
                metadata = ?options.metadata,
            ),
            Err(error) => tracing::debug!(
                target: "tinsmith::operation", phase = "failed", %request_id, request_type, polls,
                metadata = ?options.metadata, %error,
            ),
        }
        result
    }

    /// Where to tell that the request is not waited for any more.
    pub(crate) fn stoppable(&self, wanted: &Wanted) -> Option<Self> {
        (wanted.is_stoppable && self.may_cancel()).then(|| self.clone())
    }

    /// Whether the server takes cancellations.
    fn may_cancel(&self) -> bool {
        self.known_server().is_some_and(|server| {
            let dynamic = server.dynamic.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            dynamic.sample_cancel_enabled == Some(true)
        })
    }
}

impl Poller<'_> {
    async fn run(&mut self) -> Result<Answer> {
        loop {
            let Some(limit) = self.limit() else { return Err(self.out_of_time()) };
            let asked = self.http.clock().now();
            self.http.metrics().count("polls");
            let polled = self.poll(limit).await;
            let held = self.http.clock().now().saturating_duration_since(asked);
            self.iteration += 1;
            let pause = match polled {
                Ok(Polled::Finished(answer)) => return Ok(answer),
                Ok(Polled::Announced(bytes)) => {
                    if let Some(answer) = self.fetch(bytes).await? {
                        return Ok(answer);
                    }
                    Duration::ZERO
                }
                Ok(Polled::Pending(pending)) => self.pending(pending, held),
                Err(error) => self.failed(error).await?,
            };
            self.sleep(pause).await;
        }
    }

    /// For the next poll; none where time is up.
    fn limit(&self) -> Option<Duration> {
        let config = &self.http.config;
        let limit =
            self.options.http_timeout.unwrap_or_else(|| config.timeout().min(HTTP_TIMEOUT_MAX));
        let Some(deadline) = self.deadline else { return Some(limit) };
        let left = deadline.checked_duration_since(self.http.clock().now())?;
        (!left.is_zero()).then(|| left.min(limit))
    }

    fn out_of_time(&mut self) -> Error {
        self.last_error.take().unwrap_or_else(|| Error::Timeout {
            request_id: self.request_id.to_string(),
            exit_reason: format!(
                "its result was polled for {:?}",
                self.options.timeout.unwrap_or_default()
            ),
        })
    }

    /// Not longer than there is time.
    async fn sleep(&self, pause: Duration) {
        let clock = self.http.clock();
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(clock.now()));
        let pause = left.map_or(pause, |left| left.min(pause));
        if !pause.is_zero() {
            clock.sleep(pause).await;
        }
    }

    /// One poll.
    async fn poll(&mut self, limit: Duration) -> Result<Polled> {
        let body = RetrieveFutureRequest {
            request_id: self.request_id.clone(),
            allow_metadata_only: self.takes_announcements,
        };
        let accepts = self.wanted.is_protobuf && self.http.takes_protobuf() != Some(false);
        let mut call = Call::post("retrieve_future", &body)?
            .pool(Pool::Futures)
            .timeout(limit)
            .accept(if accepts { "application/x-protobuf, application/json" } else { JSON })
            .header("X-Tinker-Request-Iteration", self.iteration.to_string())
            .header("X-Tinker-Request-Type", self.wanted.request_type);
        if self.iteration == 0 {
            let seconds = self.wanted.roundtrip.as_secs_f64().to_string();
            call = call.header("X-Tinker-Create-Promise-Roundtrip-Time", seconds);
        }
        let reply = self.http.exchange_bytes(self.http.request(&call)).await?;
        self.read(reply)
    }

    fn read(&mut self, reply: Reply) -> Result<Polled> {
        match reply.status {
            StatusCode::REQUEST_TIMEOUT => {
                let pending = serde_json::from_slice(&reply.bytes).unwrap_or(Pending {
                    queue_state: None,
                    queue_state_reason: None,
                    retry_after_ms: None,
                });
                let retry_after_ms = pending.retry_after_ms.or_else(|| asked_ms(&reply));
                return Ok(Polled::Pending(Pending { retry_after_ms, ..pending }));
            }
            StatusCode::GONE => {
                return Err(Error::Expired { request_id: self.request_id.to_string() });
            }
            status if !status.is_success() => return Err(refused(&reply)),
            _ => {}
        }
        let kind = reply.headers.get("content-type").and_then(|kind| kind.to_str().ok());
        if kind.is_some_and(|kind| kind.contains(PROTOBUF)) {
            return Ok(Polled::Finished(Answer::Protobuf(reply.bytes)));
        }
        let peek: Peek = parse(&reply.bytes)?;
        let is = |field: &Option<Value>, text: &str| {
            field.as_ref().and_then(Value::as_str) == Some(text)
        };
        if is(&peek.kind, "try_again") || is(&peek.status, "pending") {
            let pending: Pending = parse(&reply.bytes)?;
            let retry_after_ms = pending.retry_after_ms.or_else(|| asked_ms(&reply));
            return Ok(Polled::Pending(Pending { retry_after_ms, ..pending }));
        }
        if is(&peek.status, "complete_metadata") {
            return Ok(Polled::Announced(peek.response_payload_size.unwrap_or(0)));
        }
        if let Some(error) = peek.error {
            self.is_terminal = peek.terminal == Some(true);
            return Err(self.failure(&error, peek.category.as_ref()));
        }
        Ok(Polled::Finished(Answer::Json(reply.bytes)))
    }

    fn failure(&self, error: &Value, category: Option<&Value>) -> Error {
        let category = category.and_then(Value::as_str).unwrap_or("unknown");
        Error::RequestFailed {
            request_id: self.request_id.to_string(),
            category: Category::parse(category),
            message: error.as_str().map_or_else(|| error.to_string(), str::to_owned),
        }
    }

    /// Fetches a result whose size was announced, when there is room for it.
    async fn fetch(&mut self, bytes: u64) -> Result<Option<Answer>> {
        self.takes_announcements = false;
        let http = self.http.clone();
        let _room = http.server().await?.answer_bytes.take(bytes).await;
        let Some(limit) = self.limit() else { return Err(self.out_of_time()) };
        let polled = self.poll(limit).await;
        self.iteration += 1;
        match polled {
            Ok(Polled::Finished(answer)) => Ok(Some(answer)),
            Ok(Polled::Pending(_) | Polled::Announced(_)) => Ok(None),
            Err(error) => {
                let pause = self.failed(error).await?;
                self.sleep(pause).await;
                Ok(None)
            }
        }
    }

    /// How long to wait after an answer that is no result.
    fn pending(&mut self, pending: Pending, held: Duration) -> Duration {
        (self.failures, self.bad_polls, self.unpaid_since) = (0, 0, None);
        if let Some(name) = &pending.queue_state {
            self.observe(QueueState::parse(name), pending.queue_state_reason);
        }
        if let Some(ms) = pending.retry_after_ms {
            return Duration::from_millis(ms);
        }
        if held >= HELD {
            self.quick = 0;
            return Duration::ZERO;
        }
        let pause = self.options.backoff.delay(self.quick);
        self.quick += 1;
        pause
    }

    fn observe(&mut self, queue_state: QueueState, reason: Option<String>) {
        if self.state.as_ref() == Some(&queue_state) {
            return;
        }
        let change = QueueStateChange {
            queue_state: queue_state.clone(),
            previous: self.state.replace(queue_state),
            reason,
            request_id: self.request_id.to_string(),
            metadata: self.options.metadata.clone(),
        };
        self.http.metrics().count(&format!("queue_state_{}", change.queue_state.as_str()));
        self.http.observers().tell(self.http.clock(), &change, &self.options.observers);
    }

    /// How long to wait after an error; the error itself where waiting is of no use.
    async fn failed(&mut self, error: Error) -> Result<Duration> {
        let is_same =
            self.last_error.as_ref().is_some_and(|last| last.to_string() == error.to_string());
        self.same_failures = if is_same { self.same_failures + 1 } else { 1 };
        let pause = self.pause_after(&error).await?;
        tracing::debug!(%error, request.id = %self.request_id, metadata = ?self.options.metadata, "a poll failed");
        let Some(pause) = pause else { return Err(error) };
        self.last_error = Some(error);
        Ok(pause)
    }

    /// None where polling again is of no use.
    async fn pause_after(&mut self, error: &Error) -> Result<Option<Duration>> {
        if let Error::RequestFailed { category, .. } = error {
            let most = self.options.same_failures_max;
            let is_final = self.is_terminal
                || !category.is_retryable()
                || (most > 0 && self.same_failures >= most);
            return Ok((!is_final).then(|| self.backoff()));
        }
        if matches!(error, Error::Connection { .. }) {
            return Ok(self.options.retry_connection.then(|| self.backoff()));
        }
        match error.status() {
            Some(429 | 500..) => Ok(Some(self.backoff())),
            Some(402) => self.unpaid().await,
            Some(400) if self.bad_polls < BAD_POLLS_MAX => {
                self.bad_polls += 1;
                Ok(Some(Duration::ZERO))
            }
            _ => Ok(None),
        }
    }

    fn backoff(&mut self) -> Duration {
        let pause = self.options.backoff.delay(self.failures);
        self.failures += 1;
        pause
    }

    async fn unpaid(&mut self) -> Result<Option<Duration>> {
        let now = self.http.clock().now();
        let since = *self.unpaid_since.get_or_insert(now);
        let most = billing_pause_max(&self.http.server().await?.config);
        Ok((now.saturating_duration_since(since) < most).then_some(BILLING_PAUSE))
    }
}

#[expect(clippy::disallowed_methods, reason = "dates in headers are of the world's clock")]
fn asked_ms(reply: &Reply) -> Option<u64> {
    let asked = retry::asked(&reply.headers, std::time::SystemTime::now())?;
    u64::try_from(asked.as_millis()).ok()
}
