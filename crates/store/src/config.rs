//! The limits and places of a store.

use std::{path::PathBuf, time::Duration};

/// How a [`crate::Store`] is set up. There is no `Default`: whoever opens a store says every limit.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory, made where it is missing. `None`: a temporary directory that goes when
    /// the store does and is never flushed to disk, for tests and trials.
    pub data_dir: Option<PathBuf>,
    /// Bodies and results above this many bytes go to spool segments instead of rows.
    pub inline_body_bytes_max: usize,
    /// A spool segment is closed once it holds this many bytes.
    pub spool_segment_bytes_max: u64,
    /// Writes that share one commit, at most.
    pub group_requests_max: usize,
    /// Writes that wait for the writer, at most; later ones wait outside the queue.
    pub write_queue_max: usize,
    /// Samples in memory, queued and finished, at most.
    pub samples_max: usize,
    /// Bytes of samples' bodies and results in memory, at most.
    pub sample_bytes_max: usize,
    /// Ended samples that are told of at a time, at most; and blocks of samples that a client of an earlier start
    /// is told to be lost.
    pub feed_page_max: usize,
    /// Bytes of recorded samples on disk, at most, and one sample more; the oldest go first.
    pub recorded_bytes_max: u64,
    /// Bytes of training requests' bodies, and of their results, that are kept in memory to save
    /// reads, at most (each).
    pub cache_bytes_max: usize,
    /// A claim hands out no more requests once it holds this many bytes of bodies: so much, and one
    /// body more, at most.
    pub claim_bytes_max: usize,
    /// Unfinished requests of one run, at most.
    pub pending_requests_per_run_max: usize,
    /// How long parked requests wait for a missing sequence id before they fail.
    pub gap_timeout: Duration,
    /// How long the result of a training request can be retrieved.
    pub result_retention: Duration,
    /// How long the result of a sample can be retrieved.
    pub sample_retention: Duration,
    /// A session without a heartbeat for this long expires.
    pub session_expiry: Duration,
    /// How long the audit log is kept.
    pub audit_retention: Duration,
    /// Entries of the audit log, at most; the oldest go first.
    pub audit_entries_max: usize,
    /// How long the ledger of usage is kept, and the spans of samples for traces.
    pub usage_retention: Duration,
    /// Spans of samples, at most; the oldest go first.
    pub sample_spans_max: usize,
    /// How long a blob that nothing refers to stays on disk.
    pub blob_grace: Duration,
    /// Accept a data directory on a network file system, where SQLite's locks may not hold.
    pub allow_network_fs: bool,
}
