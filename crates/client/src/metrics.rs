//! Counts of what a client does, for its user to look at.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Latencies that percentiles are taken of: the last ones.
const SAMPLES: usize = 1000;

/// Counts since the client was made, or since the last reset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsSnapshot {
    /// `requests`, `requests_failed` (no good answer), `retries`, `polls`, and `queue_state_<state>` for
    /// changes to it.
    pub counters: BTreeMap<String, u64>,
    /// Of the last 1,000 HTTP requests but polls, from sending to the last byte; none without one.
    pub latency: Option<Latency>,
}

/// Percentiles of durations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Latency {
    /// How many they are of.
    pub count: usize,
    /// The median.
    pub p50: Duration,
    /// 19 of 20 are at most so long.
    pub p95: Duration,
    /// 99 of 100 are at most so long.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// Where a client counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counters: BTreeMap<String, u64>,
    latencies: VecDeque<Duration>,
}

impl Metrics {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self, name: &str) {
        let mut state = self.state();
        match state.counters.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(state.counters.insert(name.to_owned(), 1)),
        }
    }

    pub(crate) fn took(&self, duration: Duration) {
        let mut state = self.state();
        if state.latencies.len() >= SAMPLES {
            state.latencies.pop_front();
        }
        state.latencies.push_back(duration);
    }

    pub(crate) fn reset(&self) {
        *self.state() = State::default();
    }

    pub(crate) fn snapshot(&self) -> MetricsSnapshot {
        let (counters, mut sorted) = {
            let state = self.state();
            (state.counters.clone(), Vec::from(state.latencies.clone()))
        };
        sorted.sort_unstable();
        let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        let latency = (!sorted.is_empty()).then(|| Latency {
            count: sorted.len(),
            p50: at(50),
            p95: at(95),
            p99: at(99),
            max: at(100),
        });
        MetricsSnapshot { counters, latency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_durations() {
        let metrics = Metrics::default();
        assert_eq!(metrics.snapshot().latency, None);
        for ms in 0..1100 {
            metrics.took(Duration::from_millis(ms));
        }
        let latency = metrics.snapshot().latency.unwrap();
        let ms = |duration: Duration| duration.as_millis();
        assert_eq!(latency.count, 1000);
        assert_eq!((ms(latency.p50), ms(latency.p95)), (599, 1049));
        assert_eq!((ms(latency.p99), ms(latency.max)), (1089, 1099));
        metrics.count("requests");
        metrics.count("requests");
        assert_eq!(metrics.snapshot().counters["requests"], 2);
        metrics.reset();
        assert_eq!(metrics.snapshot(), MetricsSnapshot::default());
    }
}
