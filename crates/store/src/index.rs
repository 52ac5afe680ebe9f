//! What is known without asking the database: whose turn it is, and who waits for what.
//!
//! Plain bookkeeping behind one lock. The writer changes it only after a commit, so it never shows what
//! could still be lost.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tinsmith_types::ids::{ModelId, RequestId, SamplingSessionId, SeqId, TenantId};
use tokio::sync::watch;

use crate::{
    NewSample, Outcome, QueueState, RequestKind, Result, Retrieved, Room, Shortage, Submitted,
    Target, feeds::BLOCK, samples::Samples,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Index {
    runs: HashMap<ModelId, RunQueue>,
    pending: HashMap<RequestId, Pending>,
    pub(crate) samples: Samples,
    /// Runs and samplers with something to claim, in the order of their next turns.
    lanes: VecDeque<Lane>,
    /// Runs whose parked requests wait for a missing id, and since when.
    blocked: BTreeMap<ModelId, Duration>,
    /// Bytes of bodies held in `pending`.
    body_bytes: usize,
    cache_bytes_max: usize,
    results: Results,
    /// What the worker finds no room for.
    pub(crate) shortage: Shortage,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Lane {
    Run(ModelId),
    Sampler(SamplingSessionId),
}

#[derive(Debug, Default)]
struct RunQueue {
    /// Every id below has arrived or will not be waited for.
    next: i64,
    /// Ids that arrived ahead of `next`.
    ahead: BTreeSet<i64>,
    /// Neither claimed nor finished.
    queue: BTreeMap<i64, RequestId>,
    unfinished: usize,
    in_lane: bool,
}

#[derive(Debug)]
struct Pending {
    tenant: TenantId,
    model: ModelId,
    seq: i64,
    kind: RequestKind,
    /// Bytes of the body.
    length: usize,
    /// Not kept where memory is short or after a restart.
    body: Option<Bytes>,
    /// When the worker began with it.
    started_at: Option<Timestamp>,
    /// Made by the first waiter; dropping it wakes all.
    done: Option<watch::Sender<()>>,
}

/// A training request that has become durable.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) tenant: TenantId,
    pub(crate) model: ModelId,
    pub(crate) seq: SeqId,
    pub(crate) request_id: RequestId,
    pub(crate) kind: RequestKind,
    /// Bytes of the body.
    pub(crate) length: usize,
    pub(crate) body: Option<Bytes>,
}

/// A request taken from its queue.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) tenant: TenantId,
    pub(crate) request_id: RequestId,
    pub(crate) kind: RequestKind,
    pub(crate) target: Target,
    /// Bytes of the body.
    pub(crate) length: usize,
    /// `None`: to be read from disk.
    pub(crate) body: Option<Bytes>,
}

/// What a poll finds without asking the database.
#[derive(Debug)]
pub(crate) enum Look {
    Pending(QueueState, watch::Receiver<()>),
    Known(Retrieved),
    /// There is a result of so many bytes, more than were asked for.
    Larger(usize),
    /// Not of this tenant, though it is known.
    Foreign,
    Unknown,
}

impl Index {
    pub(crate) fn new(samples: Samples, cache_bytes_max: usize) -> Self {
        Self {
            runs: HashMap::new(),
            pending: HashMap::new(),
            samples,
            lanes: VecDeque::new(),
            blocked: BTreeMap::new(),
            body_bytes: 0,
            cache_bytes_max,
            results: Results { bytes_max: cache_bytes_max, ..Results::default() },
            shortage: Shortage::default(),
        }
    }

    /// Makes a run known; every id below `next` has been consumed.
    pub(crate) fn add_run(&mut self, model: &ModelId, next: SeqId) {
        let run = self.runs.entry(model.clone()).or_default();
        run.next = run.next.max(next.0);
    }

    /// The id before which nothing of the run is awaited any more.
    pub(crate) fn next_seq(&self, model: &ModelId) -> Option<SeqId> {
        self.runs.get(model).map(|run| SeqId(run.next))
    }

    pub(crate) fn unfinished(&self, model: &ModelId) -> usize {
        self.runs.get(model).map_or(0, |run| run.unfinished)
    }

    /// Whether parked requests of the run wait for this very id.
    pub(crate) fn fills_gap(&self, model: &ModelId, seq: SeqId) -> bool {
        self.runs.get(model).is_some_and(|run| run.next == seq.0 && !run.ahead.is_empty())
    }

    /// Takes up a request that is to be run.
    pub(crate) fn arrived(&mut self, arrival: Arrival, now: Duration) {
        let Arrival { tenant, model, seq, request_id, kind, length, mut body } = arrival;
        let bytes = body.as_ref().map_or(0, Bytes::len);
        if self.body_bytes + bytes > self.cache_bytes_max {
            body = None;
        } else {
            self.body_bytes += bytes;
        }
        let run = self.runs.entry(model.clone()).or_default();
        run.queue.insert(seq.0, request_id.clone());
        run.unfinished += 1;
        let model_id = model.clone();
        let pending = Pending {
            tenant,
            model: model_id,
            seq: seq.0,
            kind,
            length,
            body,
            started_at: None,
            done: None,
        };
        self.pending.insert(request_id, pending);
        self.consumed(&model, seq, now);
    }

    /// Takes up an id that needs no running: refused, or finished before a restart.
    pub(crate) fn consumed(&mut self, model: &ModelId, seq: SeqId, now: Duration) {
        let run = self.runs.entry(model.clone()).or_default();
        let before = run.next;
        if seq.0 >= run.next {
            run.ahead.insert(seq.0);
        }
        while run.ahead.remove(&run.next) {
            run.next += 1;
        }
        let moved = run.next != before;
        self.unblocked(model, moved, now);
    }

    /// Gives up waiting: every id below `next` counts as consumed.
    pub(crate) fn skipped(&mut self, model: &ModelId, next: SeqId, now: Duration) {
        let run = self.runs.entry(model.clone()).or_default();
        run.next = run.next.max(next.0);
        run.ahead = run.ahead.split_off(&run.next);
        while run.ahead.remove(&run.next) {
            run.next += 1;
        }
        self.unblocked(model, true, now);
    }

    /// The runs whose parked requests have waited since `before`, with the id that is missing.
    pub(crate) fn gaps(&self, before: Duration) -> Vec<(ModelId, SeqId)> {
        let late = self.blocked.iter().filter(|&(_, &since)| since <= before);
        late.filter_map(|(model, _)| Some((model.clone(), self.next_seq(model)?))).collect()
    }

    /// Takes up to `max` requests, one of each lane in turn, until their bodies have `bytes_max` bytes.
    pub(crate) fn take(&mut self, max: usize, bytes_max: usize) -> Vec<Taken> {
        let mut taken: Vec<Taken> = Vec::new();
        let mut bytes = 0;
        while taken.len() < max && (taken.is_empty() || bytes < bytes_max) {
            let Some(lane) = self.lanes.pop_front() else { break };
            let (next, more) = match &lane {
                Lane::Run(model) => {
                    let next = self.take_of_run(model);
                    let more = self.runs.get_mut(model).is_some_and(|run| {
                        run.in_lane = run.has_turn();
                        run.in_lane
                    });
                    (next, more)
                }
                Lane::Sampler(session) => {
                    (self.samples.take(session), self.samples.has_queued(session))
                }
            };
            bytes += next.as_ref().map_or(0, |next| next.length);
            taken.extend(next);
            if more {
                self.lanes.push_back(lane);
            }
        }
        taken
    }

    /// Whether something can be claimed at once.
    pub(crate) fn has_work(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// Puts back what was taken and not handed out.
    pub(crate) fn untake(&mut self, taken: Vec<Taken>) {
        for Taken { request_id, target, body, .. } in taken.into_iter().rev() {
            match target {
                Target::Run(model, seq) => {
                    let Some(pending) = self.pending.get_mut(&request_id) else { continue };
                    self.body_bytes += body.as_ref().map_or(0, Bytes::len);
                    pending.body = body;
                    if let Some(run) = self.runs.get_mut(&model) {
                        run.queue.insert(seq.0, request_id);
                    }
                    self.line_up(&model);
                }
                Target::Sampler(session, _) => {
                    if self.samples.untake(&session, request_id) {
                        self.lanes.push_back(Lane::Sampler(session));
                    }
                }
            }
        }
    }

    /// Queues a sample. `None`: its block is not written down any more.
    pub(crate) fn submit_sample(
        &mut self,
        tenant: &TenantId,
        new: &NewSample,
        id: &RequestId,
        now: Duration,
    ) -> Option<Result<Submitted>> {
        let session = &new.sampling_session_id;
        if let Some(block) = new.seq_id.map(|seq| seq.0.div_euclid(BLOCK))
            && !self.samples.is_noted(session, block)
        {
            return None;
        }
        let submitted = self.samples.submit(tenant, new.clone(), id.clone(), now);
        Some(submitted.map(|(submitted, first)| {
            if first {
                self.lanes.push_back(Lane::Sampler(session.clone()));
            }
            submitted
        }))
    }

    /// Notes that work on a claimed request begins.
    pub(crate) fn started(&mut self, id: &RequestId, (now, monotonic): (Timestamp, Duration)) {
        match self.pending.get_mut(id) {
            Some(pending) => pending.started_at = Some(now),
            None => self.samples.started(id, monotonic),
        }
    }

    /// When work on an unfinished training request began.
    pub(crate) fn started_at(&self, id: &RequestId) -> Option<Timestamp> {
        self.pending.get(id)?.started_at
    }

    /// Ends a training request; wakes who waits for it.
    pub(crate) fn finished(
        &mut self,
        id: &RequestId,
        tenant: TenantId,
        kind: RequestKind,
        outcome: Outcome,
    ) {
        if let Some(pending) = self.pending.remove(id) {
            self.body_bytes -= pending.body.as_ref().map_or(0, Bytes::len);
            if let Some(run) = self.runs.get_mut(&pending.model) {
                run.unfinished -= 1;
                run.queue.remove(&pending.seq);
            }
        }
        self.results.insert(id.clone(), tenant, kind, outcome);
    }

    /// What a poll finds here. A finished sample counts as delivered, unless its result has more than `bytes_max`
    /// bytes.
    pub(crate) fn look(&mut self, tenant: &TenantId, id: &RequestId, bytes_max: usize) -> Look {
        if let Some(pending) = self.pending.get_mut(id) {
            if pending.tenant != *tenant {
                return Look::Foreign;
            }
            let done = pending.done.get_or_insert_with(|| watch::Sender::new(()));
            let roomy = self.shortage.runs.as_ref();
            let state = match roomy.is_none_or(|runs| runs.contains(&pending.model)) {
                true => QueueState::Active,
                false => QueueState::PausedCapacity(Room::Runs),
            };
            return Look::Pending(state, done.subscribe());
        }
        if let Some((owner, kind, outcome)) = self.results.get(id) {
            if owner != tenant {
                return Look::Foreign;
            }
            if let Outcome::Done(result) = outcome
                && result.len() > bytes_max
            {
                return Look::Larger(result.len());
            }
            return Look::Known(Retrieved::Finished { kind: *kind, outcome: outcome.clone() });
        }
        let roomy = self.shortage.samples.as_ref();
        let mut look = self.samples.look(tenant, id, bytes_max);
        if let Look::Pending(state, _) = &mut look
            && roomy.is_some_and(|samples| !samples.contains(id))
        {
            *state = QueueState::PausedCapacity(Room::Samplers);
        }
        look
    }

    fn take_of_run(&mut self, model: &ModelId) -> Option<Taken> {
        let run = self.runs.get_mut(model)?;
        if !run.has_turn() {
            return None;
        }
        let (seq, request_id) = run.queue.pop_first()?;
        let pending = self.pending.get_mut(&request_id)?;
        let body = pending.body.take();
        self.body_bytes -= body.as_ref().map_or(0, Bytes::len);
        Some(Taken {
            tenant: pending.tenant.clone(),
            kind: pending.kind,
            target: Target::Run(model.clone(), SeqId(seq)),
            length: pending.length,
            request_id,
            body,
        })
    }

    fn unblocked(&mut self, model: &ModelId, moved: bool, now: Duration) {
        let parked = self.runs.get(model).is_some_and(|run| !run.ahead.is_empty());
        if !parked {
            self.blocked.remove(model);
        } else if moved {
            self.blocked.insert(model.clone(), now);
        } else {
            self.blocked.entry(model.clone()).or_insert(now);
        }
        self.line_up(model);
    }

    fn line_up(&mut self, model: &ModelId) {
        if let Some(run) = self.runs.get_mut(model)
            && !run.in_lane
            && run.has_turn()
        {
            run.in_lane = true;
            self.lanes.push_back(Lane::Run(model.clone()));
        }
    }
}

impl RunQueue {
    fn has_turn(&self) -> bool {
        self.queue.first_key_value().is_some_and(|(&seq, _)| seq < self.next)
    }
}

/// Results of training requests that are likely to be asked for, oldest out first.
#[derive(Debug, Default)]
struct Results {
    bytes_max: usize,
    bytes: usize,
    by_id: HashMap<RequestId, (TenantId, RequestKind, Outcome)>,
    order: VecDeque<RequestId>,
}

impl Results {
    /// Counted besides the result itself.
    const ENTRY_BYTES: usize = 256;

    fn get(&self, id: &RequestId) -> Option<&(TenantId, RequestKind, Outcome)> {
        self.by_id.get(id)
    }

    fn insert(&mut self, id: RequestId, tenant: TenantId, kind: RequestKind, outcome: Outcome) {
        if self.by_id.contains_key(&id) {
            return;
        }
        self.bytes += Self::ENTRY_BYTES + outcome_bytes(&outcome);
        self.order.push_back(id.clone());
        self.by_id.insert(id, (tenant, kind, outcome));
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some((_, _, outcome)) = self.by_id.remove(&oldest) {
                self.bytes -= Self::ENTRY_BYTES + outcome_bytes(&outcome);
            }
        }
    }
}

/// Bytes of a result or of a failure's message.
pub(crate) fn outcome_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Done(result) => result.len(),
        Outcome::Failed(failure) => failure.message.len(),
    }
}
