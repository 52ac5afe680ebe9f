//! What holds requests back: the pause that a busy server asks for, a breaker, and budgets of bytes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{Clock, Error, Result};

/// A pause shared by all clients of one server.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    until: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// Nobody sends for this long; a longer pause stays.
    pub(crate) fn pause(&self, clock: &dyn Clock, pause: Duration) {
        let until = clock.now() + pause;
        let mut current = locked(&self.until);
        *current = Some(current.map_or(until, |set| set.max(until)));
    }

    /// Ends when the pause does.
    pub(crate) async fn wait(&self, clock: &dyn Clock) {
        loop {
            let left =
                locked(&self.until).and_then(|until| until.checked_duration_since(clock.now()));
            match left {
                Some(left) if !left.is_zero() => clock.sleep(left).await,
                _ => return,
            }
        }
    }

    /// Whether a pause began within the last `window`.
    pub(crate) fn is_recent(&self, clock: &dyn Clock, window: Duration) -> bool {
        locked(&self.until).is_some_and(|until| clock.now() < until + window)
    }
}

/// When a circuit breaker opens, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BreakerPolicy {
    /// Failures one after another that open it (default 5).
    pub failures: u32,
    /// How long it lets nothing through (default 30 s); then one call may try.
    pub open: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self { failures: 5, open: Duration::from_secs(30) }
    }
}

/// Whether a circuit breaker lets calls through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BreakerState {
    /// It does.
    Closed,
    /// It does not.
    Open,
    /// One call is trying.
    HalfOpen,
}

/// Lets no call through for a while after several failed. Give one to the configuration with
/// [`crate::ConfigBuilder::circuit_breaker`], or use it around calls of your own.
#[derive(Debug)]
pub struct CircuitBreaker {
    policy: BreakerPolicy,
    state: Mutex<Breaker>,
}

#[derive(Debug)]
enum Breaker {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

impl CircuitBreaker {
    /// A closed one.
    pub fn new(policy: BreakerPolicy) -> Self {
        Self { policy, state: Mutex::new(Breaker::Closed { failures: 0 }) }
    }

    /// Whether a call may be made now. After an `Ok`, tell [`Self::record`] how the call went.
    ///
    /// # Errors
    ///
    /// [`Error::CircuitOpen`].
    pub fn allow(&self, now: Instant) -> Result<()> {
        let mut state = locked(&self.state);
        match &*state {
            Breaker::Closed { .. } => Ok(()),
            Breaker::Open { until } if *until <= now => {
                *state = Breaker::HalfOpen;
                Ok(())
            }
            Breaker::Open { until } => {
                let left = until.saturating_duration_since(now).as_millis();
                Err(Error::CircuitOpen { retry_after_ms: u64::try_from(left).unwrap_or(u64::MAX) })
            }
            Breaker::HalfOpen => Err(Error::CircuitOpen { retry_after_ms: 0 }),
        }
    }

    /// How a call went.
    pub fn record(&self, now: Instant, succeeded: bool) {
        let mut state = locked(&self.state);
        let failures = match &*state {
            _ if succeeded => 0,
            Breaker::Closed { failures } => failures + 1,
            Breaker::HalfOpen => self.policy.failures,
            Breaker::Open { .. } => return,
        };
        *state = if failures >= self.policy.failures.max(1) {
            Breaker::Open { until: now + self.policy.open }
        } else {
            Breaker::Closed { failures }
        };
    }

    /// Whether it lets calls through.
    pub fn state(&self, now: Instant) -> BreakerState {
        match &*locked(&self.state) {
            Breaker::Closed { .. } => BreakerState::Closed,
            Breaker::Open { until } if *until <= now => BreakerState::HalfOpen,
            Breaker::Open { .. } => BreakerState::Open,
            Breaker::HalfOpen => BreakerState::HalfOpen,
        }
    }

    /// Closes it.
    pub fn reset(&self) {
        *locked(&self.state) = Breaker::Closed { failures: 0 };
    }
}

/// Bytes that may be under way at a time. Soft: one is let in while any are left, however large it is.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    left: Mutex<i64>,
    returned: Notify,
}

impl ByteBudget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { left: Mutex::new(signed(bytes)), returned: Notify::new() }
    }

    /// Waits until there is room, and takes it until the guard is dropped.
    pub(crate) async fn take(&self, bytes: u64) -> BudgetGuard<'_> {
        loop {
            let returned = self.returned.notified();
            if let Some(guard) = self.try_take(bytes) {
                return guard;
            }
            returned.await;
        }
    }

    fn try_take(&self, bytes: u64) -> Option<BudgetGuard<'_>> {
        let mut left = locked(&self.left);
        if *left <= 0 {
            return None;
        }
        *left -= signed(bytes);
        if *left > 0 {
            // There is room for the next one that waits.
            self.returned.notify_one();
        }
        Some(BudgetGuard { budget: self, bytes })
    }
}

/// Gives its bytes back.
#[derive(Debug)]
pub(crate) struct BudgetGuard<'a> {
    budget: &'a ByteBudget,
    bytes: u64,
}

impl Drop for BudgetGuard<'_> {
    fn drop(&mut self) {
        *locked(&self.budget.left) += signed(self.bytes);
        self.budget.returned.notify_one();
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX / 2)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemClock;

    #[test]
    fn a_breaker_opens_lets_one_try_and_closes() {
        let breaker =
            CircuitBreaker::new(BreakerPolicy { failures: 2, open: Duration::from_secs(30) });
        let start = SystemClock.now();
        let at = |seconds| start + Duration::from_secs(seconds);
        breaker.record(at(0), false);
        assert_eq!(breaker.state(at(0)), BreakerState::Closed);
        breaker.record(at(0), false);
        assert_eq!(breaker.state(at(1)), BreakerState::Open);
        let error = breaker.allow(at(10)).unwrap_err();
        assert!(matches!(error, Error::CircuitOpen { retry_after_ms: 20_000 }), "{error}");
        assert!(breaker.allow(at(30)).is_ok());
        assert!(breaker.allow(at(30)).is_err(), "only one may try");
        breaker.record(at(31), false);
        assert_eq!(breaker.state(at(32)), BreakerState::Open);
        assert!(breaker.allow(at(61)).is_ok());
        breaker.record(at(61), true);
        assert_eq!(breaker.state(at(61)), BreakerState::Closed);
    }

    #[test]
    fn a_success_between_failures_keeps_it_closed() {
        let breaker =
            CircuitBreaker::new(BreakerPolicy { failures: 2, ..BreakerPolicy::default() });
        let now = SystemClock.now();
        for succeeded in [false, true, false] {
            breaker.record(now, succeeded);
        }
        assert_eq!(breaker.state(now), BreakerState::Closed);
    }

    #[tokio::test]
    async fn a_budget_lets_one_in_while_any_is_left() {
        let budget = ByteBudget::new(10);
        let first = budget.take(8).await;
        let second = budget.take(100).await;
        let waits = |budget| {
            let take = ByteBudget::take(budget, 1);
            async { tokio::time::timeout(Duration::from_millis(10), take).await.is_err() }
        };
        assert!(waits(&budget).await);
        drop(first);
        assert!(waits(&budget).await, "still in debt");
        drop(second);
        assert!(!waits(&budget).await);
    }
}
