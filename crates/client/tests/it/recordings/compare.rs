//! Holds requests against recorded ones.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};
use tinsmith::testing::{RecordedRequest, Recording, Seen};

/// Headers whose values mean something to a server.
const HEADERS: [&str; 8] = [
    "accept",
    "content-type",
    "content-encoding",
    "x-api-key",
    "x-tinker-request-type",
    "x-tinker-request-iteration",
    "x-tinker-sampling-backpressure",
    "x-tinker-weights-access-token",
];
/// Headers whose presence does.
const PRESENT: [&str; 2] = ["x-idempotency-key", "x-tinker-create-promise-roundtrip-time"];
/// What clients send when they like, in the background.
const BACKGROUND: [&str; 3] = ["session_heartbeat", "telemetry", "retrieve_futures"];

const POLL: &str = "retrieve_future";

pub(super) fn is_poll(request: &RecordedRequest) -> bool {
    request.endpoint() == POLL || BACKGROUND.contains(&request.endpoint())
}

fn is_batch(endpoint: &str) -> bool {
    endpoint == "forward_backward"
}

/// One way in which a request differs.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    /// Such as `optim_step body.sdk_version`.
    pub(super) at: String,
    message: String,
}

impl Difference {
    pub(super) fn new(at: impl Into<String>, message: impl Into<String>) -> Self {
        Self { at: at.into(), message: message.into() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// Submissions in their order; polls for each request in theirs.
pub(super) fn requests(recording: &Recording, sent: &[Seen]) -> Vec<Difference> {
    let recorded: Vec<_> = recording.exchanges.iter().map(|exchange| &exchange.request).collect();
    let about = recorded[0].endpoint();
    let is_background = |endpoint: &str| BACKGROUND.contains(&endpoint) && endpoint != about;
    let is_extra = |endpoint: &str| {
        endpoint == "healthz" && recorded.iter().all(|one| one.endpoint() != endpoint)
    };
    let ours =
        sent.iter().filter(|seen| !is_background(seen.endpoint()) && !is_extra(seen.endpoint()));
    let theirs = recorded.iter().copied().filter(|one| !is_background(one.endpoint()));
    let (our_polls, mut ours): (Vec<_>, Vec<_>) = ours.partition(|seen| seen.endpoint() == POLL);
    let (polls, mut theirs): (Vec<_>, Vec<_>) = theirs.partition(|one| one.endpoint() == POLL);
    if BACKGROUND.contains(&about) {
        // They go on for as long as the client lives.
        ours.truncate(theirs.len());
    }
    // Chunks of a batch are sent beside each other, but for the first.
    let number = |body: &Value| body["seq_id"].as_i64();
    for batch in theirs.chunk_by_mut(|one, next| one.path == next.path && is_batch(one.endpoint()))
    {
        batch.sort_by_key(|one| number(one.says()));
    }
    for batch in ours.chunk_by_mut(|one, next| one.path == next.path && is_batch(one.endpoint())) {
        batch.sort_by_key(|one| number(&one.body));
    }
    let mut differences = Vec::new();
    series("", &theirs, &ours, &mut differences);
    let mut by_request: BTreeMap<String, (Vec<&RecordedRequest>, Vec<&Seen>)> = BTreeMap::new();
    let id = |body: &Value| body["request_id"].as_str().unwrap_or_default().to_owned();
    for poll in polls {
        by_request.entry(id(poll.says())).or_default().0.push(poll);
    }
    for poll in our_polls {
        by_request.entry(id(&poll.body)).or_default().1.push(poll);
    }
    for (id, (theirs, ours)) in by_request {
        series(&format!(" of {id}"), &theirs, &ours, &mut differences);
    }
    differences
}

fn series(of: &str, theirs: &[&RecordedRequest], ours: &[&Seen], found: &mut Vec<Difference>) {
    let list = |names: Vec<&str>| names.join(", ");
    let (their_names, our_names): (Vec<_>, Vec<_>) = (
        theirs.iter().map(|one| one.endpoint()).collect(),
        ours.iter().map(|one| one.endpoint()).collect(),
    );
    if their_names != our_names {
        let message = format!("recorded {}; sent {}", list(their_names), list(our_names));
        let what = if of.is_empty() { "requests" } else { "polls" };
        found.push(Difference::new(what, format!("{message}{of}")));
    }
    for (recorded, seen) in theirs.iter().zip(ours) {
        if recorded.endpoint() == seen.endpoint() {
            one(recorded, seen, found);
        }
    }
}

fn one(recorded: &RecordedRequest, seen: &Seen, found: &mut Vec<Difference>) {
    let endpoint = recorded.endpoint();
    let mut differ = |what: String, theirs: &dyn fmt::Debug, ours: &dyn fmt::Debug| {
        let message = format!("recorded {theirs:?}; sent {ours:?}");
        found.push(Difference::new(format!("{endpoint} {what}"), message));
    };
    if recorded.method != seen.method {
        differ("method".to_owned(), &recorded.method, &seen.method);
    }
    if recorded.query != seen.query {
        differ("query".to_owned(), &recorded.query, &seen.query);
    }
    for name in HEADERS {
        let (theirs, ours) = (recorded.headers.get(name), seen.headers.get(name));
        let is_token = theirs.is_some_and(|theirs| theirs == "<jwt>")
            && ours.is_some_and(|ours| ours.starts_with("eyJ"));
        if theirs != ours && !is_token {
            differ(format!("header {name}"), &theirs, &ours);
        }
    }
    for name in PRESENT {
        let (theirs, ours) = (recorded.headers.contains_key(name), seen.headers.contains_key(name));
        if theirs != ours {
            differ(format!("header {name}"), &theirs, &ours);
        }
    }
    let mut at = vec!["body".to_owned()];
    values(recorded.says(), &seen.body, &mut at, &mut |path, theirs, ours| {
        differ(path.to_owned(), theirs, ours);
    });
}

/// Calls `differ` with the place of each value that is not the same. Null and absent are one.
fn values(
    theirs: &Value,
    ours: &Value,
    at: &mut Vec<String>,
    differ: &mut impl FnMut(&str, &Value, &Value),
) {
    match (theirs, ours) {
        (Value::Object(one), Value::Object(other)) => {
            let field = |object: &Map<String, Value>, name: &str| {
                object.get(name).cloned().unwrap_or_default()
            };
            let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
            for name in names {
                at.push(name.clone());
                values(&field(one, name), &field(other, name), at, differ);
                at.pop();
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (one, other) in one.iter().zip(other) {
                values(one, other, at, differ);
            }
        }
        (Value::Number(one), Value::Number(other)) if one.as_f64() == other.as_f64() => {}
        (one, other) if one == other => {}
        (one, other) => differ(&at.join("."), one, other),
    }
}
