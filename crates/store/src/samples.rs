//! The table of samples: in memory only, bounded by count and bytes.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tinsmith_types::ids::{RequestId, SamplingSessionId, SeqId, SessionId, TenantId};
use tokio::sync::watch;

use crate::{
    Category, Digest, EndedSample, Error, Failure, FeedPage, NewSample, Outcome, QueueState,
    RequestKind, Result, Retrieved, SampleUsage, Submitted, Target,
    feeds::{BLOCK, FeedId, Feeds},
    index::{Look, Taken, outcome_bytes},
    ledger::Ended,
    spans::SampleSpan,
};

/// Ended samples that wait to be written for traces; what is beyond is left out of them.
const ENDED_MAX: usize = 20_000;

/// What of a sampler stays as it was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SamplerOrigin {
    /// Whose it is.
    pub tenant: TenantId,
    /// The session that made it.
    pub session_id: SessionId,
    /// The name that the client asked for.
    pub base_model: String,
    /// Digest of the base model's weights, hex.
    pub base_digest: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Samples {
    count_max: usize,
    bytes_max: usize,
    bytes: usize,
    by_id: HashMap<RequestId, Sample>,
    by_seq: HashMap<(SamplingSessionId, SeqId), RequestId>,
    /// Waiting to be claimed; holds ids of cancelled ones too.
    queues: HashMap<SamplingSessionId, VecDeque<RequestId>>,
    /// What samplers are made of, to save reads; forgotten all at once when there are too many.
    origins: HashMap<SamplingSessionId, Arc<SamplerOrigin>>,
    /// In the order of their ends, with the time of it.
    finished: VecDeque<(Duration, RequestId)>,
    /// In the order of their first delivery: the first to go when the table is full.
    delivered: VecDeque<RequestId>,
    /// Cancelled after they were claimed, and not said to whom has them yet.
    cancelled: Vec<RequestId>,
    pub(crate) feeds: Feeds,
    /// Blocks of numbers that are written down as possibly lost, with how many of their samples are here.
    blocks: HashMap<(SamplingSessionId, i64), usize>,
    /// What is to be written of those that ended.
    ended: Ended,
}

#[derive(Debug)]
struct Sample {
    tenant: TenantId,
    session: SamplingSessionId,
    seq: Option<SeqId>,
    digest: Digest,
    body: Bytes,
    created: Duration,
    started: Option<Duration>,
    state: State,
    /// Made by the first waiter; dropping it wakes all.
    done: Option<watch::Sender<()>>,
}

#[derive(Debug)]
enum State {
    Queued,
    Claimed,
    Finished {
        outcome: Outcome,
        delivered: bool,
        at: Duration,
        /// Its place in its feed, if it has one.
        cursor: Option<u64>,
    },
}

impl Sample {
    fn span(&self, id: &RequestId, finished: Option<Duration>, failed: bool) -> SampleSpan {
        SampleSpan {
            tenant: self.tenant.clone(),
            sampler: self.session.clone(),
            request_id: id.clone(),
            created: self.created,
            started: self.started,
            finished,
            failed,
        }
    }
}

impl Samples {
    /// `last` is the cursor that feeds go on from.
    pub(crate) fn new(count_max: usize, bytes_max: usize, last: u64) -> Self {
        Self {
            count_max,
            bytes_max,
            bytes: 0,
            by_id: HashMap::new(),
            by_seq: HashMap::new(),
            queues: HashMap::new(),
            origins: HashMap::new(),
            finished: VecDeque::new(),
            delivered: VecDeque::new(),
            cancelled: Vec::new(),
            feeds: Feeds::after(last, count_max),
            blocks: HashMap::new(),
            ended: Ended::default(),
        }
    }

    /// What a sampler of the tenant's is made of, if that is known.
    pub(crate) fn origin(
        &self,
        tenant: &TenantId,
        sampler: &SamplingSessionId,
    ) -> Option<Arc<SamplerOrigin>> {
        self.origins.get(sampler).filter(|origin| origin.tenant == *tenant).cloned()
    }

    /// Remembers what a sampler is made of.
    pub(crate) fn note_origin(&mut self, sampler: &SamplingSessionId, origin: Arc<SamplerOrigin>) {
        if self.origins.len() >= self.count_max {
            self.origins.clear();
        }
        self.origins.insert(sampler.clone(), origin);
    }

    /// Queues a sample under `id`, or finds its first submission. The flag says whether its sampler's
    /// queue was empty, so that it needs a lane.
    pub(crate) fn submit(
        &mut self,
        tenant: &TenantId,
        new: NewSample,
        id: RequestId,
        now: Duration,
    ) -> Result<(Submitted, bool)> {
        let key = new.seq_id.map(|seq| (new.sampling_session_id.clone(), seq));
        if let Some(first) = key.as_ref().and_then(|key| self.by_seq.get(key))
            && let Some(sample) = self.by_id.get(first)
        {
            if sample.digest != new.digest {
                let seq = new.seq_id.map_or_else(String::new, |seq| seq.to_string());
                let what = format!("sample {seq} of {}", new.sampling_session_id);
                return Err(Error::Conflict { what });
            }
            return Ok((Submitted { request_id: first.clone(), fresh: false }, false));
        }
        if !self.make_room(new.body.len()) {
            return Err(Error::Full);
        }
        self.bytes += new.body.len();
        if let Some(key) = key {
            if let Some(count) = self.blocks.get_mut(&block_of(&key.0, key.1)) {
                *count += 1;
            }
            self.by_seq.insert(key, id.clone());
        }
        let sample = Sample {
            tenant: tenant.clone(),
            session: new.sampling_session_id.clone(),
            seq: new.seq_id,
            digest: new.digest,
            body: new.body,
            created: now,
            started: None,
            state: State::Queued,
            done: None,
        };
        self.by_id.insert(id.clone(), sample);
        let mut first = false;
        if let Some(failure) = new.refused {
            self.finish(&id, Outcome::Failed(failure), now);
        } else {
            let queue = self.queues.entry(new.sampling_session_id).or_default();
            first = queue.is_empty();
            queue.push_back(id.clone());
        }
        Ok((Submitted { request_id: id, fresh: true }, first))
    }

    /// Takes the next queued sample of a sampler.
    pub(crate) fn take(&mut self, session: &SamplingSessionId) -> Option<Taken> {
        let queue = self.queues.get_mut(session)?;
        let mut taken = None;
        while taken.is_none() {
            let Some(id) = queue.pop_front() else { break };
            let Some(sample) = self.by_id.get_mut(&id) else { continue };
            if matches!(sample.state, State::Queued) {
                sample.state = State::Claimed;
                taken = Some(Taken {
                    tenant: sample.tenant.clone(),
                    request_id: id,
                    kind: RequestKind::Sample,
                    target: Target::Sampler(session.clone(), sample.seq),
                    length: sample.body.len(),
                    body: Some(sample.body.clone()),
                });
            }
        }
        if queue.is_empty() {
            self.queues.remove(session);
        }
        taken
    }

    pub(crate) fn has_queued(&self, session: &SamplingSessionId) -> bool {
        self.queues.contains_key(session)
    }

    /// Puts a taken sample back in front; true where its sampler's queue was empty.
    pub(crate) fn untake(&mut self, session: &SamplingSessionId, id: RequestId) -> bool {
        let Some(sample) = self.by_id.get_mut(&id) else { return false };
        if !matches!(sample.state, State::Claimed) {
            return false;
        }
        sample.state = State::Queued;
        let queue = self.queues.entry(session.clone()).or_default();
        let first = queue.is_empty();
        queue.push_front(id);
        first
    }

    /// Ends a sample; wakes who waits for it. Ended ones stay as they are.
    pub(crate) fn finish(&mut self, id: &RequestId, outcome: Outcome, now: Duration) -> bool {
        let Some(sample) = self.by_id.get_mut(id) else { return false };
        if matches!(sample.state, State::Finished { .. }) {
            return true;
        }
        let span = sample.span(id, Some(now), matches!(outcome, Outcome::Failed(_)));
        if self.ended.spans.len() < ENDED_MAX {
            self.ended.spans.push(span);
        }
        self.bytes = self.bytes - sample.body.len() + outcome_bytes(&outcome);
        sample.body = Bytes::new();
        let cursor =
            sample.seq.map(|seq| self.feeds.push(FeedId::of(&sample.session, seq), id.clone()));
        sample.state = State::Finished { outcome, delivered: false, at: now, cursor };
        sample.done = None;
        self.finished.push_back((now, id.clone()));
        while self.bytes > self.bytes_max && self.drop_delivered() {}
        true
    }

    /// Notes that work on a sample begins.
    pub(crate) fn started(&mut self, id: &RequestId, now: Duration) {
        if let Some(sample) = self.by_id.get_mut(id) {
            sample.started = Some(now);
        }
    }

    /// Counts what a sample used that has not ended yet, in the hour that begins then, in microseconds.
    pub(crate) fn spend(&mut self, id: &RequestId, hour: i64, usage: SampleUsage) {
        let Some(sample) = self.by_id.get(id) else { return };
        if !matches!(sample.state, State::Finished { .. }) {
            self.ended.spend((&sample.tenant, &sample.session, hour), usage);
        }
    }

    /// What ended samples have left behind since this was asked last.
    pub(crate) fn take_ended(&mut self) -> Ended {
        std::mem::take(&mut self.ended)
    }

    /// Takes back what could not be written.
    pub(crate) fn put_back_ended(&mut self, ended: Ended) {
        for ((tenant, sampler, hour), usage) in ended.usage {
            self.ended.spend((&tenant, &sampler, hour), usage);
        }
        let room = ENDED_MAX.saturating_sub(self.ended.spans.len());
        self.ended.spans.extend(ended.spans.into_iter().take(room));
    }

    /// Those samples of some samplers that have not ended, in no order.
    pub(crate) fn unfinished(
        &self,
        tenant: &TenantId,
        samplers: &HashSet<SamplingSessionId>,
    ) -> Vec<SampleSpan> {
        let open = self.by_id.iter().filter(|(_, sample)| {
            samplers.contains(&sample.session)
                && sample.tenant == *tenant
                && !matches!(sample.state, State::Finished { .. })
        });
        open.map(|(id, sample)| sample.span(id, None, false)).collect()
    }

    /// Ends a sample that nobody waits for.
    pub(crate) fn cancel(&mut self, tenant: &TenantId, id: &RequestId, now: Duration) -> bool {
        let Some(sample) = self.by_id.get(id).filter(|sample| sample.tenant == *tenant) else {
            return false;
        };
        if matches!(sample.state, State::Claimed) && self.cancelled.len() < self.count_max {
            self.cancelled.push(id.clone());
        }
        let message = "cancelled".to_owned();
        self.finish(id, Outcome::Failed(Failure { category: Category::User, message }), now)
    }

    /// What was cancelled after it was claimed, each once.
    pub(crate) fn take_cancelled(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.cancelled)
    }

    /// Whether a sample is claimed and has not ended.
    pub(crate) fn is_claimed(&self, id: &RequestId) -> bool {
        self.by_id.get(id).is_some_and(|sample| matches!(sample.state, State::Claimed))
    }

    /// What a poll finds. A result of more than `bytes_max` bytes is only said to be there, and is not delivered.
    pub(crate) fn look(&mut self, tenant: &TenantId, id: &RequestId, bytes_max: usize) -> Look {
        let Some(sample) = self.by_id.get_mut(id) else { return Look::Unknown };
        if sample.tenant != *tenant {
            return Look::Foreign;
        }
        match &mut sample.state {
            State::Queued | State::Claimed => {
                let done = sample.done.get_or_insert_with(|| watch::Sender::new(()));
                Look::Pending(QueueState::Active, done.subscribe())
            }
            State::Finished { outcome: Outcome::Done(result), .. } if result.len() > bytes_max => {
                Look::Larger(result.len())
            }
            State::Finished { outcome, delivered, .. } => {
                if !*delivered {
                    *delivered = true;
                    self.delivered.push_back(id.clone());
                }
                let outcome = outcome.clone();
                Look::Known(Retrieved::Finished { kind: RequestKind::Sample, outcome })
            }
        }
    }

    /// Whether the block of a sample is written down, so that the sample can be submitted.
    pub(crate) fn is_noted(&self, sampler: &SamplingSessionId, block: i64) -> bool {
        self.blocks.contains_key(&(sampler.clone(), block))
    }

    /// The block is written down.
    pub(crate) fn noted(&mut self, sampler: &SamplingSessionId, block: i64) {
        self.blocks.entry((sampler.clone(), block)).or_insert(0);
    }

    /// Takes out the blocks that none of the samples here belongs to.
    pub(crate) fn take_idle_blocks(&mut self) -> Vec<(SamplingSessionId, i64)> {
        self.blocks.extract_if(|_, count| *count == 0).map(|(key, _)| key).collect()
    }

    /// What a feed tells after `cursor`.
    pub(crate) fn feed_page(&self, id: &FeedId, cursor: u64, max: usize) -> FeedPage {
        let (ended, cursor) = self.feeds.page(id, cursor, max);
        let ended = ended.into_iter().map(|request_id| {
            let bytes = match self.by_id.get(&request_id).map(|sample| &sample.state) {
                Some(State::Finished { outcome: Outcome::Done(result), .. }) => Some(result.len()),
                Some(State::Queued | State::Claimed | State::Finished { .. }) | None => None,
            };
            EndedSample { request_id, bytes }
        });
        FeedPage { ended: ended.collect(), cursor }
    }

    /// Drops a sample of this sampler that its client has received.
    pub(crate) fn retrieved(
        &mut self,
        tenant: &TenantId,
        sampler: &SamplingSessionId,
        id: &RequestId,
    ) {
        let Some(sample) = self.by_id.get(id) else { return };
        let ended = matches!(sample.state, State::Finished { .. });
        if ended && sample.tenant == *tenant && sample.session == *sampler {
            self.remove(id, false);
        }
    }

    /// Drops what ended before `before`.
    pub(crate) fn sweep(&mut self, before: Duration) {
        while self.finished.front().is_some_and(|&(at, _)| at <= before) {
            let Some((at, id)) = self.finished.pop_front() else { break };
            // A number that was used again has the same id.
            let due = self.by_id.get(&id).is_some_and(
                |sample| matches!(sample.state, State::Finished { at: ended, .. } if ended == at),
            );
            if due {
                self.remove(&id, true);
            }
        }
        let by_id = &self.by_id;
        self.delivered.retain(|id| by_id.contains_key(id));
    }

    fn make_room(&mut self, bytes: usize) -> bool {
        while self.by_id.len() >= self.count_max || self.bytes + bytes > self.bytes_max {
            if !self.drop_delivered() {
                return false;
            }
        }
        // Each id that was dropped early still stands here until its time comes.
        if self.finished.len() > 2 * self.count_max {
            let by_id = &self.by_id;
            self.finished.retain(|(_, id)| by_id.contains_key(id));
        }
        true
    }

    /// Drops the sample whose result was delivered first; false where none was.
    fn drop_delivered(&mut self) -> bool {
        while let Some(id) = self.delivered.pop_front() {
            let delivered = self.by_id.get(&id).is_some_and(|sample| {
                matches!(sample.state, State::Finished { delivered: true, .. })
            });
            if delivered {
                self.remove(&id, false);
                return true;
            }
        }
        false
    }

    /// Drops a sample; `missed`: though nobody may have received it.
    fn remove(&mut self, id: &RequestId, missed: bool) {
        let Some(sample) = self.by_id.remove(id) else { return };
        self.bytes -= sample.body.len();
        if let State::Finished { outcome, .. } = &sample.state {
            self.bytes -= outcome_bytes(outcome);
        }
        let Some(seq) = sample.seq else { return };
        if let State::Finished { delivered, cursor: Some(cursor), .. } = sample.state {
            let feed = FeedId::of(&sample.session, seq);
            if missed && !delivered {
                self.feeds.miss(&feed, cursor);
            } else {
                self.feeds.forget(&feed, cursor);
            }
        }
        if let Some(count) = self.blocks.get_mut(&block_of(&sample.session, seq)) {
            *count -= 1;
        }
        self.by_seq.remove(&(sample.session, seq));
    }
}

fn block_of(sampler: &SamplingSessionId, seq: SeqId) -> (SamplingSessionId, i64) {
    (sampler.clone(), seq.0.div_euclid(BLOCK))
}
