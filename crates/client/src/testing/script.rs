//! What a test server shall answer instead of the usual.

use std::{fmt, sync::Arc, time::Duration};

use super::{MockServer, Seen, body::Pace};
use crate::{Category, QueueState};
use bytes::Bytes;
use serde_json::{Value, json};

/// What a server answers to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) what: What,
    pub(super) headers: Vec<(String, String)>,
    pub(super) latency: Duration,
    pub(super) pace: Option<Pace>,
}

/// The kinds of answers.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// What the server would have said without a script.
    Usual,
    Whole {
        status: u16,
        content_type: &'static str,
        body: Bytes,
    },
    /// Status 200, naming the request that is polled for.
    TryAgain(QueueState, Option<String>),
    /// The head and half of the usual answer's body.
    CutOff,
    /// No answer; the connection is closed.
    Dropped,
    /// No answer; the connection stays open.
    Hanging,
}

impl Answer {
    fn of(what: What) -> Self {
        Self { what, headers: Vec::new(), latency: Duration::ZERO, pace: None }
    }

    /// What the server says without a script: for headers, latency and pace.
    pub fn usual() -> Self {
        Self::of(What::Usual)
    }

    /// JSON with status 200.
    #[expect(clippy::needless_pass_by_value, reason = "callers write json!(…) here")]
    pub fn json(body: Value) -> Self {
        Self::bytes(200, "application/json", body.to_string())
    }

    /// A status with `{"detail": detail}`.
    pub fn status(status: u16, detail: &str) -> Self {
        Self::bytes(status, "application/json", json!({ "detail": detail }).to_string())
    }

    /// Any status and body.
    pub fn bytes(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self::of(What::Whole { status, content_type, body: body.into() })
    }

    /// To a poll: not ready, ask again (status 408).
    #[expect(clippy::needless_pass_by_value, reason = "callers name a variant here")]
    pub fn pending(state: QueueState) -> Self {
        let body = json!({ "queue_state": state.to_string() });
        Self::bytes(408, "application/json", body.to_string())
    }

    /// To a poll: not ready, for this reason (status 408), and no use in asking before `retry_after`.
    #[expect(clippy::needless_pass_by_value, reason = "callers name a variant here")]
    pub fn paused(state: QueueState, reason: &str, retry_after: Option<Duration>) -> Self {
        let mut body = json!({ "queue_state": state.to_string(), "queue_state_reason": reason });
        if let Some(wait) = retry_after {
            body["retry_after_ms"] = json!(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        }
        Self::bytes(408, "application/json", body.to_string())
    }

    /// To a poll: the older form of "not ready" (status 200).
    pub fn try_again(state: QueueState, reason: Option<&str>) -> Self {
        Self::of(What::TryAgain(state, reason.map(str::to_owned)))
    }

    /// To a poll: the operation failed.
    pub fn failed(category: Category, message: &str) -> Self {
        Self::json(json!({ "error": message, "category": category.as_str() }))
    }

    /// To a poll: the result is there and has so many bytes.
    pub fn complete_metadata(bytes: u64) -> Self {
        Self::json(json!({ "status": "complete_metadata", "response_payload_size": bytes }))
    }

    /// The server has seen the request, and closes the connection without an answer.
    pub fn dropped() -> Self {
        Self::of(What::Dropped)
    }

    /// The head of the usual answer and half of its body; then the connection is closed.
    pub fn cut_off() -> Self {
        Self::of(What::CutOff)
    }

    /// Status 200 and bytes that are no JSON.
    pub fn garbage() -> Self {
        Self::bytes(200, "application/json", &b"\xff\x00<garbage"[..])
    }

    /// Nothing, ever.
    pub fn hanging() -> Self {
        Self::of(What::Hanging)
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// After so long, by the wall clock.
    #[must_use]
    pub fn after(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Its body in pieces of so many bytes, with pauses between them.
    #[must_use]
    pub fn slowly(mut self, piece: usize, pause: Duration) -> Self {
        self.pace = Some(Pace { piece, pause });
        self
    }
}

/// Tells which requests.
type Matcher = Arc<dyn Fn(&Seen) -> bool + Send + Sync>;

/// Which requests get which answer.
#[derive(Clone)]
pub(super) struct Rule {
    endpoint: String,
    of_results: bool,
    matcher: Option<Matcher>,
    skip: usize,
    left: usize,
    answer: Answer,
}

impl Rule {
    /// The answer to this request, if the rule is about it. `polled` is the endpoint that the result polled for
    /// was asked from.
    pub(super) fn apply(&mut self, seen: &Seen, polled: Option<&str>) -> Option<Answer> {
        let endpoint = if self.of_results { polled? } else { seen.endpoint() };
        if self.left == 0 || !is_like(&self.endpoint, endpoint) {
            return None;
        }
        if self.matcher.as_ref().is_some_and(|matcher| !matcher(seen)) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if !self.is_forever() {
            self.left -= 1;
        }
        Some(self.answer.clone())
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.left == 0
    }

    pub(super) fn is_forever(&self) -> bool {
        self.left == usize::MAX
    }

    /// For messages about rules that were never used.
    pub(super) fn describe(&self) -> String {
        let results = if self.of_results { "results of " } else { "" };
        format!("{results}{} ({} times)", self.endpoint, self.left)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// `*` stands for one segment.
fn is_like(pattern: &str, endpoint: &str) -> bool {
    let (mut patterns, mut segments) = (pattern.split('/'), endpoint.split('/'));
    loop {
        match (patterns.next(), segments.next()) {
            (None, None) => return true,
            (Some(pattern), Some(segment)) if pattern == "*" || pattern == segment => {}
            (Some(_) | None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

/// A rule in the making: which requests, and then their [`answer`](Self::answer).
#[derive(Debug)]
#[must_use = "nothing changes before `answer`"]
pub struct When<'a> {
    server: &'a MockServer,
    rule: Rule,
}

impl<'a> When<'a> {
    pub(super) fn new(server: &'a MockServer, endpoint: &str) -> Self {
        let rule = Rule {
            endpoint: endpoint.to_owned(),
            of_results: false,
            matcher: None,
            skip: 0,
            left: 1,
            answer: Answer::usual(),
        };
        Self { server, rule }
    }

    /// Polls for what was asked from the endpoint, rather than the asking.
    pub fn result(mut self) -> Self {
        self.rule.of_results = true;
        self
    }

    /// Only those that `matcher` agrees to.
    pub fn matching(mut self, matcher: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Self {
        self.rule.matcher = Some(Arc::new(matcher));
        self
    }

    /// Only the `n`th from now on, counted from 1. Without this, or `times`, or `always`: the next one.
    pub fn nth(mut self, n: usize) -> Self {
        self.rule.skip = n.saturating_sub(1);
        self.rule.left = 1;
        self
    }

    /// The next `times` ones.
    pub fn times(mut self, times: usize) -> Self {
        self.rule.left = times;
        self
    }

    /// All from now on.
    pub fn always(mut self) -> Self {
        self.rule.left = usize::MAX;
        self
    }

    /// Gets this answer. Of several rules about a request, the oldest that is not used up counts.
    pub fn answer(self, answer: Answer) {
        self.server.add(Rule { answer, ..self.rule });
    }

    /// Get these answers, one each, in order.
    pub fn answers(self, answers: impl IntoIterator<Item = Answer>) {
        for answer in answers {
            self.server.add(Rule { answer, ..self.rule.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_segment() {
        assert!(is_like("training_runs/*/checkpoints", "training_runs/a:train:0/checkpoints"));
        assert!(!is_like("training_runs/*", "training_runs/a/checkpoints"));
        assert!(!is_like("training_runs/*/checkpoints", "training_runs/a"));
        assert!(is_like("asample", "asample"));
    }
}
