//! What clients ask while they wait, and what they are told, as plain values.

use std::collections::BTreeSet;

use tinsmith_types::ids::{ModelId, RequestId, SamplingSessionId};

use crate::{Outcome, RequestKind};

/// What a poll finds that lets go of large results.
#[derive(Clone, Debug, PartialEq)]
pub enum Peeked {
    /// There is a result, and it is larger. It counts as not delivered.
    Larger {
        /// Bytes of the result.
        bytes: usize,
    },
    /// Anything else.
    Whole(Retrieved),
}

/// What a client asks of its feed.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedQuery {
    /// The sampler.
    pub sampling_session_id: SamplingSessionId,
    /// The client's number; 0 opened the sampler.
    pub clone: i64,
    /// Everything up to here has been seen; 0 at first.
    pub cursor: u64,
    /// Samples whose results have been received.
    pub retrieved: Vec<RequestId>,
}

/// Samples that have ended.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedPage {
    /// In the order of their ends.
    pub ended: Vec<EndedSample>,
    /// Where the next page begins.
    pub cursor: u64,
}

/// A sample that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct EndedSample {
    /// To retrieve it with.
    pub request_id: RequestId,
    /// Bytes of the result; `None`: it failed, or is gone.
    pub bytes: Option<usize>,
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// Memory for training runs: all those in it have work.
    Runs,
    /// Memory for samplers, or for the samples that wait for them: all those in it have work.
    Samplers,
}

/// What waits for room, as the worker sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shortage {
    /// Runs that have room, where others wait for it.
    pub runs: Option<BTreeSet<ModelId>>,
    /// Samples that have room, where others wait for it.
    pub samples: Option<BTreeSet<RequestId>>,
}

/// What a poll finds.
#[derive(Clone, Debug, PartialEq)]
pub enum Retrieved {
    /// Not finished, and why.
    Pending(QueueState),
    /// Finished. It can be retrieved again until its retention ends.
    Finished {
        /// Says how the result is encoded.
        kind: RequestKind,
        /// How it ended.
        outcome: Outcome,
    },
    /// A sample of an earlier start, or a result whose retention has ended.
    Gone,
}

/// Why a request has not run yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum QueueState {
    /// It waits for its turn or runs.
    Active,
    /// There is no room for its run or its sampler at the moment.
    PausedCapacity(Room),
    /// Its owner has used up a limit.
    PausedRateLimit,
}
