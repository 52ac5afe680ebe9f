//! The engine's thread: takes claimed requests, feeds the engines, settles what they finish.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use bytes::Bytes;
use tinsmith_engine::{Backend, Output, Ticket, Work};
use tinsmith_store::{
    Category, Claimed, Clock, Completion, Digest, Effect, Failure, Outcome, RequestKind, Store,
    Target,
};
use tinsmith_types::{
    ids::{ModelId, RequestId, SamplingSessionId, TenantId},
    queued::QueuedRequest,
};
use tokio::{runtime::Handle as Runtime, sync::mpsc as tokio_mpsc};

use crate::{
    Config, Model, Stats,
    finisher::Finish,
    handlers,
    residency::Refusal,
    run::{Item, Purpose, Run, is_pipelined},
    samplers::Samplers,
    turns::{Outside, Turns},
};

/// Work with what it gave.
type Finished = (Ticket, Result<Output, tinsmith_engine::Failure>);

/// How long an idle thread sleeps before it looks after its runs.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// How often a flush looks whether anybody is there to answer it.
const FLUSH_WAIT: Duration = Duration::from_millis(50);
/// How often runs are looked after while there is work.
pub(crate) const CARE_INTERVAL: Duration = Duration::from_millis(500);

/// Everything that the engine's thread owns.
pub(crate) struct Worker<B: Backend> {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Runtime,
    pub(crate) models: Vec<Model<B>>,
    /// Where results go on their way to the disk.
    finish: tokio_mpsc::Sender<Finish>,
    pub(crate) runs: BTreeMap<ModelId, Run>,
    pub(crate) samplers: Samplers,
    pub(crate) stats: Stats,
    in_flight: BTreeMap<Ticket, InFlight>,
    /// Of the samples among them.
    pub(crate) tickets: BTreeMap<RequestId, Ticket>,
    /// Samples that found their engine full.
    pub(crate) deferred: VecDeque<Sample>,
    /// A request whose run found no room in memory. Nothing is taken until it has.
    pub(crate) blocked: Option<Claimed>,
    /// Runs that could not be brought back, and why: left alone until the next start.
    pub(crate) set_aside: BTreeMap<ModelId, String>,
    /// Of claimed requests in the queues of all runs; what is replayed holds nobody up.
    claimed_bytes: usize,
    next_key: u64,
    pub(crate) cared_at: Duration,
    /// Whether the store was told that something waits for room.
    pub(crate) is_short: bool,
    pub(crate) turns: Turns,
}

/// A claimed sample that waits for its engine.
pub(crate) struct Sample {
    pub(crate) tenant: TenantId,
    pub(crate) id: SamplingSessionId,
    pub(crate) request_id: RequestId,
    pub(crate) request: QueuedRequest,
}

/// What a ticket stands for.
enum InFlight {
    Run(ModelId, Box<Item>),
    /// With the prompt, where what is drawn is to be recorded.
    Sample(SamplingSessionId, RequestId, Option<Vec<u32>>),
}

impl<B: Backend> Worker<B> {
    pub(crate) fn new(
        config: Config,
        store: Store,
        clock: Arc<dyn Clock>,
        runtime: Runtime,
        models: Vec<Model<B>>,
        finish: tokio_mpsc::Sender<Finish>,
    ) -> Self {
        Self {
            config,
            store,
            clock,
            runtime,
            models,
            finish,
            runs: BTreeMap::new(),
            samplers: Samplers::default(),
            stats: Stats::default(),
            in_flight: BTreeMap::new(),
            tickets: BTreeMap::new(),
            deferred: VecDeque::new(),
            blocked: None,
            set_aside: BTreeMap::new(),
            claimed_bytes: 0,
            next_key: 0,
            cared_at: Duration::ZERO,
            is_short: false,
            turns: Turns::default(),
        }
    }

    /// Works until it is told to stop, or until nobody claims or finishes any more.
    pub(crate) fn run(
        &mut self,
        claims: &mut Receiver<Claimed>,
        stop: &AtomicBool,
        stats: &Mutex<Stats>,
    ) {
        let mut outside = Outside { claims, stats };
        while !stop.load(Ordering::Acquire) && !self.finish.is_closed() {
            if !self.take(outside.claims) {
                if !stop.load(Ordering::Acquire) {
                    tracing::error!("nobody claims requests any more");
                }
                break;
            }
            self.admit();
            self.advance();
            self.step(Some(&mut outside));
            self.care(stats);
        }
        self.wind_down();
        self.publish(stats);
    }

    /// A number that nothing else has: runs, samplers and tickets share the count.
    pub(crate) fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Takes what was claimed; waits a little if there is nothing else to do. False: the end.
    fn take(&mut self, claims: &Receiver<Claimed>) -> bool {
        if let Some(claimed) = self.blocked.take() {
            self.enqueue(claimed);
        } else if self.is_idle() {
            match claims.recv_timeout(IDLE_WAIT) {
                Ok(claimed) => self.enqueue(claimed),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        while self.blocked.is_none() && self.may_claim(0) {
            let next = self.turns.next_held().or_else(|| claims.try_recv().ok());
            let Some(claimed) = next else { break };
            self.enqueue(claimed);
        }
        true
    }

    /// Whether more may be taken beside so many bytes that no run has.
    pub(crate) fn may_claim(&self, held_bytes: usize) -> bool {
        let limit = self.config.claimed_bytes_max;
        self.deferred.is_empty() && self.claimed_bytes.saturating_add(held_bytes) < limit
    }

    fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
            && self.turns.is_idle()
            && self.runs.values().all(|run| run.queue.is_empty())
    }

    /// Ends samples that nobody wants any more, and starts those that found their engine full.
    pub(crate) fn admit(&mut self) {
        self.cancel();
        self.start_samples();
        if self.is_short != (self.blocked.is_some() || !self.deferred.is_empty()) {
            self.tell_shortage();
        }
    }

    /// Queues a claimed request at its run, or starts it if it is a sample.
    pub(crate) fn enqueue(&mut self, claimed: Claimed) {
        let request = match QueuedRequest::decode(claimed.kind.name(), &claimed.body) {
            Ok(request) => request,
            Err(error) => {
                let failure = server_failure(format!("could not read the journal: {error}"));
                return match claimed.target {
                    Target::Run(..) => self.complete_failed(claimed.request_id, failure),
                    Target::Sampler(..) => self.complete_sample(claimed.request_id, Err(failure)),
                };
            }
        };
        match claimed.target {
            Target::Run(id, seq_id) => {
                if let Err(refusal) = self.ensure_run(&claimed.tenant, &id) {
                    match refusal {
                        Refusal::NoRoom => {
                            let target = Target::Run(id, seq_id);
                            self.blocked = Some(Claimed { target, ..claimed });
                        }
                        Refusal::Pending(reason) => {
                            tracing::warn!(run.id = %id, reason, "a request stays pending");
                        }
                        Refusal::Failed(failure) => {
                            self.complete_failed(claimed.request_id, failure);
                        }
                    }
                    return;
                }
                let purpose = Purpose::Live(claimed.request_id);
                let item =
                    Item { seq_id, kind: claimed.kind, body: claimed.body, request, purpose };
                let run = self.runs.get_mut(&id).expect("was ensured above");
                self.claimed_bytes += item.claimed_bytes();
                run.queue.push_back(item);
            }
            Target::Sampler(id, _) => {
                let request_id = claimed.request_id;
                self.deferred.push_back(Sample { tenant: claimed.tenant, id, request_id, request });
                self.start_samples();
            }
        }
    }

    /// Starts samples until one finds its engine full.
    fn start_samples(&mut self) {
        while let Some(sample) = self.deferred.pop_front() {
            if !handlers::sample::start(self, &sample) {
                self.deferred.push_front(sample);
                return;
            }
        }
    }

    /// Takes samples that were cancelled out of their engines. Those that have not begun are left out by
    /// [`handlers::sample::start`].
    fn cancel(&mut self) {
        for request_id in self.store.cancelled_samples() {
            let Some(ticket) = self.tickets.remove(&request_id) else { continue };
            let Some(InFlight::Sample(id, _, _)) = self.in_flight.remove(&ticket) else { continue };
            let Some(sampler) = self.samplers.get_mut(&id) else { continue };
            sampler.in_flight -= 1;
            self.models[sampler.model].engine.cancel(ticket);
            self.stats.cancelled_samples += 1;
        }
    }

    /// Takes note that a run goes with its queue.
    pub(crate) fn uncount(&mut self, queue: &VecDeque<Item>) {
        self.claimed_bytes -= queue.iter().map(Item::claimed_bytes).sum::<usize>();
    }

    /// Feeds every run's requests to its engine, as far as their order allows.
    fn advance(&mut self) {
        let ids: Vec<ModelId> = self
            .runs
            .iter()
            .filter(|(_, run)| !run.queue.is_empty())
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            while self.advance_run(&id) {}
        }
    }

    /// Starts the run's next request; false if it has to wait.
    fn advance_run(&mut self, id: &ModelId) -> bool {
        let limit = self.config.in_flight_per_run_max;
        let due = self.is_snapshot_due(id);
        let Some(run) = self.runs.get_mut(id) else { return false };
        let Some(front) = run.queue.front() else { return false };
        let waits = if is_pipelined(front.kind) && !due {
            run.in_flight >= limit
        } else {
            run.in_flight > 0
        };
        if waits {
            return false;
        }
        if due {
            self.snapshot(id);
            return true;
        }
        let Some(item) = run.queue.pop_front() else { return false };
        self.claimed_bytes -= item.claimed_bytes();
        run.used_at = self.clock.monotonic();
        let corrupted = run.record.corrupted.clone();
        if let Some(reason) = corrupted {
            return self.refuse(id, item, corrupted_failure(&reason));
        }
        handlers::start(self, id, item)
    }

    /// Puts a request that has to wait back to the head of its run's queue.
    pub(crate) fn put_back(&mut self, id: &ModelId, item: Item) {
        let Some(run) = self.runs.get_mut(id) else { return };
        self.claimed_bytes += item.claimed_bytes();
        run.queue.push_front(item);
    }

    /// Fails a request that cannot start, once those before it have ended. False: it waits for them.
    pub(crate) fn refuse(&mut self, id: &ModelId, item: Item, failure: Failure) -> bool {
        let Some(run) = self.runs.get(id) else { return false };
        if run.in_flight > 0 {
            self.put_back(id, item);
            return false;
        }
        self.settle(id, &item, Err(failure));
        true
    }

    /// Hands one of a run's requests to its engine. False: the engine is full, the request waits.
    pub(crate) fn submit(&mut self, id: &ModelId, item: Item, work: Work) -> bool {
        let ticket = Ticket(self.key());
        let Some(run) = self.runs.get_mut(id) else { return false };
        match self.models[run.model].engine.submit(ticket, work) {
            Ok(()) => {
                if let Purpose::Live(request_id) = &item.purpose {
                    self.store.started(request_id);
                }
                run.in_flight += 1;
                self.in_flight.insert(ticket, InFlight::Run(id.clone(), Box::new(item)));
            }
            Err(tinsmith_engine::Error::Full { .. }) => {
                self.put_back(id, item);
                return false;
            }
            Err(error) => return self.refuse(id, item, engine_failure(&error)),
        }
        true
    }

    /// Hands a sample to the engine of its sampler, with its prompt where what is drawn is to be recorded.
    /// False: the engine is full.
    pub(crate) fn submit_sample(
        &mut self,
        id: SamplingSessionId,
        model: usize,
        request_id: RequestId,
        work: Work,
        recorded: Option<Vec<u32>>,
    ) -> bool {
        let ticket = Ticket(self.key());
        match self.models[model].engine.submit(ticket, work) {
            Ok(()) => {
                if let Some(sampler) = self.samplers.get_mut(&id) {
                    sampler.in_flight += 1;
                }
                self.store.started(&request_id);
                self.tickets.insert(request_id.clone(), ticket);
                self.in_flight.insert(ticket, InFlight::Sample(id, request_id, recorded));
            }
            Err(tinsmith_engine::Error::Full { .. }) => return false,
            Err(error) => self.complete_sample(request_id, Err(engine_failure(&error))),
        }
        true
    }

    /// Tells what engines have finished.
    pub(crate) fn finish_all(&mut self, outcomes: Vec<Finished>) {
        for (ticket, outcome) in outcomes {
            let outcome = outcome.map_err(|failure| Failure {
                category: if failure.user { Category::User } else { Category::Server },
                message: failure.message,
            });
            self.finish_ticket(ticket, outcome);
        }
    }

    fn finish_ticket(&mut self, ticket: Ticket, outcome: Result<Output, Failure>) {
        match self.in_flight.remove(&ticket) {
            Some(InFlight::Run(id, item)) => {
                // Without its run, it stays pending.
                let Some(run) = self.runs.get_mut(&id) else { return };
                run.in_flight -= 1;
                if item.is_live() {
                    run.see(item.seq_id);
                }
                let corrupted = run.record.corrupted.clone();
                let result = match (corrupted, &item.purpose) {
                    // It was behind the replayed request that gave another result.
                    (Some(reason), Purpose::Live(_)) => Err(corrupted_failure(&reason)),
                    (_, _) => {
                        outcome.map(|output| handlers::result(self, &id, &item.request, output))
                    }
                };
                self.settle(&id, &item, result);
            }
            Some(InFlight::Sample(id, request_id, recorded)) => {
                self.tickets.remove(&request_id);
                if let Some(sampler) = self.samplers.get_mut(&id) {
                    sampler.in_flight -= 1;
                }
                let result = outcome.map(|output| {
                    let recorded = recorded.map(|prompt| (id, prompt));
                    let effect = handlers::sample::effect(&output, recorded);
                    (handlers::sample::result(output).0, effect)
                });
                self.complete_sample(request_id, result);
            }
            None => tracing::error!(ticket = ticket.0, "the engine finished an unknown ticket"),
        }
    }

    /// Ends one of a run's requests: tells whoever waits, or compares it with the journal.
    pub(crate) fn settle(
        &mut self,
        id: &ModelId,
        item: &Item,
        result: Result<(Bytes, Option<Digest>), Failure>,
    ) {
        self.note(id, item, result.is_ok());
        match (&item.purpose, result) {
            (Purpose::Live(request_id), Ok((bytes, digest))) => {
                // What stands on another kernel set's journal is not compared there either.
                let compared = self.runs.get(id).is_some_and(|run| run.compared);
                self.send(Finish::Complete(Completion {
                    request_id: request_id.clone(),
                    outcome: Outcome::Done(bytes),
                    digest: digest.filter(|_| compared),
                    effect: handlers::usage(&item.request),
                }));
            }
            (Purpose::Live(request_id), Err(failure)) => {
                self.complete_failed(request_id.clone(), failure);
            }
            (Purpose::Replay { digest: expected, .. }, Ok((_, digest))) => {
                self.stats.replayed_requests += 1;
                let compared = self.runs.get(id).is_some_and(|run| run.compared);
                if compared && expected.is_some() && *expected != digest {
                    let reason =
                        format!("request {} gave another result when replayed", item.seq_id);
                    self.corrupt(id, &reason);
                }
            }
            // It was completed once: what is wrong is here and now, and not with the run.
            (Purpose::Replay { .. }, Err(failure)) => {
                let message = failure.message;
                let reason = format!("request {} failed when replayed: {message}", item.seq_id);
                self.give_up(id, reason);
            }
        }
    }

    /// Keeps the run's books for a request that has ended.
    pub(crate) fn note(&mut self, id: &ModelId, item: &Item, well: bool) {
        let Some(run) = self.runs.get_mut(id) else { return };
        run.applied = run.applied.max(item.seq_id);
        run.unsaved.requests += 1;
        run.unsaved.bytes += item.body.len() as u64;
        run.used_at = self.clock.monotonic();
        if let Purpose::Replay { failed, .. } = item.purpose {
            run.failed_applied = failed;
            return;
        }
        run.see(item.seq_id);
        if !well {
            run.failed += 1;
        } else if item.kind == RequestKind::OptimStep {
            run.failed = 0;
        }
        run.failed_applied = run.failed;
    }

    pub(crate) fn complete_failed(&self, request_id: RequestId, failure: Failure) {
        let outcome = Outcome::Failed(failure);
        let completion = Completion { request_id, outcome, digest: None, effect: Effect::None };
        self.send(Finish::Complete(completion));
    }

    /// Ends a sample, whatever the disk does.
    pub(crate) fn complete_sample(
        &self,
        request_id: RequestId,
        result: Result<(Bytes, Effect), Failure>,
    ) {
        let (outcome, effect) = match result {
            Ok((bytes, effect)) => (Outcome::Done(bytes), effect),
            Err(failure) => (Outcome::Failed(failure), Effect::None),
        };
        let recorded = matches!(effect, Effect::Sampled(_, Some(_)));
        let completion = Completion { request_id, outcome, digest: None, effect };
        if recorded {
            // It waits for the disk.
            self.send(Finish::Complete(completion));
        } else if let Err(error) = self.store.end_sample(completion) {
            tracing::debug!(%error, "a sample ends after its store's memory of it");
        }
    }

    /// Hands work to the disk; waits where the disk is behind.
    pub(crate) fn send(&self, finish: Finish) {
        if self.finish.blocking_send(finish).is_err() {
            tracing::error!("the store has failed: a result is left to replay");
        }
    }

    /// Waits until everything sent before is on disk. False if it cannot be.
    pub(crate) fn flush(&self) -> bool {
        flush(&self.finish)
    }

    fn care(&mut self, stats: &Mutex<Stats>) {
        let now = self.clock.monotonic();
        if now.saturating_sub(self.cared_at) < CARE_INTERVAL && self.cared_at != Duration::ZERO {
            return;
        }
        self.cared_at = now;
        if self.is_short {
            self.tell_shortage();
        }
        self.snapshot_resting();
        self.spill_beyond(self.config.resident_runs_max);
        self.publish(stats);
    }

    pub(crate) fn publish(&mut self, stats: &Mutex<Stats>) {
        self.stats.engines = self.models.iter().map(|model| model.engine.stats()).collect();
        self.stats.resident_runs = self.runs.len();
        self.stats.resident_samplers = self.samplers.len();
        *stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats.clone();
    }

    /// Lets the engines finish what is inside them, as long as a stop may take, and snapshots.
    fn wind_down(&mut self) {
        let deadline = self.clock.monotonic() + self.config.stop_timeout;
        let trains = |entry: &InFlight| matches!(entry, InFlight::Run(..));
        while self.in_flight.values().any(trains) && self.clock.monotonic() < deadline {
            self.step(None);
        }
        self.snapshot_all();
        self.flush();
    }
}

/// False if what was sent before cannot be settled any more.
fn flush(finish: &tokio_mpsc::Sender<Finish>) -> bool {
    let (reply, done) = mpsc::channel();
    if finish.blocking_send(Finish::Flush(reply)).is_err() {
        return false;
    }
    loop {
        match done.recv_timeout(FLUSH_WAIT) {
            Ok(()) => return true,
            // What is sent while the other end goes away stays in the channel, with no answer.
            Err(RecvTimeoutError::Timeout) if !finish.is_closed() => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        }
    }
}

pub(crate) fn server_failure(message: String) -> Failure {
    Failure { category: Category::Server, message }
}

pub(crate) fn corrupted_failure(reason: &str) -> Failure {
    server_failure(format!("the training run is corrupted: {reason}"))
}

pub(crate) fn user_failure(message: String) -> Failure {
    Failure { category: Category::User, message }
}

pub(crate) fn engine_failure(error: &tinsmith_engine::Error) -> Failure {
    match error {
        tinsmith_engine::Error::User { message } => user_failure(message.clone()),
        tinsmith_engine::Error::Full { .. }
        | tinsmith_engine::Error::Internal { .. }
        | tinsmith_engine::Error::Model(_)
        | tinsmith_engine::Error::Backend(_) => server_failure(error.to_string()),
    }
}
