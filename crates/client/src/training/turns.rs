//! Training requests are numbered when they are called for, and sent in the order of their numbers.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::{Error, Result};

/// In place of a number: a request was never sent.
const BROKEN: i64 = i64::MAX;

/// Whose turn it is to be sent.
#[derive(Debug)]
pub(crate) struct Turns {
    /// The next number to be given out.
    next: Mutex<i64>,
    /// The number whose turn it is.
    turn: watch::Sender<i64>,
}

impl Turns {
    /// From 1: creating the run was 0.
    pub(crate) fn new() -> Self {
        Self { next: Mutex::new(1), turn: watch::channel(1).0 }
    }

    /// Numbers that follow one another: the first of `count`.
    pub(crate) fn reserve(&self, count: usize) -> i64 {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *next;
        *next += i64::try_from(count).unwrap_or(i64::MAX / 2);
        first
    }

    /// A number will never be sent: nothing after it can be.
    pub(crate) fn give_up(&self) {
        self.turn.send_replace(BROKEN);
    }

    /// Waits until all before `first` were sent. The guard's end is that of the turn.
    pub(crate) async fn begin(&self, first: i64, count: usize) -> Result<Turn<'_>> {
        let mut turn = self.turn.subscribe();
        let ready = turn.wait_for(|turn| *turn == first || *turn == BROKEN).await;
        if *ready.map_err(|_| Error::Stopped)? == BROKEN {
            return Err(Error::Broken);
        }
        let after = first + i64::try_from(count).unwrap_or(0);
        Ok(Turn { turns: self, after, is_known: false })
    }
}

/// The time in which a request is sent.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    after: i64,
    is_known: bool,
}

impl Turn<'_> {
    /// Ends the turn. A request that the server refused has used its number up; one that it never saw is a gap
    /// that would hold up all that follow.
    pub(crate) fn end<T>(mut self, sent: &Result<T>) {
        self.is_known = matches!(sent, Ok(_) | Err(Error::Api { .. }));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Dropped without an end: the request panicked before it was sent.
        let next = if self.is_known { self.after } else { BROKEN };
        self.turns.turn.send_modify(|turn| *turn = if *turn == BROKEN { BROKEN } else { next });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn numbers_have_no_gaps_and_no_repeats_under_concurrency() {
        let turns = Arc::new(Turns::new());
        let threads: Vec<_> = (1..=4)
            .map(|count| {
                let turns = Arc::clone(&turns);
                let reserve = move || {
                    let first = (0..100).map(|_| turns.reserve(count));
                    first.flat_map(|first| first..first + count as i64).collect::<Vec<_>>()
                };
                std::thread::Builder::new().name(format!("by {count}")).spawn(reserve).unwrap()
            })
            .collect();
        let mut all: Vec<_> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (1..=1000).collect::<Vec<_>>());
        assert_eq!(turns.reserve(0), turns.reserve(1));
    }

    #[tokio::test]
    async fn a_request_that_was_never_sent_breaks_the_run() {
        let turns = Turns::new();
        let first = turns.reserve(2);
        let turn = turns.begin(first, 2).await.unwrap();
        turn.end(&Ok(()));
        let third = turns.reserve(1);
        let turn = turns.begin(third, 1).await.unwrap();
        turn.end::<()>(&Err(Error::Connection { message: String::new() }));
        assert!(matches!(turns.begin(turns.reserve(1), 1).await, Err(Error::Broken)));
    }
}
