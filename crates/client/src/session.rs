//! What all clients of a session share: its numbers, and the signs of life.

use std::sync::{
    Arc, OnceLock, PoisonError, Weak,
    atomic::{AtomicBool, AtomicI64, Ordering},
};
use std::time::Duration;

use tinsmith_types::{
    ids::SessionId,
    service::{ClientConfigRequest, DynamicConfig},
    session::{
        CreateSessionRequest, CreateSessionResponse, FinishReason, FinishSessionRequest,
        HeartbeatRequest,
    },
};

use crate::{
    Error, Result, Telemetry,
    future::AbortOnDrop,
    http::{Call, Http, Pool, SHORT_TIMEOUT},
    tokenizer::Tokenizers,
};

/// Silence of the server after which the log says so.
const SILENCE_WARNING: Duration = Duration::from_secs(120);
const REFRESH_SECONDS: u64 = 300;
const REFRESH_SECONDS_MIN: u64 = 10;

/// An open session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) http: Http,
    pub(crate) id: SessionId,
    models: AtomicI64,
    samplers: AtomicI64,
    losses: AtomicI64,
    pub(crate) tokenizers: Tokenizers,
    closed: AtomicBool,
    background: OnceLock<AbortOnDrop>,
    telemetry: Option<Telemetry>,
}

impl Session {
    /// Opens a session, and keeps it alive as long as somebody has it.
    pub(crate) async fn open(http: Http) -> Result<Arc<Self>> {
        http.server().await?;
        let config = &http.config.inner;
        let request = CreateSessionRequest {
            tags: config.tags.clone(),
            user_metadata: Some(config.user_metadata.clone()),
            sdk_version: env!("CARGO_PKG_VERSION").to_owned(),
            project_id: config.project_id.clone(),
            display_name: config.display_name.clone(),
        };
        let call = Call::post("create_session", &request)?.pool(Pool::Session).retries(true, false);
        let created: CreateSessionResponse = http.send_json(&call).await?;
        if let Some(message) = &created.info_message {
            tracing::info!(message, "the server says");
        }
        if let Some(message) = &created.warning_message {
            tracing::warn!(message, "the server says");
        }
        if let Some(message) = &created.error_message {
            tracing::error!(message, "the server says");
        }
        Ok(Self::of(http, created.session_id))
    }

    /// A session that is open already.
    pub(crate) fn of(http: Http, id: SessionId) -> Arc<Self> {
        let telemetry = http.config.inner.telemetry;
        let telemetry = telemetry.then(|| Telemetry::start(http.clone(), id.to_string()));
        let session = Arc::new(Self {
            http,
            id,
            models: AtomicI64::new(0),
            samplers: AtomicI64::new(0),
            losses: AtomicI64::new(0),
            tokenizers: Tokenizers::default(),
            closed: AtomicBool::new(false),
            background: OnceLock::new(),
            telemetry,
        });
        let background = session.http.spawn(keep_alive(Arc::downgrade(&session)));
        session.background.get_or_init(|| AbortOnDrop(background));
        session
    }

    /// The number of the next training run.
    pub(crate) fn next_model(&self) -> i64 {
        self.models.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of the next sampler.
    pub(crate) fn next_sampler(&self) -> i64 {
        self.samplers.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of the next custom loss.
    pub(crate) fn next_loss(&self) -> i64 {
        self.losses.fetch_add(1, Ordering::Relaxed)
    }

    /// What is reported to the server.
    pub(crate) fn telemetry(&self) -> Option<&Telemetry> {
        self.telemetry.as_ref()
    }

    /// Whether it was not closed.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }

    /// Ends it; the server keeps the first reason.
    pub(crate) async fn finish(&self, reason: FinishReason, detail: Option<String>) -> Result<()> {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(telemetry) = &self.telemetry {
            telemetry.end().await;
        }
        let path = format!("sessions/{}/finish", self.id);
        let call = Call::post(&path, &FinishSessionRequest { reason, detail })?.pool(Pool::Session);
        match self.http.send(&call).await {
            // Servers of older generations let sessions run out.
            Ok(_) | Err(Error::Api { status: 404 | 405, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Heartbeats until the session ends, or nobody has it any more.
async fn keep_alive(session: Weak<Session>) {
    let Some((http, id)) = session.upgrade().map(|held| (held.http.clone(), held.id.clone()))
    else {
        return;
    };
    let clock = Arc::clone(http.config.clock());
    let request = HeartbeatRequest { session_id: id };
    let mut heard = clock.now();
    let mut refreshed = clock.now();
    loop {
        clock.sleep(http.config.inner.heartbeat_interval).await;
        if session.upgrade().is_none_or(|session| !session.is_open()) {
            return;
        }
        match beat(&http, &request).await {
            Ok(()) => heard = clock.now(),
            // The session has ended: nothing can bring it back.
            Err(Error::Api { status: 404 | 410, .. }) => return,
            Err(error) => {
                let silence = clock.now().saturating_duration_since(heard);
                if silence >= SILENCE_WARNING {
                    let seconds = silence.as_secs();
                    tracing::warn!(%error, seconds, "no heartbeat came through: the server may end the session");
                    heard = clock.now();
                }
            }
        }
        if clock.now().saturating_duration_since(refreshed) >= refresh_interval(&http) {
            refreshed = clock.now();
            refresh(&http).await;
        }
    }
}

async fn beat(http: &Http, request: &HeartbeatRequest) -> Result<()> {
    let call = Call::post("session_heartbeat", request)?.pool(Pool::Session);
    http.send(&call.retries(false, false).timeout(SHORT_TIMEOUT)).await.map(drop)
}

fn refresh_interval(http: &Http) -> Duration {
    let set = http.known_server().and_then(|server| {
        server.dynamic.read().unwrap_or_else(PoisonError::into_inner).refresh_interval_sec
    });
    Duration::from_secs(set.unwrap_or(REFRESH_SECONDS).max(REFRESH_SECONDS_MIN))
}

/// Asks for the settings that may change; those before stay where there is no answer.
async fn refresh(http: &Http) {
    let who = ClientConfigRequest { sdk_version: Some(env!("CARGO_PKG_VERSION").to_owned()) };
    let Ok(call) = Call::post("client/dynamic_config", &who) else { return };
    let call = call.pool(Pool::Session).retries(false, false).timeout(SHORT_TIMEOUT);
    let fresh: Result<DynamicConfig> = http.send_json(&call).await;
    if let (Ok(fresh), Some(server)) = (fresh, http.known_server()) {
        *server.dynamic.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    }
}
