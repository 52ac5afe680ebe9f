//! Whether the server's queue moves, and who wants to know.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{Clock, future::panic_text};

/// The log names a pause at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Whether the queue that a request stands in moves.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum QueueState {
    /// It does.
    Active,
    /// The server holds the request back, since its owner sent too much.
    PausedRateLimit,
    /// The server has no hardware free for it.
    PausedCapacity,
    /// A state of a newer server.
    Unknown(String),
}

impl QueueState {
    /// The state of that name on the wire.
    ///
    /// ```
    /// use tinsmith::QueueState;
    ///
    /// assert_eq!(QueueState::parse("paused_capacity"), QueueState::PausedCapacity);
    /// assert_eq!(QueueState::parse("odd"), QueueState::Unknown("odd".to_owned()));
    /// ```
    pub fn parse(name: &str) -> Self {
        match name {
            "active" => Self::Active,
            "paused_rate_limit" => Self::PausedRateLimit,
            "paused_capacity" => Self::PausedCapacity,
            other => Self::Unknown(other.to_owned()),
        }
    }

    /// As on the wire; `unknown` for what is not known.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::PausedRateLimit => "paused_rate_limit",
            Self::PausedCapacity => "paused_capacity",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Whether requests wait for something else than their turn.
    pub fn is_paused(&self) -> bool {
        matches!(self, Self::PausedRateLimit | Self::PausedCapacity)
    }

    /// What to tell people where the server gives no reason.
    fn default_reason(&self) -> &'static str {
        match self {
            Self::Active => "the queue moves",
            Self::PausedRateLimit => "too many requests at a time",
            Self::PausedCapacity => "the server has no capacity free",
            Self::Unknown(_) => "the server names a state that this client does not know",
        }
    }
}

impl fmt::Display for QueueState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => f.write_str(name),
            Self::Active | Self::PausedRateLimit | Self::PausedCapacity => {
                f.write_str(self.as_str())
            }
        }
    }
}

/// A queue changed its state while a request waited in it.
#[derive(Clone, Debug)]
pub struct QueueStateChange {
    /// What it is now.
    pub queue_state: QueueState,
    /// What it was; none before the first answer.
    pub previous: Option<QueueState>,
    /// Why, as the server says.
    pub reason: Option<String>,
    /// The request that waits.
    pub request_id: String,
    /// What [`crate::PollOptions::metadata`] says of it.
    pub metadata: BTreeMap<String, String>,
}

/// Is told of changes, on the client's own thread: it must not take long. One that panics is logged, and
/// polling goes on. Closures are observers too.
pub trait QueueStateObserver: Send + Sync {
    /// The state changed.
    fn on_queue_state_change(&self, change: &QueueStateChange);
}

impl<F: Fn(&QueueStateChange) + Send + Sync> QueueStateObserver for F {
    fn on_queue_state_change(&self, change: &QueueStateChange) {
        self(change);
    }
}

/// Those who want to know of every request of a service.
#[derive(Clone, Default)]
pub(crate) struct Observers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    observers: Mutex<Vec<(u64, Arc<dyn QueueStateObserver>)>>,
    logged: Mutex<Option<Instant>>,
}

impl Observers {
    pub(crate) fn attach(&self, observer: Arc<dyn QueueStateObserver>) -> ObserverGuard {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.list().push((id, observer));
        ObserverGuard { observers: self.clone(), id }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    fn list(&self) -> MutexGuard<'_, Vec<(u64, Arc<dyn QueueStateObserver>)>> {
        self.shared.observers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody: the log, `tracing`, those attached, and those of the call.
    pub(crate) fn tell(
        &self,
        clock: &dyn Clock,
        change: &QueueStateChange,
        of_call: &[Arc<dyn QueueStateObserver>],
    ) {
        let QueueStateChange { queue_state, request_id, metadata, reason, .. } = change;
        tracing::info!(
            name: "state_change", target: "tinsmith::queue",
            queue_state = queue_state.as_str(), %request_id, ?metadata, reason,
            "queue state changed"
        );
        self.log(clock, change);
        let attached: Vec<_> =
            self.list().iter().map(|(_, observer)| Arc::clone(observer)).collect();
        for observer in attached.iter().chain(of_call) {
            let told = catch_unwind(AssertUnwindSafe(|| observer.on_queue_state_change(change)));
            if let Err(panic) = told {
                let panic = panic_text(&*panic);
                tracing::warn!(panic, "a queue state observer panicked; polling goes on");
            }
        }
    }

    fn log(&self, clock: &dyn Clock, change: &QueueStateChange) {
        if change.queue_state == QueueState::Active {
            return;
        }
        let mut logged = self.shared.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.now();
        if logged.is_some_and(|logged| now.saturating_duration_since(logged) < LOG_INTERVAL) {
            return;
        }
        *logged = Some(now);
        let reason =
            change.reason.as_deref().unwrap_or_else(|| change.queue_state.default_reason());
        tracing::warn!(queue_state = %change.queue_state, reason, "requests wait");
    }

    /// The next pause is logged at once.
    pub(crate) fn clear_debounce(&self) {
        *self.shared.logged.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observers").field("attached", &self.list().len()).finish()
    }
}

/// Detaches its observer when it is dropped.
#[must_use = "the observer is detached when this is dropped"]
#[derive(Debug)]
pub struct ObserverGuard {
    observers: Observers,
    id: u64,
}

impl Drop for ObserverGuard {
    fn drop(&mut self) {
        self.observers.list().retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemClock;

    fn change(queue_state: QueueState) -> QueueStateChange {
        QueueStateChange {
            queue_state,
            previous: None,
            reason: None,
            request_id: "r".to_owned(),
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn one_that_panics_does_not_silence_the_others() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let observers = Observers::default();
        let _panics = observers.attach(Arc::new(|_: &QueueStateChange| panic!("on purpose")));
        let sink = Arc::clone(&seen);
        let guard = observers.attach(Arc::new(move |change: &QueueStateChange| {
            sink.lock().unwrap().push(change.queue_state.clone());
        }));
        observers.tell(&SystemClock, &change(QueueState::PausedCapacity), &[]);
        drop(guard);
        observers.tell(&SystemClock, &change(QueueState::Active), &[]);
        assert_eq!(*seen.lock().unwrap(), [QueueState::PausedCapacity]);
    }
}
