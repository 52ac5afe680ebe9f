//! Results of queued requests, in the encoding that polls ask for.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use prost::Message as _;
use serde_json::{Value, json};
use tinsmith_types::{futures::SAMPLES_PER_CLONE, proto, sampling, training};

use super::{Answered, Reply, Seen, required};

/// Results that are kept; the oldest are forgotten first.
const RESULTS_MAX: usize = 65_536;

/// How long an empty feed holds an answer back: clients ask again at once.
const FEED_HOLD: Duration = Duration::from_millis(20);

/// What a queued request comes to.
#[derive(Debug)]
pub(super) enum Outcome {
    Json(Value),
    Forward(proto::ForwardBackwardOutput),
    Sample(Box<proto::SampleResponse>),
}

#[derive(Debug)]
struct Queued {
    endpoint: String,
    /// The answer to the request itself.
    future: Value,
    outcome: Outcome,
}

/// Results by request id.
#[derive(Debug, Default)]
pub(super) struct Results {
    by_id: BTreeMap<String, Queued>,
    order: VecDeque<String>,
    /// Sampling session, clone and request of every sample so far.
    samples: Vec<(String, i64, String)>,
}

impl Results {
    /// The answer that a request got already.
    pub(super) fn again(&self, request_id: &str) -> Option<Reply> {
        self.by_id.get(request_id).map(|queued| Reply::json(queued.future.clone()))
    }

    pub(super) fn endpoint(&self, request_id: &str) -> Option<&str> {
        self.by_id.get(request_id).map(|queued| queued.endpoint.as_str())
    }

    /// Keeps a result. `future` is the answer to the request, with its `request_id`.
    pub(super) fn queue(&mut self, endpoint: &str, future: Value, outcome: Outcome) -> Reply {
        let id = future["request_id"].as_str().unwrap_or_default().to_owned();
        let reply = Reply::json(future.clone());
        let queued = Queued { endpoint: endpoint.to_owned(), future, outcome };
        if self.by_id.insert(id.clone(), queued).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > RESULTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        reply
    }

    pub(super) fn note_sample(&mut self, sampler: &str, seq_id: i64, request_id: &str) {
        let clone = seq_id / SAMPLES_PER_CLONE;
        self.samples.push((sampler.to_owned(), clone, request_id.to_owned()));
        if self.samples.len() > 2 * RESULTS_MAX {
            self.samples.clear();
        }
    }

    /// `retrieve_future`.
    pub(super) fn retrieve(&self, seen: &Seen) -> Answered {
        let id = required(seen, "request_id")?;
        let missing = || Reply::refused(404, format!("there is no request `{id}`"));
        let queued = self.by_id.get(id).ok_or_else(missing)?;
        let protobuf = seen.header("accept").is_some_and(|accept| accept.contains("x-protobuf"));
        let encoded =
            |message: Vec<u8>| Reply::bytes(200, "application/x-protobuf", message.into());
        let broken = |error: &dyn std::fmt::Display| Reply::refused(500, error.to_string());
        match &queued.outcome {
            Outcome::Json(json) => Ok(Reply::json(json.clone())),
            Outcome::Forward(output) if protobuf => Ok(encoded(output.encode_to_vec())),
            Outcome::Sample(response) if protobuf => Ok(encoded(response.encode_to_vec())),
            Outcome::Forward(output) => {
                let output = training::ForwardBackwardOutput::try_from(output);
                output.map_err(|error| broken(&error)).map(|output| Reply::json(json!(output)))
            }
            Outcome::Sample(response) => {
                let response = sampling::SampleResponse::try_from(&**response);
                response
                    .map_err(|error| broken(&error))
                    .map(|response| Reply::json(json!(response)))
            }
        }
    }

    /// `retrieve_futures`: a sampling client's samples behind its cursor.
    pub(super) fn feed(&self, seen: &Seen) -> Reply {
        let target = &seen.body["target"];
        let sampler = target["sampling_session_id"].as_str().unwrap_or_default();
        let clone = target["cloned_sampler_id"].as_i64().unwrap_or_default();
        let after = seen.body["prev_cursor"].as_u64().unwrap_or_default();
        let after = usize::try_from(after).unwrap_or(usize::MAX).min(self.samples.len());
        let of_client =
            self.samples[after..].iter().filter(|(of, by, _)| of == sampler && *by == clone);
        let completions: Vec<Value> =
            of_client.map(|(_, _, id)| json!({ "state": "finished", "request_id": id })).collect();
        let patient = seen.body["timeout"].as_f64() != Some(0.0);
        let hold = if completions.is_empty() && patient { FEED_HOLD } else { Duration::ZERO };
        let body = json!({ "completions": completions, "cursor": self.samples.len() });
        Reply { hold, ..Reply::json(body) }
    }
}
