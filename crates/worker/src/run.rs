//! A training run in memory: its queue, and where it stands against its journal.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tinsmith_engine::RunKey;
use tinsmith_store::{Digest, JournalEntry, JournalState, RequestKind, RunRecord};
use tinsmith_types::{
    ids::{RequestId, SeqId},
    queued::QueuedRequest,
};

/// File of a snapshot that holds what the engine does not know of a run.
pub(crate) const RUN_FILE: &str = "run.json";

/// What a request takes up beside its body, about.
pub(crate) const ITEM_BYTES: usize = 1024;

/// A run in memory.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) key: RunKey,
    /// Index of its base model.
    pub(crate) model: usize,
    /// What it takes up in the engine.
    pub(crate) bytes: usize,
    pub(crate) record: RunRecord,
    /// What waits to run, in seq order; replayed requests first.
    pub(crate) queue: VecDeque<Item>,
    /// Requests inside the engine.
    pub(crate) in_flight: usize,
    /// The last request whose effect the engine holds.
    pub(crate) applied: SeqId,
    /// The last request that ended, with effect or not; an id left out was refused at the door.
    pub(crate) seen: SeqId,
    /// Requests that failed since the last optimizer step, up to `seen`.
    pub(crate) failed: u64,
    /// The same up to `applied`, which lags behind during a replay: what a snapshot holds.
    pub(crate) failed_applied: u64,
    /// What a replay would repeat.
    pub(crate) unsaved: Unsaved,
    /// Whether its results are compared with the journal's: not across kernel sets.
    pub(crate) compared: bool,
    /// When it was last used, on the monotonic clock.
    pub(crate) used_at: Duration,
}

/// What has happened since the last snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unsaved {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) work: Duration,
}

/// One request in a run's queue.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) seq_id: SeqId,
    pub(crate) kind: RequestKind,
    pub(crate) body: Bytes,
    pub(crate) request: QueuedRequest,
    pub(crate) purpose: Purpose,
}

/// Why a request runs.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    /// Somebody waits for its result.
    Live(RequestId),
    /// It was completed before a crash.
    Replay {
        /// Of its result then.
        digest: Option<Digest>,
        /// Requests that had failed since the last optimizer step when it ended.
        failed: u64,
    },
}

impl Item {
    /// Whether somebody waits for it.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.purpose, Purpose::Live(_))
    }

    /// What it counts for while it waits: nothing if it is replayed.
    pub(crate) fn claimed_bytes(&self) -> usize {
        if self.is_live() { self.body.len() + ITEM_BYTES } else { 0 }
    }
}

impl Run {
    /// Whether nothing runs or waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.queue.is_empty()
    }

    /// Takes note of a request that ended before the run was loaded, and of all before it.
    pub(crate) fn count(&mut self, entry: &JournalEntry) {
        self.seen = entry.seq_id;
        match (entry.state, entry.kind) {
            (JournalState::Failed, _) => self.failed += 1,
            (_, RequestKind::OptimStep) => self.failed = 0,
            (_, _) => {}
        }
    }

    /// Takes note of a request's number when it ends, before its result is made. Numbers come in order; one
    /// that is left out belongs to a request that failed before it reached the worker.
    pub(crate) fn see(&mut self, seq_id: SeqId) {
        let skipped = seq_id.0 - self.seen.0 - 1;
        self.failed += u64::try_from(skipped).unwrap_or(0);
        self.seen = self.seen.max(seq_id);
    }
}

/// Whether a request runs inside the engine, behind others of its run; the rest wait for them.
pub(crate) fn is_pipelined(kind: RequestKind) -> bool {
    match kind {
        RequestKind::Forward | RequestKind::ForwardBackward | RequestKind::OptimStep => true,
        RequestKind::CreateModel
        | RequestKind::LoadWeights
        | RequestKind::SaveWeights
        | RequestKind::SaveWeightsForSampler
        | RequestKind::SaveWeightsExternal
        | RequestKind::UnloadModel
        | RequestKind::Sample => false,
    }
}
