//! The mock server: what is scripted first, then the usual; and a record of what was asked.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hyper::{Response, http::request::Parts};
use serde_json::{Value, json};

use super::{
    Answer, Seen, When,
    body::AnswerBody,
    script::{Rule, What},
    transport::{Answered, Handler, Transport},
    world::{Reply, World},
};
use crate::Config;

/// Requests that are kept; the oldest are forgotten first.
const SEEN_MAX: usize = 65_536;

/// A server of the API in this process, on a free port of 127.0.0.1, for tests.
///
/// It keeps sessions, runs, checkpoints and results in memory and answers at once: models are created (all but
/// those whose names begin with `invalid`), `forward_backward` gives logprobs of the right shapes, samples have
/// tokens. What shall go differently is said with [`when`](Self::when).
///
/// Dropping it closes it.
///
/// ```
/// use tinsmith::testing::{Answer, MockServer};
///
/// let server = MockServer::start().unwrap();
/// // The third optimizer step finds the server busy.
/// server.when("optim_step").nth(3).answer(Answer::status(503, "busy"));
/// assert!(server.seen("optim_step").is_empty());
/// ```
#[derive(Debug)]
pub struct MockServer {
    shared: Arc<Shared>,
    transport: Transport,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug)]
struct State {
    seen: VecDeque<Seen>,
    count: usize,
    rules: Vec<Rule>,
    world: World,
}

impl MockServer {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// No port is free, or no thread can be started.
    pub fn start() -> io::Result<Self> {
        let state =
            State { seen: VecDeque::new(), count: 0, rules: Vec::new(), world: World::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new() });
        let transport = Transport::start(Arc::clone(&shared))?;
        Ok(Self { shared, transport })
    }

    /// Such as `http://127.0.0.1:34567`.
    pub fn url(&self) -> String {
        self.transport.url()
    }

    /// A configuration for clients of it.
    pub fn config(&self) -> Config {
        let config = Config::builder().base_url(self.url()).api_key("tml-test-key").build();
        config.expect("the address and the key are good")
    }

    /// Begins a rule about an endpoint: its path behind `/api/v1/`, `*` for any one segment of it.
    pub fn when(&self, endpoint: &str) -> When<'_> {
        When::new(self, endpoint)
    }

    /// Answers to the next polls, whatever they are for.
    pub fn polls(&self, answers: impl IntoIterator<Item = Answer>) {
        self.when("retrieve_future").answers(answers);
    }

    /// What `client/config` answers; `{}` without this.
    pub fn set_client_config(&self, config: Value) {
        self.lock().world.set_client_config(config);
    }

    /// What `client/dynamic_config` answers; `{}` without this.
    pub fn set_dynamic_config(&self, config: Value) {
        self.lock().world.set_dynamic_config(config);
    }

    /// A file that `GET <path>` gives, in parts too where a range is asked for. Returns its address.
    pub fn add_file(&self, path: &str, content: impl Into<Bytes>) -> String {
        self.lock().world.add_file(path, content.into());
        format!("{}{path}", self.url())
    }

    /// A checkpoint, such as `tinker://run-1/weights/step-1`, with its run if that is new.
    pub fn add_checkpoint(&self, tinker_path: &str) {
        self.lock().world.add_checkpoint(tinker_path);
    }

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Seen> {
        self.lock().seen.iter().cloned().collect()
    }

    /// The requests to one endpoint, in the order in which they came.
    pub fn seen(&self, endpoint: &str) -> Vec<Seen> {
        self.lock().seen.iter().filter(|seen| seen.endpoint() == endpoint).cloned().collect()
    }

    /// One field of the bodies of an endpoint's requests, in their order.
    pub fn asked(&self, endpoint: &str, field: &str) -> Vec<Value> {
        self.seen(endpoint).iter().map(|seen| seen.body[field].clone()).collect()
    }

    /// How many requests have come, those included that are forgotten by now.
    pub fn request_count(&self) -> usize {
        self.lock().count
    }

    /// Waits until an endpoint has got so many requests; false where they do not come within `limit`.
    pub fn wait_for(&self, endpoint: &str, requests: usize, limit: Duration) -> bool {
        let so_far =
            |state: &State| state.seen.iter().filter(|seen| seen.endpoint() == endpoint).count();
        let waited = (self.shared.arrived)
            .wait_timeout_while(self.lock(), limit, |state| so_far(state) < requests);
        so_far(&waited.unwrap_or_else(PoisonError::into_inner).0) >= requests
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.lock().seen.clear();
    }

    /// Rules that no request has used up, but for those that count always.
    pub fn unused_rules(&self) -> Vec<String> {
        self.lock().rules.iter().filter(|rule| !rule.is_forever()).map(Rule::describe).collect()
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.transport.connections()
    }

    pub(super) fn add(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the request and finds out what to say. The usual answer is worked out also where a script has another
    /// that needs it.
    fn decide(&self, head: &Parts, body: Bytes) -> (Answer, Option<Reply>) {
        let mut state = self.lock();
        let seen = Seen::new(state.count, head, body);
        state.count += 1;
        let polled = state.world.polled_endpoint(&seen);
        let scripted = (state.rules.iter_mut())
            .find_map(|rule| rule.apply(&seen, polled.as_deref()))
            .unwrap_or_else(Answer::usual);
        state.rules.retain(|rule| !rule.is_used_up());
        let reply = match &scripted.what {
            What::Usual | What::CutOff => Some(state.world.answer(&seen)),
            What::TryAgain(queue_state, reason) => Some(Reply::json(json!({
                "type": "try_again", "request_id": seen.body["request_id"],
                "queue_state": queue_state.to_string(), "queue_state_reason": reason,
            }))),
            What::Whole { .. } | What::Dropped | What::Hanging => None,
        };
        if state.seen.len() == SEEN_MAX {
            state.seen.pop_front();
        }
        state.seen.push_back(seen);
        self.arrived.notify_all();
        (scripted, reply)
    }
}

impl Handler for Shared {
    fn handle(self: Arc<Self>, head: Parts, body: Bytes) -> Answered {
        Box::pin(async move {
            let (answer, reply) = self.decide(&head, body);
            let wait = answer.latency + reply.as_ref().map_or(Duration::ZERO, |reply| reply.hold);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let is_cut_off = matches!(answer.what, What::CutOff);
            let reply = match answer.what {
                What::Dropped => return None,
                What::Hanging => return std::future::pending().await,
                What::Whole { status, content_type, body } => {
                    Reply::bytes(status, content_type, body)
                }
                What::Usual | What::TryAgain(..) | What::CutOff => reply?,
            };
            let body = if is_cut_off {
                AnswerBody::cut_off(&reply.body)
            } else {
                AnswerBody::new(reply.body, answer.pace)
            };
            let mut response = Response::builder().status(reply.status);
            if let Some(content_type) = reply.content_type {
                response = response.header("content-type", content_type);
            }
            for (name, value) in reply.headers.iter().chain(&answer.headers) {
                response = response.header(name, value);
            }
            response.body(body).ok()
        })
    }
}
