//! A call that has started: await it for its result, or drop it and let it go on.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::task::JoinHandle;

use crate::{Error, Result};

/// The result of a call that has already started. Dropping it leaves the call running.
pub struct ApiFuture<T> {
    task: JoinHandle<Result<T>>,
}

impl<T: Send + 'static> ApiFuture<T> {
    /// Starts `call` on the current tokio runtime.
    pub(crate) fn start(call: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self { task: tokio::spawn(call) }
    }
}

impl<T> Future for ApiFuture<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task).poll(context).map(|joined| joined.unwrap_or(Err(Error::Stopped)))
    }
}

impl<T> fmt::Debug for ApiFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiFuture").field("finished", &self.task.is_finished()).finish()
    }
}

/// The part of a call that waits for its result.
pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// Hides what a future is made of.
pub(crate) fn boxed<T>(future: impl Future<Output = Result<T>> + Send + 'static) -> Boxed<T> {
    Box::pin(future)
}
