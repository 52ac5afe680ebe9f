//! The worker as others hold it: start, statistics, stop.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, TrySendError},
    },
    thread,
    time::Duration,
};

use tinsmith_engine::Backend;
use tinsmith_store::{Claimed, Clock, Store};
use tokio::sync::{mpsc as tokio_mpsc, watch};

use crate::{Config, Model, finisher, worker::Worker};

/// How long one claim waits in the store; bounds how late a stop is seen.
const CLAIM_WAIT: Duration = Duration::from_millis(250);

/// Counters since the start, and sizes now.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// One entry for each base model, in the order given at the start.
    pub engines: Vec<tinsmith_engine::Stats>,
    /// Runs in memory.
    pub resident_runs: usize,
    /// Samplers in memory.
    pub resident_samplers: usize,
    /// Requests replayed since the start.
    pub replayed_requests: u64,
    /// Samples that were cancelled while they were inside an engine.
    pub cancelled_samples: u64,
    /// Runs whose replay did not match its journal.
    pub corrupted_runs: u64,
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    stop: Arc<AtomicBool>,
    stats: Arc<Mutex<Stats>>,
    /// Becomes true when the worker's thread has ended, for whatever reason.
    ended: watch::Receiver<bool>,
}

impl Handle {
    /// Figures for `/metrics`.
    pub fn stats(&self) -> Stats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the worker has ended; before a stop, that means that it failed.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the sender is gone, and so is the thread.
        drop(ended.wait_for(|ended| *ended).await);
    }

    /// Claims no more, finishes or leaves what runs, snapshots every run, and waits for all that.
    pub async fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.ended().await;
    }
}

pub(crate) fn start<B: Backend>(
    config: Config,
    store: Store,
    clock: Arc<dyn Clock>,
    models: Vec<Model<B>>,
) -> io::Result<Handle> {
    let stop = Arc::new(AtomicBool::new(false));
    let stats = Arc::new(Mutex::new(Stats::default()));
    let (ended_sender, ended) = watch::channel(false);
    let (claim_sender, claims) = mpsc::sync_channel(config.claim_max);
    let (finish, finish_receiver) = tokio_mpsc::channel(config.claim_max);
    let runtime = tokio::runtime::Handle::current();
    runtime.spawn(claim(store.clone(), claim_sender, Arc::clone(&stop), config.claim_max));
    runtime.spawn(finisher::run(store.clone(), finish_receiver));
    let mut worker = Worker::new(config, store, clock, runtime, models, finish);
    let (thread_stop, thread_stats) = (Arc::clone(&stop), Arc::clone(&stats));
    thread::Builder::new().name("tinsmith-engine".to_owned()).spawn(move || {
        // Dropping the sender, also by a panic, tells that the thread has ended.
        let ended_sender = ended_sender;
        let mut claims = claims;
        worker.run(&mut claims, &thread_stop, &thread_stats);
        // Lets go of the store before anybody is told.
        drop((worker, claims));
        ended_sender.send_replace(true);
    })?;
    Ok(Handle { stop, stats, ended })
}

/// Hands claimed requests to the worker's thread until it stops.
async fn claim(
    store: Store,
    claims: mpsc::SyncSender<Claimed>,
    stop: Arc<AtomicBool>,
    claim_max: usize,
) {
    while !stop.load(Ordering::Acquire) {
        let claimed = match store.claim(claim_max, CLAIM_WAIT).await {
            Ok(claimed) => claimed,
            Err(error @ tinsmith_store::Error::Io(_)) if store.ready() => {
                tracing::warn!(%error, "cannot claim from the store for now");
                tokio::time::sleep(CLAIM_WAIT).await;
                continue;
            }
            // A stop closes the store while a claim may be waiting in it.
            Err(_) if stop.load(Ordering::Acquire) => return,
            Err(error) => {
                tracing::error!(%error, "cannot claim from the store any more");
                return;
            }
        };
        if !hand_over(claimed, &claims).await {
            return;
        }
    }
}

/// False: there is nobody who takes them any more.
async fn hand_over(claimed: Vec<Claimed>, claims: &mpsc::SyncSender<Claimed>) -> bool {
    let mut claimed = claimed.into_iter();
    while let Some(next) = claimed.next() {
        match claims.try_send(next) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(_)) => return false,
            // The channel is bounded: the rest has to wait for the engine, where waiting is allowed.
            Err(TrySendError::Full(next)) => {
                let claims = claims.clone();
                let mut rest = std::iter::once(next).chain(claimed);
                let send = move || rest.all(|claimed| claims.send(claimed).is_ok());
                return matches!(tokio::task::spawn_blocking(send).await, Ok(true));
            }
        }
    }
    true
}
