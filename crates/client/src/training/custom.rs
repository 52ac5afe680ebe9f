//! Two passes over one batch that no other request comes between, for losses that are computed on the client.

use std::{future::Future, sync::Arc};

use super::{ForwardBackwardOutput, Inner, TrainingClient, forward::Chunk};
use crate::{ApiFuture, Datum, Error, Loss, Result};

impl TrainingClient {
    /// A forward pass, then a backward pass over what `between` makes of its result. Both are numbered at once and cut
    /// into the same chunks, so that later calls wait for both and the server sees no gap.
    ///
    /// # Errors
    ///
    /// Those of `between`, which runs on a thread of its own. If the second pass is never sent, for whatever reason,
    /// all later calls fail with [`Error::Broken`].
    pub(crate) fn two_passes<X: Send + 'static>(
        &self,
        data: Vec<Datum>,
        loss: Loss,
        between: impl FnOnce(ForwardBackwardOutput) -> Result<(Vec<Datum>, X)> + Send + 'static,
    ) -> ApiFuture<(ForwardBackwardOutput, X)> {
        let chunks = match self.chunks(data, &loss) {
            Ok(chunks) => chunks,
            Err(error) => return self.http().start(async { Err(error) }),
        };
        let lengths: Vec<usize> = chunks.iter().map(|chunk| chunk.data.len()).collect();
        let count = chunks.len();
        let first = self.inner.turns.reserve(2 * count);
        let second = first + i64::try_from(count).unwrap_or(0);
        let forward = Arc::new(self.batch(loss.clone(), true));
        let backward = Arc::new(self.batch(loss, false));
        let (inner, http, poll) = (Arc::clone(&self.inner), self.http().clone(), self.poll.clone());
        let send = Arc::clone(&forward).send(first, chunks);
        let sent = http.begin(in_turn(Arc::clone(&inner), first, count, send));
        // Made here: a call that is given up at once never begins to run.
        let unfinished = Unfinished(Some(Arc::clone(&inner)));
        self.http().start(async move {
            let output = forward.wait(sent.await?, poll.clone()).await?;
            let made = tokio::task::spawn_blocking(move || between(output)).await;
            let (data, made) = made.map_err(|_| Error::Stopped)??;
            let send = Arc::clone(&backward).send(second, cut(data, &lengths));
            let sent = http.begin(in_turn(inner, second, count, send));
            unfinished.end();
            Ok((backward.wait(sent.await?, poll).await?, made))
        })
    }
}

/// Sends when it is the turn of these numbers.
async fn in_turn<T>(
    inner: Arc<Inner>,
    first: i64,
    count: usize,
    send: impl Future<Output = Result<T>>,
) -> Result<T> {
    let turn = inner.turns.begin(first, count).await?;
    let sent = send.await;
    turn.end(&sent);
    sent
}

/// The same chunks as before: other datums are of other sizes, but the numbers are taken.
fn cut(data: Vec<Datum>, lengths: &[usize]) -> Vec<Chunk> {
    let mut data = data.into_iter();
    lengths.iter().map(|length| Chunk::new(data.by_ref().take(*length).collect())).collect()
}

/// The second pass is yet to be sent. Where it never is, the run has a gap that would hold up all that follow.
struct Unfinished(Option<Arc<Inner>>);

impl Unfinished {
    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(inner) = &self.0 {
            inner.turns.give_up();
        }
    }
}
