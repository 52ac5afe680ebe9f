//! What all handlers share.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use tinsmith_store::{NewSession, Store, clock::Clock};
use tinsmith_types::ids::{SessionId, TenantId};
use tokio::sync::{Semaphore, watch};

use crate::{
    catalog::Catalog,
    config::Config,
    error::{Error, Result, short},
    routes::tinkerbell::Drawing,
    token,
};

/// Renders all metrics in Prometheus' text format.
pub(crate) type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The state that the router carries.
pub(crate) type Shared = Arc<App>;

/// What one server is made of.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) catalog: Catalog,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) render_metrics: RenderMetrics,
    /// One permit for each KiB of bodies that may be in work.
    pub(crate) body_budget: Arc<Semaphore>,
    /// One permit for each download that may run.
    pub(crate) downloads: Arc<Semaphore>,
    pub(crate) drawing: Drawing,
    unknown_fields: Mutex<BTreeSet<(String, String)>>,
    /// Since when lines of clients' telemetry are counted, and how many there were.
    telemetry_lines: Mutex<(Duration, u32)>,
    /// Sessions of tenants that sample without one.
    sampling_sessions: Mutex<BTreeMap<TenantId, SessionId>>,
}

const MINUTE: Duration = Duration::from_secs(60);

/// Unknown fields that are remembered so that each is logged once; a hostile client could send any number.
const UNKNOWN_FIELDS_MAX: usize = 1000;

/// Tenants whose session for samples without one is remembered; forgotten all at once when there are more.
const SAMPLING_SESSIONS_MAX: usize = 10_000;

impl App {
    pub(crate) fn new(
        config: Config,
        store: Store,
        catalog: Catalog,
        clock: Arc<dyn Clock>,
        render_metrics: RenderMetrics,
    ) -> Self {
        let body_budget = Arc::new(Semaphore::new(config.body_bytes_in_flight_max / 1024));
        let downloads = Arc::new(Semaphore::new(config.downloads_max));
        let telemetry_lines = Mutex::new((clock.monotonic(), 0));
        Self {
            config,
            store,
            catalog,
            clock,
            render_metrics,
            body_budget,
            downloads,
            drawing: Drawing::default(),
            unknown_fields: Mutex::default(),
            sampling_sessions: Mutex::default(),
            telemetry_lines,
        }
    }

    /// Whether one more line of clients' telemetry may be logged in this minute; says so once if not.
    pub(crate) fn may_log_telemetry(&self) -> bool {
        let now = self.clock.monotonic();
        let mut lines = self.telemetry_lines.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(lines.0) >= MINUTE {
            *lines = (now, 0);
        }
        lines.1 = lines.1.saturating_add(1);
        let lines_max = self.config.telemetry_lines_max;
        if lines.1 == lines_max.saturating_add(1) {
            tracing::warn!(lines_max, "clients report more than is logged in a minute");
        }
        lines.1 <= lines_max
    }

    /// A session, kept alive, for a tenant that samples without one.
    pub(crate) async fn sampling_session(&self, tenant: &TenantId) -> Result<SessionId> {
        let known = self.lock_sampling_sessions().get(tenant).cloned();
        if let Some(id) = known
            && self.store.heartbeat(tenant, &id).await.is_ok()
        {
            return Ok(id);
        }
        let new = NewSession {
            tags: vec!["samples-without-session".to_owned()],
            user_metadata: serde_json::json!({}),
            sdk_version: String::new(),
            project_id: None,
            display_name: None,
        };
        let id = self.store.create_session(tenant, new, None).await?.id;
        let mut sessions = self.lock_sampling_sessions();
        if sessions.len() >= SAMPLING_SESSIONS_MAX {
            sessions.clear();
        }
        sessions.insert(tenant.clone(), id.clone());
        Ok(id)
    }

    fn lock_sampling_sessions(&self) -> MutexGuard<'_, BTreeMap<TenantId, SessionId>> {
        self.sampling_sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a field that no known SDK sends there, the first time that it is seen.
    pub(crate) fn note_unknown_field(&self, path: &str, field: &str) {
        let field = short(field);
        let mut seen = self.unknown_fields.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < UNKNOWN_FIELDS_MAX && seen.insert((path.to_owned(), field.to_string())) {
            tracing::warn!(path, field = &*field, "unknown field ignored");
        }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("config", &self.config).finish_non_exhaustive()
    }
}

impl App {
    /// Whose a credential is: a key, or a token that its owner gave to somebody else.
    ///
    /// # Errors
    /// 401 for a token that does not hold.
    pub(crate) fn tenant_of(&self, credential: Option<&str>) -> Result<TenantId> {
        match credential {
            Some(given) if self.config.jwt_auth && token::is_token(given) => {
                token::check(self, given)
            }
            // Without keys there is one tenant, and any key (or none) is as good as another.
            Some(_) | None => Ok(TenantId::from("local")),
        }
    }
}

/// The key, or the token in its place, that a request came with.
pub(crate) fn credential(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-api-key")?.to_str().ok().filter(|key| !key.is_empty())
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub(crate) struct Tenant(pub(crate) TenantId);

impl FromRequestParts<Shared> for Tenant {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self> {
        Ok(Self(app.tenant_of(credential(&parts.headers))?))
    }
}

/// Becomes true when the server begins to stop; `serve` puts it into every request.
#[derive(Clone, Debug)]
pub(crate) struct Stopping(pub(crate) watch::Receiver<bool>);

impl Stopping {
    /// Returns when the server begins to stop.
    pub(crate) async fn wait(mut self) {
        if self.0.wait_for(|stopping| *stopping).await.is_err() {
            // Whoever would say so is gone without having said so: the server goes on.
            std::future::pending::<()>().await;
        }
    }

    /// The same where nobody may be there to say so: then it never returns.
    pub(crate) async fn told(stopping: Option<Self>) {
        match stopping {
            Some(stopping) => stopping.wait().await,
            None => std::future::pending().await,
        }
    }
}
