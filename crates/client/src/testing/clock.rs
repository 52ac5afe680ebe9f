//! A clock for tests, on which nobody waits.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::{Clock, Sleep};

/// Sleeps of background tasks: only [`TestClock::advance`] ends them.
const LONG: Duration = Duration::from_secs(3600);
/// Real time without anything new, after which the clock moves on by itself.
const QUIET: Duration = Duration::from_millis(15);

/// A clock that nobody waits for. Clones are the same clock.
///
/// It moves on to the end of the next sleep as soon as nothing else happens, or only when told to
/// ([`manual`](Self::manual)), and keeps how long it was asked to sleep. Sleeps of an hour and more it leaves to
/// [`advance`](Self::advance): they belong to the background.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use tinsmith::{AdamParams, QueueState, ServiceClient, testing::{Answer, MockServer, TestClock}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (server, clock) = (MockServer::start()?, TestClock::new());
/// let config = server.config().to_builder().clock(Arc::new(clock.clone()));
/// let config = config.heartbeat_interval(Duration::from_secs(86_400)).build()?;
/// let service = ServiceClient::connect_blocking(config)?;
/// let training = service.create_lora_training_client("any-model").wait()?;
/// server.when("optim_step").result().times(2).answer(Answer::pending(QueueState::Active));
/// training.optim_step(AdamParams::default()).wait()?;
/// assert!(clock.sleeps().ends_with(&[Duration::from_secs(1), Duration::from_secs(2)]));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TestClock {
    shared: Arc<Shared>,
    _driver: Option<Arc<Driver>>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    elapsed: Duration,
    /// By their ends, and the order in which they began.
    sleepers: BTreeMap<(Duration, u64), Sleeper>,
    asked: Vec<Duration>,
    /// Sleeps that began or ended so far.
    changes: u64,
    closed: bool,
}

#[derive(Debug)]
struct Sleeper {
    waker: Option<Waker>,
    is_long: bool,
}

/// Ends the thread that moves a clock on, with the last clone of the clock.
struct Driver(Arc<Shared>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl TestClock {
    /// One that moves on by itself.
    ///
    /// # Panics
    ///
    /// No thread can be started.
    pub fn new() -> Self {
        let shared = Shared::new();
        let driven = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("tinsmith-clock".to_owned())
            .spawn(move || driven.drive())
            .expect("a test process may start a thread");
        let driver = Arc::new(Driver(Arc::clone(&shared)));
        Self { shared, _driver: Some(driver) }
    }

    /// One that [`advance`](Self::advance) moves, and nothing else.
    pub fn manual() -> Self {
        Self { shared: Shared::new(), _driver: None }
    }

    /// Moves on by so much, and wakes those whose sleeps end by then.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.shared.lock();
        let end = state.elapsed + duration;
        let woken = state.move_to(end);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// How far it has moved.
    pub fn elapsed(&self) -> Duration {
        self.shared.lock().elapsed
    }

    /// All sleeps that it was asked for, in the order in which they began.
    pub fn sleeps(&self) -> Vec<Duration> {
        self.shared.lock().asked.clone()
    }

    /// Sleeps that have not ended.
    pub fn sleepers(&self) -> usize {
        self.shared.lock().sleepers.len()
    }

    fn nap(&self, duration: Duration) -> Nap {
        let mut state = self.shared.lock();
        state.asked.push(duration);
        state.changes += 1;
        let key = (state.elapsed.saturating_add(duration), state.changes);
        state.sleepers.insert(key, Sleeper { waker: None, is_long: duration >= LONG });
        drop(state);
        self.shared.changed.notify_all();
        Nap { shared: Arc::clone(&self.shared), key }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.shared.start + self.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(self.nap(duration))
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TestClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestClock").field("elapsed", &self.elapsed()).finish_non_exhaustive()
    }
}

impl Shared {
    #[expect(clippy::disallowed_methods, reason = "where this clock begins to count")]
    fn new() -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { start: Instant::now(), state, changed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the clock on whenever it is quiet, until the clock is dropped.
    fn drive(&self) {
        let mut state = self.lock();
        while !state.closed {
            let changes = state.changes;
            let waited = self.changed.wait_timeout(state, QUIET);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            let short = state.sleepers.iter().find(|(_, sleeper)| !sleeper.is_long);
            let next = short.map(|((end, _), _)| *end);
            if let Some(end) = next
                && state.changes == changes
            {
                let woken = state.move_to(end);
                drop(state);
                woken.into_iter().for_each(Waker::wake);
                state = self.lock();
            }
        }
    }
}

impl State {
    /// The time is `end`; returns those to wake.
    fn move_to(&mut self, end: Duration) -> Vec<Waker> {
        self.elapsed = self.elapsed.max(end);
        let later = self.sleepers.split_off(&(end, u64::MAX));
        let ended = std::mem::replace(&mut self.sleepers, later);
        ended.into_values().filter_map(|sleeper| sleeper.waker).collect()
    }
}

/// A sleep.
struct Nap {
    shared: Arc<Shared>,
    key: (Duration, u64),
}

impl Future for Nap {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.shared.lock().sleepers.get_mut(&self.key) {
            Some(sleeper) => {
                sleeper.waker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Nap {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.sleepers.remove(&self.key);
        state.changes += 1;
        drop(state);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_passes_by_itself_and_in_order() {
        let clock = TestClock::new();
        let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let _long = clock.nap(LONG);
        let longer = clock.nap(minute);
        clock.nap(second).await;
        assert_eq!(clock.elapsed(), second);
        longer.await;
        assert_eq!((clock.elapsed(), clock.sleeps()), (minute, vec![LONG, minute, second]));
        assert_eq!(clock.sleepers(), 1);
    }

    #[tokio::test]
    async fn a_manual_clock_stands_still() {
        let clock = TestClock::manual();
        let second = Duration::from_secs(1);
        let nap = tokio::spawn(clock.nap(second));
        let dropped = clock.nap(second);
        clock.advance(second / 2);
        assert!(!nap.is_finished());
        drop(dropped);
        clock.advance(second / 2);
        nap.await.unwrap();
        assert_eq!((clock.elapsed(), clock.sleepers()), (second, 0));
    }
}
