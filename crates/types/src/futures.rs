//! `retrieve_future`, `retrieve_futures`, `cancel_future`, and the answers that stand for a result that is
//! to come.

use serde::{Deserialize, Serialize};

use crate::defaults::null_as_default;
use crate::ids::{ModelId, RequestId, SamplingSessionId, SequenceId};
use crate::json::Request;

/// Numbers of samples that each client of a sampling session has for itself: clone `n` begins at `n` times so
/// many.
pub const SAMPLES_PER_CLONE: i64 = 1_000_000_000;

/// Answer to every request that is queued.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct UntypedFuture {
    /// What to poll for.
    pub request_id: RequestId,
    /// The training run that the request is for, or creates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<ModelId>,
    /// Answer to `asample`: one id for each sequence asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_sequence_ids: Option<Vec<SequenceId>>,
}

/// Body of `POST retrieve_future`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct RetrieveFutureRequest {
    /// What is waited for.
    pub request_id: RequestId,
    /// The client can do with [`CompleteMetadata`] first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub allow_metadata_only: bool,
}

impl Request for RetrieveFutureRequest {}

/// Body of `POST retrieve_futures`: which samples of a client have ended?
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct RetrieveFuturesRequest {
    /// Whose samples.
    pub target: FuturesTarget,
    /// The `cursor` of the answer before; 0 begins from the beginning.
    #[serde(default, deserialize_with = "null_as_default")]
    pub prev_cursor: u64,
    /// Seconds that the answer may wait for the next sample to end; 0 is not at all. Default: as long as the
    /// server holds a poll.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// Samples whose results have been received, and are not needed any more.
    #[serde(default, deserialize_with = "null_as_default")]
    pub retrieved_request_ids: Vec<RequestId>,
}

impl Request for RetrieveFuturesRequest {
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[("cursor", "prev_cursor")];
}

/// The samples of one client of a sampling session.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FuturesTarget {
    /// Those whose numbers, divided by [`SAMPLES_PER_CLONE`], give the clone's.
    SamplingSession {
        /// The sampling session.
        sampling_session_id: SamplingSessionId,
        /// 0 is the client that opened it.
        #[serde(default, deserialize_with = "null_as_default")]
        cloned_sampler_id: i64,
    },
}

/// Answer of `POST retrieve_futures`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct RetrieveFuturesResponse {
    /// In the order of their ends; empty where none ended in time.
    pub completions: Vec<FutureCompletion>,
    /// The next `prev_cursor`.
    pub cursor: u64,
}

/// A sample that has ended.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum FutureCompletion {
    /// `retrieve_future` gives its result.
    Finished {
        /// What to retrieve.
        request_id: RequestId,
        /// Bytes of the result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        response_payload_uncompressed_size: Option<u64>,
    },
    /// `retrieve_future` says why.
    Failed {
        /// What to retrieve.
        request_id: RequestId,
    },
}

/// Body of `POST cancel_future`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct CancelFutureRequest {
    /// What nobody waits for any more.
    pub request_id: RequestId,
}

impl Request for CancelFutureRequest {}

/// Whether a queue moves.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueState {
    /// It does.
    Active,
    /// It waits for hardware.
    PausedCapacity,
    /// Its owner sent too much.
    PausedRateLimit,
}

/// Body of a 408: not ready yet, ask again.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Pending {
    /// Whether the queue moves.
    pub queue_state: QueueState,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_state_reason: Option<String>,
    /// Milliseconds after which asking again is of use, where that is not at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The 200 form of [`Pending`], which makes clients log a warning and ask again at once.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "try_again")]
pub struct TryAgain {
    /// What is waited for.
    pub request_id: RequestId,
    /// Whether the queue moves.
    pub queue_state: QueueState,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_state_reason: Option<String>,
}

/// The result is there and this large. Only where the client allowed it, and once.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "status", rename = "complete_metadata")]
pub struct CompleteMetadata {
    /// Bytes of the result.
    pub response_payload_size: u64,
}

/// The operation failed, for good. Travels with status 200.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Failed {
    /// What the user reads.
    pub error: String,
    /// Whose fault it is.
    pub category: Category,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// The request could not work.
    User,
    /// The server failed a good request.
    Server,
    /// Anything else.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_category_reads_as_unknown() {
        let failed: Failed = serde_json::from_str(r#"{"error":"e","category":"weird"}"#).unwrap();
        assert_eq!(failed.category, Category::Unknown);
    }

    #[test]
    fn a_feed_is_asked_for_as_old_and_new_clients_do() {
        let read = |body: &str| crate::json::read::<RetrieveFuturesRequest>(body.as_bytes());
        let old = r#"{"target":{"type":"sampling_session","sampling_session_id":"s"}}"#;
        let request = read(old).unwrap().request;
        let FuturesTarget::SamplingSession { sampling_session_id, cloned_sampler_id } =
            &request.target;
        assert_eq!((sampling_session_id.as_str(), *cloned_sampler_id), ("s", 0));
        assert_eq!((request.prev_cursor, request.timeout), (0, None));
        for wrong in [
            r#"{"target":{"type":"model","sampling_session_id":"s"}}"#,
            r#"{"target":{"type":"sampling_session","sampling_session_id":"s"},"prev_cursor":-1}"#,
            r#"{"target":{"type":"sampling_session"}}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn status_words_are_written() {
        let metadata = CompleteMetadata { response_payload_size: 5 };
        assert_eq!(
            serde_json::to_string(&metadata).unwrap(),
            r#"{"status":"complete_metadata","response_payload_size":5}"#
        );
        let failed = FutureCompletion::Failed { request_id: "r".into() };
        assert_eq!(
            serde_json::to_string(&failed).unwrap(),
            r#"{"state":"failed","request_id":"r"}"#
        );
    }
}
