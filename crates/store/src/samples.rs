//! The table of samples: in memory only, bounded by count and bytes.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tinsmith_types::ids::{RequestId, SamplingSessionId, SeqId, TenantId};
use tokio::sync::watch;

use crate::{
    Category, Digest, Error, Failure, NewSample, Outcome, QueueState, RequestKind, Result,
    Retrieved, Submitted, Target,
    index::{Look, Taken, outcome_bytes},
};

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
    /// Owners of samplers, to save reads; forgotten all at once when there are too many.
    owners: HashMap<SamplingSessionId, TenantId>,
    /// In the order of their ends, with the time of it.
    finished: VecDeque<(Duration, RequestId)>,
    /// In the order of their first delivery: the first to go when the table is full.
    delivered: VecDeque<RequestId>,
    /// Cancelled after they were claimed, and not said to whom has them yet.
    cancelled: Vec<RequestId>,
}

#[derive(Debug)]
struct Sample {
    tenant: TenantId,
    session: SamplingSessionId,
    seq: Option<SeqId>,
    digest: Digest,
    body: Bytes,
    state: State,
    /// Made by the first waiter; dropping it wakes all.
    done: Option<watch::Sender<()>>,
}

#[derive(Debug)]
enum State {
    Queued,
    Claimed,
    Finished { outcome: Outcome, delivered: bool },
}

impl Samples {
    pub(crate) fn new(count_max: usize, bytes_max: usize) -> Self {
        Self {
            count_max,
            bytes_max,
            bytes: 0,
            by_id: HashMap::new(),
            by_seq: HashMap::new(),
            queues: HashMap::new(),
            owners: HashMap::new(),
            finished: VecDeque::new(),
            delivered: VecDeque::new(),
            cancelled: Vec::new(),
        }
    }

    /// Whether the sampler is known to be the tenant's.
    pub(crate) fn owns(&self, tenant: &TenantId, session: &SamplingSessionId) -> bool {
        self.owners.get(session) == Some(tenant)
    }

    /// Remembers whose a sampler is.
    pub(crate) fn note_owner(&mut self, tenant: &TenantId, session: &SamplingSessionId) {
        if self.owners.len() >= self.count_max {
            self.owners.clear();
        }
        self.owners.insert(session.clone(), tenant.clone());
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
            self.by_seq.insert(key, id.clone());
        }
        let sample = Sample {
            tenant: tenant.clone(),
            session: new.sampling_session_id.clone(),
            seq: new.seq_id,
            digest: new.digest,
            body: new.body,
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
        self.bytes = self.bytes - sample.body.len() + outcome_bytes(&outcome);
        sample.body = Bytes::new();
        sample.state = State::Finished { outcome, delivered: false };
        sample.done = None;
        self.finished.push_back((now, id.clone()));
        while self.bytes > self.bytes_max && self.drop_delivered() {}
        true
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

    /// What a poll finds.
    pub(crate) fn look(&mut self, tenant: &TenantId, id: &RequestId) -> Look {
        let Some(sample) = self.by_id.get_mut(id) else { return Look::Unknown };
        if sample.tenant != *tenant {
            return Look::Foreign;
        }
        match &mut sample.state {
            State::Queued | State::Claimed => {
                let done = sample.done.get_or_insert_with(|| watch::Sender::new(()));
                Look::Pending(QueueState::Active, done.subscribe())
            }
            State::Finished { outcome, delivered } => {
                if !*delivered {
                    *delivered = true;
                    self.delivered.push_back(id.clone());
                }
                let outcome = outcome.clone();
                Look::Known(Retrieved::Finished { kind: RequestKind::Sample, outcome })
            }
        }
    }

    /// Drops what ended before `before`.
    pub(crate) fn sweep(&mut self, before: Duration) {
        while self.finished.front().is_some_and(|&(at, _)| at <= before) {
            if let Some((_, id)) = self.finished.pop_front() {
                self.remove(&id);
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
        let Some(id) = self.delivered.pop_front() else { return false };
        self.remove(&id);
        true
    }

    fn remove(&mut self, id: &RequestId) {
        let Some(sample) = self.by_id.remove(id) else { return };
        self.bytes -= sample.body.len();
        if let State::Finished { outcome, .. } = &sample.state {
            self.bytes -= outcome_bytes(outcome);
        }
        if let Some(seq) = sample.seq {
            self.by_seq.remove(&(sample.session, seq));
        }
    }
}
