//! Time, so that tests need not wait for it.

use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

/// A pause that ends.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the client goes by when it waits between two attempts, and when it looks at a deadline.
pub trait Clock: Debug + Send + Sync {
    /// The time.
    fn now(&self) -> Instant;

    /// Ends after `duration`.
    fn sleep(&self, duration: Duration) -> Sleep;
}

/// The machine's own time.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that the others are given")]
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}
