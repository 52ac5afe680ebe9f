//! A call that has started: await it, wait for it, cancel it, or drop it and let it go on.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tinsmith_types::ids::RequestId;
use tokio::task::{AbortHandle, JoinError, JoinHandle};

use crate::{Category, Error, Result, http::Http, runtime::Runtime};

/// Calls within a call that have ended are forgotten when there are so many.
const CHILDREN_KEPT: usize = 64;

/// The result of a call that has already started.
///
/// * `.await` gives it in async code, on any executor.
/// * [`ApiFuture::wait`] and [`ApiFuture::wait_timeout`] give it in plain threads.
/// * Dropping it leaves the call running; [`ApiFuture::cancel`] stops it.
#[must_use = "the call goes on without it, but its result and its error are lost"]
pub struct ApiFuture<T> {
    task: JoinHandle<Result<T>>,
    ticket: Arc<Ticket>,
    runtime: Arc<Runtime>,
}

impl<T: Send + 'static> ApiFuture<T> {
    /// Starts `call` on `runtime`. What a call starts is cancelled with it.
    pub(crate) fn start(
        runtime: &Arc<Runtime>,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Self {
        let ticket = Arc::new(Ticket::default());
        let task = runtime.spawn(TICKET.scope(Arc::clone(&ticket), call));
        ticket.may_abort(task.abort_handle());
        if let Ok(parent) = TICKET.try_with(Arc::clone) {
            parent.may_cancel(Arc::clone(&ticket));
        }
        Self { task, ticket, runtime: Arc::clone(runtime) }
    }

    /// Blocks until the result is there.
    ///
    /// # Errors
    ///
    /// Those of the call; [`Error::Validation`] inside an async runtime, which it would hold up.
    pub fn wait(self) -> Result<T> {
        let runtime = Arc::clone(&self.runtime);
        runtime.wait(self)?
    }

    /// Blocks until the result is there, at most for `limit`; then the call is cancelled.
    ///
    /// # Errors
    ///
    /// Those of [`ApiFuture::wait`], and [`Error::Timeout`].
    pub fn wait_timeout(mut self, limit: Duration) -> Result<T> {
        let runtime = Arc::clone(&self.runtime);
        match runtime.wait(self.poll_for(limit))? {
            Some(result) => result,
            None => Err(self.give_up(limit)),
        }
    }

    /// Blocks until the result is there, at most for `limit`; the call goes on where it is not.
    pub fn wait_for(&mut self, limit: Duration) -> Option<Result<T>> {
        let runtime = Arc::clone(&self.runtime);
        runtime.wait(self.poll_for(limit)).unwrap_or_else(|error| Some(Err(error)))
    }

    /// The result if it comes within `limit`; the call goes on where it does not.
    pub async fn poll_for(&mut self, limit: Duration) -> Option<Result<T>> {
        // The timer is the client's own: the caller may run on any executor.
        let timer = self.runtime.spawn(async move { tokio::time::sleep(limit).await });
        let stop = AbortOnDrop(timer.abort_handle());
        let mut timer = std::pin::pin!(timer);
        let result = std::future::poll_fn(|context| {
            if let Poll::Ready(result) = Pin::new(&mut *self).poll(context) {
                return Poll::Ready(Some(result));
            }
            timer.as_mut().poll(context).map(|_| None)
        });
        let result = result.await;
        drop(stop);
        result
    }

    /// The same call with a limit of time, after which it is cancelled and gives [`Error::Timeout`].
    pub fn timeout(mut self, limit: Duration) -> Self {
        let (ticket, runtime) = (Arc::clone(&self.ticket), Arc::clone(&self.runtime));
        let limited = Self::start(&runtime, async move {
            match self.poll_for(limit).await {
                Some(result) => result,
                None => Err(self.give_up(limit)),
            }
        });
        limited.ticket.may_cancel(ticket);
        limited
    }

    /// Stops the call, and tells the server where it can stop too: then awaiting gives [`Error::Timeout`] at
    /// once. What was already submitted to a training run stays submitted, in its order.
    pub fn cancel(&self) {
        self.ticket.cancel();
    }

    /// Stops the call; the result if it was there already.
    pub fn abort(mut self) -> Option<Result<T>> {
        self.ticket.cancel();
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(&mut self).poll(&mut context) {
            Poll::Ready(Err(Error::Timeout { .. })) | Poll::Pending => None,
            Poll::Ready(result) => Some(result),
        }
    }

    /// Whether the result is there.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// The same call with its value changed.
    pub fn map<U: Send + 'static>(self, f: impl FnOnce(T) -> U + Send + 'static) -> ApiFuture<U> {
        let (ticket, runtime) = (Arc::clone(&self.ticket), Arc::clone(&self.runtime));
        let mapped = ApiFuture::start(&runtime, async move { self.await.map(f) });
        mapped.ticket.may_cancel(ticket);
        mapped
    }

    /// A call that follows this one, by itself.
    pub fn and_then<U: Send + 'static>(
        self,
        f: impl FnOnce(T) -> ApiFuture<U> + Send + 'static,
    ) -> ApiFuture<U> {
        let (ticket, runtime) = (Arc::clone(&self.ticket), Arc::clone(&self.runtime));
        let chained = ApiFuture::start(&runtime, async move { f(self.await?).await });
        chained.ticket.may_cancel(ticket);
        chained
    }

    fn give_up(&self, limit: Duration) -> Error {
        let request_id = self.ticket.request();
        self.ticket.cancel();
        let exit_reason = format!("it was waited for {limit:?}");
        Error::Timeout { request_id, exit_reason }
    }
}

impl<T> Future for ApiFuture<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let joined = std::task::ready!(Pin::new(&mut self.task).poll(context));
        Poll::Ready(joined.unwrap_or_else(|error| Err(self.ticket.lost(error))))
    }
}

impl<T> fmt::Debug for ApiFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiFuture").field("finished", &self.task.is_finished()).finish()
    }
}

/// All results in the order of the calls, of which none is given up because another failed. Those that are
/// not there after `limit`, counted from now, are cancelled and give [`Error::Timeout`].
pub async fn await_many<T: Send + 'static>(
    futures: Vec<ApiFuture<T>>,
    limit: Option<Duration>,
) -> Vec<Result<T>> {
    let futures = limited(futures, limit);
    let mut results = Vec::with_capacity(futures.len());
    for future in futures {
        results.push(future.await);
    }
    results
}

/// The same calls, each with the limit: limits run beside each other, not one after the other.
pub(crate) fn limited<T: Send + 'static>(
    futures: Vec<ApiFuture<T>>,
    limit: Option<Duration>,
) -> Vec<ApiFuture<T>> {
    let limited = |future: ApiFuture<T>| match limit {
        Some(limit) => future.timeout(limit),
        None => future,
    };
    futures.into_iter().map(limited).collect()
}

/// All values in the order of the calls.
///
/// # Errors
///
/// The first error in that order; all calls are waited for all the same.
pub async fn try_await_many<T: Send + 'static>(
    futures: Vec<ApiFuture<T>>,
    limit: Option<Duration>,
) -> Result<Vec<T>> {
    await_many(futures, limit).await.into_iter().collect()
}

tokio::task_local! {
    static TICKET: Arc<Ticket>;
}

/// What has to be stopped with a call.
#[derive(Debug, Default)]
struct Ticket {
    state: Mutex<TicketState>,
}

#[derive(Debug, Default)]
struct TicketState {
    cancelled: bool,
    task: Option<AbortHandle>,
    children: Vec<Arc<Ticket>>,
    requests: Vec<(RequestId, Option<Http>)>,
}

impl Ticket {
    fn state(&self) -> std::sync::MutexGuard<'_, TicketState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_abort(&self, task: AbortHandle) {
        self.state().task = Some(task);
    }

    fn may_cancel(&self, child: Arc<Self>) {
        let mut state = self.state();
        if state.cancelled {
            drop(state);
            child.cancel();
        } else {
            if state.children.len() >= CHILDREN_KEPT {
                state.children.retain(|child| !child.is_done());
            }
            state.children.push(child);
        }
    }

    fn is_done(&self) -> bool {
        self.state().task.as_ref().is_none_or(AbortHandle::is_finished)
    }

    fn cancel(&self) {
        let (task, children, requests) = {
            let mut state = self.state();
            state.cancelled = true;
            let TicketState { task, children, requests, .. } = &mut *state;
            (task.take(), std::mem::take(children), requests.clone())
        };
        if let Some(task) = task {
            task.abort();
        }
        for child in children {
            child.cancel();
        }
        for (request_id, http) in requests {
            if let Some(http) = http {
                http.cancel_request(request_id);
            }
        }
    }

    /// The request that is waited for; empty where there is none.
    fn request(&self) -> String {
        let state = self.state();
        let children = || state.children.iter().map(|child| child.request());
        match state.requests.last() {
            Some((request_id, _)) => request_id.to_string(),
            None => children().find(|request| !request.is_empty()).unwrap_or_default(),
        }
    }

    /// Why the task ended without a result.
    fn lost(&self, error: JoinError) -> Error {
        let request_id = self.request();
        let cancelled = self.state().cancelled;
        match error.try_into_panic() {
            Ok(panic) => Error::RequestFailed {
                request_id,
                category: Category::Unknown,
                message: format!("the call panicked: {}", panic_text(&*panic)),
            },
            Err(_) if cancelled => {
                Error::Timeout { request_id, exit_reason: "the call was cancelled".to_owned() }
            }
            Err(_) => Error::Stopped,
        }
    }
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}

/// While it lives, cancelling the call that is running names this request, and tells the server if it can be
/// stopped there.
#[derive(Debug)]
pub(crate) struct Waiting {
    ticket: Option<Arc<Ticket>>,
    request_id: RequestId,
}

impl Waiting {
    pub(crate) fn on(request_id: &RequestId, stoppable: Option<Http>) -> Self {
        let ticket = TICKET.try_with(Arc::clone).ok();
        if let Some(ticket) = &ticket {
            ticket.state().requests.push((request_id.clone(), stoppable));
        }
        Self { ticket, request_id: request_id.clone() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            let mut state = ticket.state();
            // A cancelled call still names what it was waiting for.
            if !state.cancelled {
                state.requests.retain(|(request_id, _)| *request_id != self.request_id);
            }
        }
    }
}

/// Stops a task that nobody needs any more.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
