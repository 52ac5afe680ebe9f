//! When a request is sent again, and how long after.

use std::time::{Duration, SystemTime};

use reqwest::{StatusCode, header::HeaderMap};

/// Repeats of one HTTP request within one attempt.
pub const DEFAULT_MAX_RETRIES: u32 = 10;
/// For a request that the server cannot take now, all its attempts together.
pub const DEFAULT_RETRY_TIMEOUT: Duration = Duration::from_secs(300);
/// A pause that a server asks for is honoured up to this long.
const ASKED_MAX: Duration = Duration::from_secs(60);

/// When a request is sent again. There are two loops: an attempt repeats one HTTP request under one
/// idempotency key; when it has failed, whole attempts follow until [`RetryPolicy::timeout`].
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Repeats within one attempt (default 10).
    pub max_retries: u32,
    /// The first pause within an attempt (default 0.5 s); it doubles up to [`RetryPolicy::max_delay`].
    pub base_delay: Duration,
    /// The longest pause within an attempt (default 10 s).
    pub max_delay: Duration,
    /// Each pause is shortened by up to this part of it (default 0.25), so that clients do not come together.
    pub jitter: f64,
    /// All attempts together (default 5 min).
    pub timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: DEFAULT_MAX_RETRIES,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(10),
            jitter: 0.25,
            timeout: DEFAULT_RETRY_TIMEOUT,
        }
    }
}

impl RetryPolicy {
    /// No repeats at all.
    pub fn none() -> Self {
        Self { max_retries: 0, timeout: Duration::ZERO, ..Self::default() }
    }

    /// The pause after failure number `n` of an attempt, from 0; `random` is in [0, 1).
    pub(crate) fn delay(&self, n: u32, random: f64) -> Duration {
        let doubled = self.base_delay.saturating_mul(2_u32.saturating_pow(n));
        doubled.min(self.max_delay).mul_f64(1.0 - self.jitter.clamp(0.0, 1.0) * random)
    }
}

/// In [0, 1).
pub(crate) fn random() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u128() & 0xffff_ffff;
    f64::from(u32::try_from(bits).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
}

/// The pause after attempt number `n`, from 0: 1, 2, 4, 8, 16, 30, 30, … s.
pub(crate) fn outer_delay(n: u32) -> Duration {
    Backoff::default().delay(n)
}

/// A pause that doubles up to a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backoff {
    /// The first pause (default 1 s).
    pub initial: Duration,
    /// The longest one (default 30 s).
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The pause after iteration `n`, from 0: `min(initial · 2ⁿ, max)`.
    ///
    /// ```
    /// let seconds: Vec<u64> =
    ///     (0..7).map(|n| tinsmith::Backoff::default().delay(n).as_secs()).collect();
    /// assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
    /// ```
    pub fn delay(&self, n: u32) -> Duration {
        self.initial.saturating_mul(2_u32.saturating_pow(n)).min(self.max)
    }
}

/// Whether a status may pass: 408, 409, 429, 5xx. The server can say otherwise with `x-should-retry`.
pub(crate) fn is_transient(status: StatusCode, headers: &HeaderMap) -> bool {
    match headers.get("x-should-retry").map(reqwest::header::HeaderValue::as_bytes) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => matches!(status.as_u16(), 408 | 409 | 429 | 500..),
    }
}

/// The pause that the server asks for: `retry-after-ms`, or `retry-after` in seconds or as a date.
pub(crate) fn asked(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let number = |name: &str| text(name)?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0);
    let seconds = seconds.or_else(|| number("retry-after"));
    let asked = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => httpdate::parse_http_date(text("retry-after")?).ok()?.duration_since(now).ok(),
    }?;
    (!asked.is_zero() && asked <= ASKED_MAX).then_some(asked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn pauses_asked_for_are_honoured_if_they_are_sensible() {
        let now = SystemTime::UNIX_EPOCH;
        let asked = |pairs: &[(&'static str, &str)]| asked(&headers(pairs), now);
        assert_eq!(asked(&[("retry-after", "2")]), Some(Duration::from_secs(2)));
        assert_eq!(asked(&[("retry-after-ms", "150")]), Some(Duration::from_millis(150)));
        assert_eq!(asked(&[("retry-after", "120")]), None);
        assert_eq!(asked(&[("retry-after", "-1")]), None);
        assert_eq!(asked(&[("retry-after", "soon")]), None);
        let date = [("retry-after", "Thu, 01 Jan 1970 00:00:07 GMT")];
        assert_eq!(asked(&date), Some(Duration::from_secs(7)));
    }

    #[test]
    fn the_server_may_say_whether_to_send_again() {
        let yes = headers(&[("x-should-retry", "true")]);
        let no = headers(&[("x-should-retry", "false")]);
        assert!(is_transient(StatusCode::BAD_REQUEST, &yes));
        assert!(!is_transient(StatusCode::SERVICE_UNAVAILABLE, &no));
        assert!(is_transient(StatusCode::CONFLICT, &headers(&[])));
        assert!(!is_transient(StatusCode::NOT_FOUND, &headers(&[])));
    }

    proptest! {
        #[test]
        fn pauses_grow_up_to_their_limit(n: u32, random in 0.0..1.0_f64) {
            let backoff = Backoff::default();
            prop_assert!(backoff.delay(n) <= backoff.delay(n.saturating_add(1)));
            prop_assert!(backoff.delay(n) <= backoff.max);
            let policy = RetryPolicy::default();
            prop_assert!(policy.delay(n, random) <= policy.max_delay);
            prop_assert!(policy.delay(n, random) >= policy.base_delay.mul_f64(0.75));
        }
    }
}
