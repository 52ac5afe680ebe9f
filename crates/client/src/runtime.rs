//! The thread that all calls of a service run on, and whether the current one may wait for it.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Waker},
};

use tokio::{
    runtime::{Builder, Handle},
    task::{JoinHandle, coop},
};

use crate::{Error, Result};

/// More polls than a task of tokio may make before it has to yield.
const BUDGET_PROBES: usize = 256;

/// A runtime of its own: calls go on whatever the caller's thread does, and need no runtime of the caller.
#[derive(Debug)]
pub(crate) struct Runtime {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Runtime {
    /// Starts its thread.
    pub(crate) fn start() -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tinsmith")
            .enable_all()
            .build()
            .map_err(|error| Error::validation(format!("no thread to run on: {error}")))?;
        Ok(Self { runtime: Some(runtime) })
    }

    fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("it is taken only when it is dropped").handle()
    }

    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle().spawn(future)
    }

    /// Blocks the thread until `future` is done.
    ///
    /// # Errors
    ///
    /// [`Error::Validation`] where others would have to wait with this thread.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        if is_async() {
            let message = "a blocking wait inside an async runtime would hold up everything that runs on it: \
                           use `.await`, or wait in `tokio::task::spawn_blocking`";
            return Err(Error::validation(message));
        }
        Ok(self.handle().block_on(future))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // The last owner may be one of its own tasks, which may not wait for itself.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Whether this thread is running an async task. One of `spawn_blocking` is not, though it knows a runtime:
/// what tells them apart is that only tasks have a budget of polls.
fn is_async() -> bool {
    if Handle::try_current().is_err() {
        return false;
    }
    let mut context = Context::from_waker(Waker::noop());
    (0..BUDGET_PROBES).any(|_| pin!(coop::consume_budget()).poll(&mut context).is_pending())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_threads_may_wait() {
        assert_eq!(Runtime::start().unwrap().wait(async { 7 }).unwrap(), 7);
    }

    #[tokio::test]
    async fn tasks_may_not_wait_but_their_blocking_threads_may() {
        let runtime = std::sync::Arc::new(Runtime::start().unwrap());
        let error = runtime.wait(async {}).unwrap_err();
        assert!(error.to_string().contains("inside an async runtime"), "{error}");
        let wait = move || runtime.wait(async { 7 }).unwrap();
        assert_eq!(tokio::task::spawn_blocking(wait).await.unwrap(), 7);
    }

    #[test]
    fn tasks_on_other_threads_may_not_wait() {
        let other = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let refused = other.spawn(async { Runtime::start().unwrap().wait(async {}).is_err() });
        assert!(other.block_on(refused).unwrap());
        assert!(other.block_on(async { Runtime::start().unwrap().wait(async {}).is_err() }));
    }
}
