//! Which samples of a client have ended, in the order of their ends, for who asks for all of them at once.
//!
//! A cursor is a count of ends over all feeds, behind the number of the start: it never goes back, neither when
//! a feed is dropped nor when the server starts again. Nothing is dropped because one client has read it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use tinsmith_types::{
    futures::SAMPLES_PER_CLONE,
    ids::{RequestId, SamplingSessionId, SeqId, TenantId},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{Error, FeedPage, FeedQuery, Result, Store, sqlite::samplers, store::Shared};

/// Sample numbers that are written down together: one write, that so many may be lost.
pub(crate) const BLOCK: i64 = 256;

/// The samples of one client: a sampler, and the client's number.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct FeedId {
    pub(crate) sampler: SamplingSessionId,
    pub(crate) clone: i64,
}

impl FeedId {
    /// The feed that tells of a sample.
    pub(crate) fn of(sampler: &SamplingSessionId, seq: SeqId) -> Self {
        Self { sampler: sampler.clone(), clone: seq.0.div_euclid(SAMPLES_PER_CLONE) }
    }
}

/// Samples of earlier starts that may have been lost: a start, and a block of numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LostBlock {
    pub(crate) start: String,
    pub(crate) block: i64,
}

/// All feeds.
#[derive(Debug)]
pub(crate) struct Feeds {
    last: u64,
    by_id: HashMap<FeedId, Feed>,
    /// Feeds beyond this many are kept only as long as there is something to tell.
    count_max: usize,
}

#[derive(Debug)]
struct Feed {
    ended: BTreeMap<u64, RequestId>,
    /// Those of `ended` that nothing is kept of. They go when a client has seen them.
    gone: BTreeSet<u64>,
    wake: watch::Sender<()>,
    /// Whether what was lost with earlier starts stands in `ended`: it does once somebody has asked.
    complete: bool,
    /// The last cursor of a sample that an earlier start lost, until the client has seen it.
    lost: Option<u64>,
    /// When somebody asked last, on the monotonic clock.
    asked_at: Duration,
}

impl Feeds {
    /// Ends count from behind those of earlier starts.
    pub(crate) fn after(last: u64, count_max: usize) -> Self {
        Self { last, by_id: HashMap::new(), count_max }
    }

    /// Takes up the end of a sample; its cursor.
    pub(crate) fn push(&mut self, id: FeedId, request: RequestId) -> u64 {
        self.last += 1;
        let at = self.last;
        let feed = self.feed(id);
        feed.ended.insert(at, request);
        feed.wake.send_replace(());
        at
    }

    /// Forgets the end of a sample.
    pub(crate) fn forget(&mut self, id: &FeedId, cursor: u64) {
        if let Some(feed) = self.by_id.get_mut(id) {
            feed.ended.remove(&cursor);
        }
    }

    /// Nothing is kept of a sample any more. Where somebody reads the feed, it goes on to tell of it: who asks for the
    /// result hears that it is gone.
    pub(crate) fn miss(&mut self, id: &FeedId, cursor: u64) {
        let Some(feed) = self.by_id.get_mut(id) else { return };
        if feed.complete {
            feed.gone.insert(cursor);
        } else {
            feed.ended.remove(&cursor);
        }
    }

    /// Whether the feed tells of what earlier starts lost.
    pub(crate) fn is_complete(&self, id: &FeedId) -> bool {
        self.by_id.get(id).is_some_and(|feed| feed.complete)
    }

    /// Takes up what was lost with earlier starts, once.
    pub(crate) fn complete(&mut self, id: &FeedId, lost: Vec<RequestId>) {
        let mut at = self.last;
        let feed = self.feed(id.clone());
        if feed.complete {
            return;
        }
        feed.complete = true;
        for request in lost {
            at += 1;
            feed.ended.insert(at, request);
            feed.gone.insert(at);
            feed.lost = Some(at);
        }
        feed.wake.send_replace(());
        self.last = at;
    }

    /// Takes note of how far a client has read. True where it has now seen all that earlier starts lost.
    pub(crate) fn seen(&mut self, id: &FeedId, cursor: u64, now: Duration) -> bool {
        let is_known = cursor <= self.last;
        let Some(feed) = self.by_id.get_mut(id).filter(|_| is_known) else { return false };
        feed.asked_at = now;
        let rest = feed.gone.split_off(&(cursor + 1));
        for gone in std::mem::replace(&mut feed.gone, rest) {
            feed.ended.remove(&gone);
        }
        feed.lost.take_if(|lost| *lost <= cursor).is_some()
    }

    /// What ended after `cursor`, at most `max`, and the cursor to go on from. One that is of no start so far,
    /// as after a data directory was put back, begins from the beginning.
    pub(crate) fn page(&self, id: &FeedId, cursor: u64, max: usize) -> (Vec<RequestId>, u64) {
        let Some(feed) = self.by_id.get(id) else { return (Vec::new(), cursor.min(self.last)) };
        let from = if cursor > self.last { 0 } else { cursor };
        let page = feed.ended.range(from + 1..).take(max);
        let mut next = cursor.min(self.last);
        let mut ended = Vec::new();
        for (at, request) in page {
            next = *at;
            ended.push(request.clone());
        }
        (ended, next)
    }

    /// Changes with the next end.
    pub(crate) fn wait(&mut self, id: &FeedId) -> watch::Receiver<()> {
        self.feed(id.clone()).wake.subscribe()
    }

    /// Drops feeds that have nothing to tell, or that nobody has asked since `before` for what is gone, and nobody
    /// to tell it to.
    pub(crate) fn tidy(&mut self, before: Duration) {
        self.by_id.retain(|_, feed| {
            let forgotten = feed.asked_at < before;
            let tells = feed.ended.len() > if forgotten { feed.gone.len() } else { 0 };
            tells || feed.wake.receiver_count() > 0
        });
    }

    fn feed(&mut self, id: FeedId) -> &mut Feed {
        if self.by_id.len() >= self.count_max && !self.by_id.contains_key(&id) {
            self.tidy(Duration::ZERO);
        }
        self.by_id.entry(id).or_insert_with(Feed::new)
    }
}

impl Feed {
    fn new() -> Self {
        Self {
            ended: BTreeMap::new(),
            gone: BTreeSet::new(),
            wake: watch::Sender::new(()),
            complete: false,
            lost: None,
            asked_at: Duration::ZERO,
        }
    }
}

impl Store {
    /// Which samples of a client have ended since it asked last; waits for one for at most `wait` where there is
    /// none. Results that it says to have received are dropped. Samples that were lost with an earlier start are
    /// among those that ended, and so may be numbers of the same blocks that were never used.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the sampling session.
    pub async fn feed(
        &self,
        tenant: &TenantId,
        query: FeedQuery,
        wait: Duration,
    ) -> Result<FeedPage> {
        let deadline = Instant::now() + wait;
        let shared = self.shared();
        let id = FeedId { sampler: query.sampling_session_id.clone(), clone: query.clone };
        self.sampler_origin(tenant, &id.sampler).await?;
        if !shared.index().samples.feeds.is_complete(&id) {
            let lost = self.lost(tenant, &id).await?;
            shared.index().samples.feeds.complete(&id, lost);
        }
        let seen = {
            let mut index = shared.index();
            for request in &query.retrieved {
                index.samples.retrieved(tenant, &id.sampler, request);
            }
            index.samples.feeds.seen(&id, query.cursor, shared.clock.monotonic())
        };
        if seen {
            self.forget_lost(&id).await?;
        }
        loop {
            let mut woken = {
                let mut index = shared.index();
                let page = index.samples.feed_page(&id, query.cursor, shared.config.feed_page_max);
                if !page.ended.is_empty() || wait.is_zero() {
                    return Ok(page);
                }
                index.samples.feeds.wait(&id)
            };
            if timeout_at(deadline, woken.changed()).await.is_err() {
                let index = shared.index();
                return Ok(index.samples.feed_page(&id, query.cursor, shared.config.feed_page_max));
            }
        }
    }

    /// Gives another client of a sampler its number, which no other has, also after a restart.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the sampling session.
    pub async fn join_sampler(
        &self,
        tenant: &TenantId,
        sampler: &SamplingSessionId,
    ) -> Result<i64> {
        let (tenant, sampler) = (tenant.clone(), sampler.clone());
        self.write(move |tx| tx.join_sampler(&tenant, &sampler), |_, _| {}).await
    }

    /// Writes down that samples of this block may be lost, before the first of them is acknowledged. What the
    /// disk refuses is no reason to refuse the sample.
    pub(crate) async fn note_block(&self, sampler: &SamplingSessionId, block: i64) -> Result<()> {
        let id = sampler.clone();
        let noted = self.write(move |tx| tx.note_sample_block(&id, block), |_, ()| {}).await;
        match noted {
            Ok(()) => {}
            Err(error @ Error::Fatal) => return Err(error),
            Err(error) => tracing::warn!(sampler.id = %sampler, %error, "samples not written down"),
        }
        self.shared().index().samples.noted(sampler, block);
        Ok(())
    }

    /// The ids of what earlier starts may have left without an end.
    async fn lost(&self, tenant: &TenantId, id: &FeedId) -> Result<Vec<RequestId>> {
        let (shared, feed) = (self.shared(), id.clone());
        let current = shared.starts.current.clone();
        let most = shared.config.feed_page_max;
        let blocks =
            self.read(move |conn| samplers::lost_blocks(conn, &feed, &current, most)).await?;
        Ok(blocks.iter().flat_map(|lost| lost_ids(shared, tenant, id, lost)).collect())
    }

    async fn forget_lost(&self, id: &FeedId) -> Result<()> {
        let id = id.clone();
        self.write(move |tx| tx.forget_lost(&id), |_, ()| {}).await
    }
}

fn lost_ids(shared: &Shared, tenant: &TenantId, id: &FeedId, lost: &LostBlock) -> Vec<RequestId> {
    let first = lost.block.saturating_mul(BLOCK);
    let numbers = first..first.saturating_add(BLOCK);
    let name = |seq| shared.starts.sample_id_of(&lost.start, tenant, &id.sampler, SeqId(seq));
    numbers.filter_map(name).collect()
}
