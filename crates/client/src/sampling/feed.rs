//! One request that waits for all samples of a client, instead of one for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tinsmith_types::{
    futures::{FutureCompletion, FuturesTarget, RetrieveFuturesRequest, RetrieveFuturesResponse},
    ids::{RequestId, SamplingSessionId},
};
use tokio::sync::{Notify, oneshot};

use crate::{
    Error, Result,
    future::AbortOnDrop,
    http::{BILLING_PAUSE, Call, Http, Pool},
};

/// The server holds a request for about 30 s.
const LONG_TIMEOUT: Duration = Duration::from_secs(45);
const SHORT_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Answers of 400 one after another.
const REFUSALS_MAX: u32 = 3;
/// Ends that came before their samples' submissions were answered.
const EARLY_MAX: usize = 10_000;

/// Ends of one client's samples, as the server tells them.
#[derive(Debug)]
pub(super) struct Feed {
    shared: Arc<Shared>,
    _task: AbortOnDrop,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Somebody waits, or has received a result.
    changed: Notify,
    /// The server has no such feed: everybody polls for himself.
    broken: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<RequestId, oneshot::Sender<Option<u64>>>,
    early: BTreeMap<RequestId, Option<u64>>,
    retrieved: BTreeSet<RequestId>,
}

impl Feed {
    pub(super) fn start(http: &Http, id: SamplingSessionId, clone_id: i64) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Notify::new(),
            broken: AtomicBool::new(false),
        });
        let target =
            FuturesTarget::SamplingSession { sampling_session_id: id, cloned_sampler_id: clone_id };
        let task = http.spawn(listen(http.clone(), target, Arc::downgrade(&shared)));
        Self { shared, _task: AbortOnDrop(task) }
    }

    /// Waits until a sample has ended: the bytes of its result, where the server says them. At once where
    /// there is no feed.
    pub(super) async fn ended(&self, id: &RequestId) -> Option<u64> {
        let end = {
            let mut state = self.shared.state();
            if let Some(size) = state.early.remove(id) {
                return size;
            }
            if self.shared.broken.load(Ordering::Relaxed) {
                return None;
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.insert(id.clone(), sender);
            receiver
        };
        self.shared.changed.notify_one();
        let _forget = Forget { shared: &self.shared, id };
        end.await.unwrap_or(None)
    }

    /// A result has been received: the server need not keep it.
    pub(super) fn received(&self, id: RequestId) {
        self.shared.state().retrieved.insert(id);
        self.shared.changed.notify_one();
    }
}

/// Whoever stops waiting is not waited for.
struct Forget<'a> {
    shared: &'a Shared,
    id: &'a RequestId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.state().waiting.remove(self.id);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, completion: FutureCompletion) {
        let (id, size) = match completion {
            FutureCompletion::Finished { request_id, response_payload_uncompressed_size } => {
                (request_id, response_payload_uncompressed_size)
            }
            FutureCompletion::Failed { request_id } => (request_id, None),
        };
        let mut state = self.state();
        match state.waiting.remove(&id) {
            // Whoever went away meanwhile needs it no more.
            Some(waiter) => drop(waiter.send(size)),
            None => {
                if state.early.len() >= EARLY_MAX {
                    state.early.pop_first();
                }
                state.early.insert(id, size);
            }
        }
    }

    /// Everybody polls for himself from now on.
    fn give_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.state().waiting.clear();
    }
}

async fn listen(http: Http, target: FuturesTarget, shared: Weak<Shared>) {
    let mut cursor = 0;
    let mut refusals = 0;
    loop {
        // Held no longer than needed: the feed ends with its last owner.
        let Some(held) = shared.upgrade() else { return };
        let (is_waited_for, retrieved) = {
            let mut state = held.state();
            (!state.waiting.is_empty(), std::mem::take(&mut state.retrieved))
        };
        if !is_waited_for && retrieved.is_empty() {
            held.changed.notified().await;
            continue;
        }
        let request = RetrieveFuturesRequest {
            target: target.clone(),
            prev_cursor: cursor,
            timeout: (!is_waited_for || !retrieved.is_empty()).then_some(0.0),
            retrieved_request_ids: retrieved.into_iter().collect(),
        };
        let error = match ask(&http, &request).await {
            Ok(answer) => {
                (cursor, refusals) = (answer.cursor, 0);
                answer.completions.into_iter().for_each(|completion| held.tell(completion));
                continue;
            }
            Err(error) => error,
        };
        tracing::debug!(%error, "the feed of samples is interrupted");
        // What was received was not told: it is told the next time.
        held.state().retrieved.extend(request.retrieved_request_ids);
        let pause = match error.status() {
            None if !matches!(error, Error::Connection { .. }) => return held.give_up(),
            None | Some(408 | 409 | 429 | 500..) => RETRY_PAUSE,
            Some(402) => BILLING_PAUSE,
            Some(400) if refusals < REFUSALS_MAX => {
                refusals += 1;
                RETRY_PAUSE
            }
            Some(_) => return held.give_up(),
        };
        http.clock().sleep(pause).await;
    }
}

async fn ask(http: &Http, request: &RetrieveFuturesRequest) -> Result<RetrieveFuturesResponse> {
    let limit = if request.timeout.is_some() { SHORT_TIMEOUT } else { LONG_TIMEOUT };
    let call = Call::post("retrieve_futures", request)?.pool(Pool::Futures);
    http.send_json(&call.retries(false, false).timeout(limit)).await
}
