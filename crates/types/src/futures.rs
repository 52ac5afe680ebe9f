//! `retrieve_future`, `cancel_future`, and the answers that stand for a result that is to come.

use serde::{Deserialize, Serialize};

use crate::defaults::null_as_default;
use crate::ids::{ModelId, RequestId, SequenceId};
use crate::json::Request;

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
    fn status_words_are_written() {
        let metadata = CompleteMetadata { response_payload_size: 5 };
        assert_eq!(
            serde_json::to_string(&metadata).unwrap(),
            r#"{"status":"complete_metadata","response_payload_size":5}"#
        );
    }
}
