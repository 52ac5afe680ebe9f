//! Claims requests in order, runs the engine, completes them.
//!
//! One thread owns the engines and all device state ([`worker`]). Async tasks stand beside it: one claims
//! from the store, one stages files and completes ([`finisher`]). A request type is one file in `handlers/`.

use std::{sync::Arc, time::Duration};

use tinsmith_engine::Engine;
use tinsmith_store::{Clock, Store};

mod convert;
mod custom_loss;
mod finisher;
mod handle;
mod handlers;
mod residency;
mod run;
mod samplers;
mod turns;
mod worker;

pub use handle::{Handle, Stats};

/// Limits of the worker. Durations are of engine time unless said otherwise.
#[derive(Clone, Debug)]
pub struct Config {
    /// Requests claimed at a time.
    pub claim_max: usize,
    /// Bytes of requests that wait in the queues of runs; beyond it nothing is claimed, samples neither.
    pub claimed_bytes_max: usize,
    /// Requests of one run inside the engine at a time.
    pub in_flight_per_run_max: usize,
    /// How long training works at a time before samples get as long a turn (wall-clock time); where they took
    /// longer, up to twice as long.
    pub training_turn: Duration,
    /// Training runs kept in memory; the least recently used are spilled to their snapshots.
    pub resident_runs_max: usize,
    /// Samplers kept in memory; the least recently used are dropped and loaded again on use.
    pub resident_samplers_max: usize,
    /// A run is snapshotted when this much work would have to be replayed.
    pub snapshot_after_work: Duration,
    /// A run is snapshotted when this many bytes of requests would have to be replayed.
    pub snapshot_after_bytes: u64,
    /// While it replays, a run is snapshotted this often.
    pub snapshot_after_replay: Duration,
    /// A run that has rested this long (wall-clock time) is snapshotted.
    pub snapshot_after_rest: Duration,
    /// What a loss that a client sent may use up.
    pub custom_loss_limits: tinsmith_graph::Limits,
    /// How long a stop may take before work in progress is left to replay (wall-clock time).
    pub stop_timeout: Duration,
}

/// One base model with the engine that runs it.
#[derive(Debug)]
pub struct Model<B: tinsmith_engine::Backend> {
    /// Digest of its weights, hex: what runs and samplers are tied to.
    pub digest: String,
    /// Holds the weights.
    pub engine: Engine<B>,
}

/// Starts the worker's thread and tasks on the current tokio runtime.
///
/// # Errors
///
/// Fails if the thread cannot be started.
pub fn start<B: tinsmith_engine::Backend>(
    config: Config,
    store: Store,
    clock: Arc<dyn Clock>,
    models: Vec<Model<B>>,
) -> std::io::Result<Handle> {
    handle::start(config, store, clock, models)
}
