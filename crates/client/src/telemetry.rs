//! Reports to the server of what this client does. Off unless the configuration turns it on; nothing secret
//! leaves, and no prompt.

mod redact;

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tinsmith_types::telemetry::{Event, TelemetryRequest};
use tokio::sync::Notify;

use crate::{
    ApiFuture, Error, Result,
    http::{Call, Http, Pool},
};
pub(crate) use redact::redacted;

/// Events that wait to be sent; the oldest are dropped for new ones.
const QUEUE_EVENTS_MAX: usize = 10_000;
const BATCH_EVENTS: usize = 100;
const FLUSH_INTERVAL: Duration = Duration::from_secs(10);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const SEND_ATTEMPTS: u32 = 3;
const SEND_PAUSE: Duration = Duration::from_secs(1);

/// How bad an event is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// For those who look for a fault.
    Debug,
    /// As it should be.
    Info,
    /// Odd.
    Warning,
    /// Something failed.
    Error,
    /// The program cannot go on.
    Critical,
}

impl Severity {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        }
    }
}

/// Gathers events and sends them in batches. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

struct Inner {
    http: Http,
    session_id: String,
    process: String,
    started: Instant,
    next: AtomicI64,
    events: Mutex<VecDeque<Event>>,
    full: Notify,
}

impl Telemetry {
    /// Starts to gather for a session.
    pub(crate) fn start(http: Http, session_id: String) -> Self {
        let started = http.clock().now();
        let inner = Arc::new(Inner {
            http,
            session_id,
            process: uuid::Uuid::new_v4().to_string(),
            started,
            next: AtomicI64::new(0),
            events: Mutex::new(VecDeque::new()),
            full: Notify::new(),
        });
        inner.http.spawn(flush_often(Arc::downgrade(&inner)));
        let telemetry = Self { inner };
        telemetry.push("SESSION_START", Severity::Info, |_| {});
        telemetry
    }

    /// Notes an event with its data, in which keys, tokens and passwords are made unreadable.
    pub fn log(&self, name: impl Into<String>, data: Value, severity: Severity) {
        let (name, data) = (name.into(), redacted(data));
        self.push("GENERIC_EVENT", severity, |event| {
            event.event_name = Some(name);
            event.event_data = Some(data);
        });
    }

    /// Notes an error: as an exception, or, where it is the user's, as an event that asks for no attention.
    pub fn log_error(&self, error: &Error) {
        if error.is_user() {
            let data = json!({ "kind": error.kind().as_str(), "category": "user" });
            return self.log("user_error", data, Severity::Info);
        }
        let message = redacted(Value::String(error.to_string()));
        self.push("UNHANDLED_EXCEPTION", Severity::Error, |event| {
            event.error_type = Some(error.kind().as_str().to_owned());
            event.error_message = message.as_str().map(str::to_owned);
        });
    }

    /// Runs `call`, and notes its error if it has one.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn capture<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let result = call.await;
        if let Err(error) = &result {
            self.log_error(error);
        }
        result
    }

    /// Sends what was gathered.
    ///
    /// # Errors
    ///
    /// The server does not take it; the events are lost.
    pub fn flush(&self) -> ApiFuture<()> {
        let inner = Arc::clone(&self.inner);
        self.inner.http.start(async move { inner.flush().await })
    }

    /// Events that wait to be sent.
    pub fn pending(&self) -> usize {
        self.inner.events().len()
    }

    /// The last event, and everything before it.
    pub(crate) async fn end(&self) {
        let seconds = self.inner.http.clock().now().duration_since(self.inner.started).as_secs();
        let duration = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        self.push("SESSION_END", Severity::Info, |event| event.duration = Some(duration));
        if let Err(error) = self.inner.flush().await {
            tracing::debug!(%error, "telemetry was not taken");
        }
    }

    fn push(&self, kind: &str, severity: Severity, fill: impl FnOnce(&mut Event)) {
        let mut event = Event {
            event: kind.to_owned(),
            event_id: Some(uuid::Uuid::new_v4().to_string()),
            event_session_index: Some(self.inner.next.fetch_add(1, Ordering::Relaxed)),
            severity: Some(severity.as_str().to_owned()),
            timestamp: Some(jiff::Timestamp::now().to_string()),
            duration: None,
            error_type: None,
            error_message: None,
            traceback: None,
            event_name: None,
            event_data: None,
        };
        fill(&mut event);
        let mut events = self.inner.events();
        if events.len() >= QUEUE_EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
        if events.len() >= BATCH_EVENTS {
            self.inner.full.notify_one();
        }
    }
}

impl Inner {
    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends batch after batch until none is left.
    async fn flush(&self) -> Result<()> {
        loop {
            let batch: Vec<Event> = {
                let mut events = self.events();
                let count = events.len().min(BATCH_EVENTS);
                events.drain(..count).collect()
            };
            if batch.is_empty() {
                return Ok(());
            }
            self.send(batch).await?;
        }
    }

    async fn send(&self, events: Vec<Event>) -> Result<()> {
        let request = TelemetryRequest {
            events,
            platform: Some(std::env::consts::OS.to_owned()),
            sdk_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            session_id: Some(self.session_id.clone()),
            process_uuid: Some(self.process.clone()),
        };
        let call = Call::post("telemetry", &request)?.pool(Pool::Telemetry);
        let call = call.retries(false, false).timeout(SEND_TIMEOUT);
        let mut attempt = 1;
        loop {
            let Err(error) = self.http.send(&call).await else { return Ok(()) };
            if attempt >= SEND_ATTEMPTS || !error.is_retryable() {
                return Err(error);
            }
            self.http.clock().sleep(SEND_PAUSE * 2_u32.pow(attempt - 1)).await;
            attempt += 1;
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

/// Every few seconds, and when a batch is full, as long as somebody can still note events.
async fn flush_often(inner: Weak<Inner>) {
    while let Some(held) = inner.upgrade() {
        let clock = Arc::clone(held.http.config.clock());
        tokio::select! {
            () = clock.sleep(FLUSH_INTERVAL) => {}
            () = held.full.notified() => {}
        }
        if let Err(error) = held.flush().await {
            tracing::debug!(%error, "telemetry was not taken");
        }
        // The last owner, the client, is gone.
        if Arc::strong_count(&held) == 1 {
            return;
        }
    }
}
