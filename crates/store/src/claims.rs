//! Requests, as the worker sees them: claimed in order, completed once.

use std::time::Duration;

use tinsmith_types::ids::RequestId;
use tokio::time::{Instant, timeout_at};

use crate::{
    Category, Claimed, Completion, Effect, Error, Failure, Outcome, Result, Shortage, Store,
    index::Taken,
    requests::not_found,
    sqlite::{self, ledger, requests},
    store::Shared,
};

impl Store {
    /// Up to `max` requests whose turn it is, after waiting for the first for at most `wait`; empty
    /// where none came.
    ///
    /// Within a run they come in the order of their ids, and nothing before them is left out. Runs and
    /// samplers take turns, one request each. Fewer come where their bodies are large
    /// ([`Config::claim_bytes_max`](crate::Config::claim_bytes_max)), but always one where there is one.
    ///
    /// # Errors
    /// [`Error::Fatal`] where the store has stopped.
    pub async fn claim(&self, max: usize, wait: Duration) -> Result<Vec<Claimed>> {
        let shared = self.shared();
        let deadline = Instant::now() + wait;
        self.fail_gaps().await?;
        loop {
            let work = shared.work.notified();
            tokio::pin!(work);
            work.as_mut().enable();
            if shared.stopped() {
                return Err(Error::Fatal);
            }
            let taken = {
                let mut index = shared.index();
                let taken = index.take(max, shared.config.claim_bytes_max);
                if index.has_work() {
                    shared.work.notify_one();
                }
                taken
            };
            if !taken.is_empty() {
                let claimed = self.load_bodies(taken).await?;
                if !claimed.is_empty() {
                    return Ok(claimed);
                }
            } else if wait.is_zero() || timeout_at(deadline, work).await.is_err() {
                return Ok(Vec::new());
            }
        }
    }

    /// Samples that were cancelled after they were claimed, each once: work for them is of no use.
    pub fn cancelled_samples(&self) -> Vec<RequestId> {
        self.shared().index().samples.take_cancelled()
    }

    /// Whether a claimed sample is still to be computed. What is cancelled later is told by
    /// [`Self::cancelled_samples`].
    pub fn wants_sample(&self, id: &RequestId) -> bool {
        self.shared().index().samples.is_claimed(id)
    }

    /// Takes note of what waits for room, so that whoever waits for it hears why.
    pub fn set_shortage(&self, shortage: Shortage) {
        self.shared().index().shortage = shortage;
    }

    /// Ends requests, all of them in one commit, then wakes who waits for them. One that had ended
    /// stays as it is, and that is fine.
    ///
    /// # Errors
    /// For each completion: [`Error::NameTaken`] or [`Error::Conflict`] where its effect was refused
    /// and the request failed instead (category user); [`Error::NotFound`] where the request, its
    /// run or a blob is unknown, and [`Error::Conflict`] where a loaded state would cover a request
    /// that has not ended, or is older than the run's snapshot: the request is as pending as before,
    /// and the other completions count; [`Error::Io`] where nothing was committed, as on a full disk:
    /// the same completions can be sent again.
    pub async fn complete(&self, completions: Vec<Completion>) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = Vec::with_capacity(completions.len());
        let mut durable = Vec::new();
        let unrecorded = self.record_samples(&completions).await.err();
        for completion in completions {
            let id = &completion.request_id;
            if !id.0.starts_with("smp-") {
                durable.push((results.len(), completion));
                results.push(Ok(()));
                continue;
            }
            if let (Effect::Sampled(_, Some(_)), Some(error)) = (&completion.effect, &unrecorded) {
                results.push(Err(error.copy()));
                continue;
            }
            results.push(self.end_sample(completion));
        }
        if durable.is_empty() {
            return results;
        }
        let (places, durable): (Vec<_>, Vec<_>) = durable.into_iter().unzip();
        match self.complete_durably(durable).await {
            Ok(ended) => {
                for (place, result) in places.into_iter().zip(ended) {
                    results[place] = result;
                }
            }
            Err(error) => {
                for place in places {
                    results[place] = Err(error.copy());
                }
            }
        }
        results
    }

    /// Ends a sample of which nothing is to be recorded, in memory, and wakes who waits for it. One that had ended
    /// stays as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`] where nobody knows the sample any more.
    pub fn end_sample(&self, completion: Completion) -> Result<()> {
        let Completion { request_id: id, outcome, effect, digest: _ } = completion;
        let shared = self.shared();
        let now = shared.clock.monotonic();
        let mut index = shared.index();
        if let Effect::Sampled(usage, _) = effect {
            index.samples.spend(&id, ledger::hour(shared.clock.now()), usage);
        }
        if index.samples.finish(&id, outcome, now) { Ok(()) } else { Err(not_found(&id)) }
    }

    /// Fails what has waited too long for a missing id.
    pub(crate) async fn fail_gaps(&self) -> Result<()> {
        let shared = self.shared();
        let Some(before) = shared.clock.monotonic().checked_sub(shared.config.gap_timeout) else {
            return Ok(());
        };
        let gaps = shared.index().gaps(before);
        for (model, missing) in gaps {
            let run = model.clone();
            self.write(
                move |tx| tx.skip_gap(&model, missing),
                move |shared, skipped| {
                    let Some(skipped) = skipped else { return };
                    let mut index = shared.index();
                    for (id, tenant, kind) in &skipped.failed {
                        let outcome = Outcome::Failed(skipped.failure.clone());
                        index.finished(id, tenant.clone(), *kind, outcome);
                    }
                    index.skipped(&run, skipped.next, shared.clock.monotonic());
                },
            )
            .await?;
        }
        Ok(())
    }

    /// Writes down what those samples drew that asked for it.
    async fn record_samples(&self, completions: &[Completion]) -> Result<()> {
        let recorded = completions.iter().filter_map(|completion| match &completion.effect {
            Effect::Sampled(_, Some(sample)) => {
                Some((completion.request_id.clone(), sample.clone()))
            }
            Effect::Sampled(_, None)
            | Effect::Trained(_)
            | Effect::None
            | Effect::RunReady
            | Effect::Loaded(_)
            | Effect::Checkpoint(_)
            | Effect::SamplingSession(_) => None,
        });
        let recorded: Vec<_> = recorded.collect();
        if recorded.is_empty() {
            return Ok(());
        }
        let apply = move |tx: &mut sqlite::Tx<'_>| {
            recorded.iter().try_for_each(|(id, sample)| tx.record_sample(id, sample))
        };
        self.write(apply, |_, ()| {}).await
    }

    async fn complete_durably(&self, completions: Vec<Completion>) -> Result<Vec<Result<()>>> {
        let ended = self
            .write(
                move |tx| {
                    let mut ended = Vec::with_capacity(completions.len());
                    for completion in &completions {
                        match tx.complete(completion) {
                            Err(error @ (Error::Fatal | Error::Io(_))) => return Err(error),
                            other => ended.push(other),
                        }
                    }
                    Ok(ended)
                },
                |shared, ended| {
                    let mut index = shared.index();
                    for completed in ended.iter().flatten().flatten() {
                        let requests::Completed { request_id, tenant, kind, outcome, .. } =
                            completed;
                        index.finished(request_id, tenant.clone(), *kind, outcome.clone());
                    }
                },
            )
            .await?;
        let result = |completed: Result<Option<requests::Completed>>| match completed?
            .and_then(|completed| completed.refused)
        {
            Some(error) => Err(error),
            None => Ok(()),
        };
        Ok(ended.into_iter().map(result).collect())
    }

    /// Reads the bodies that are not in memory. A request whose body cannot be read fails.
    async fn load_bodies(&self, taken: Vec<Taken>) -> Result<Vec<Claimed>> {
        let mut held = Held { shared: self.shared(), taken };
        let mut damaged = Vec::new();
        for taken in &mut held.taken {
            if taken.body.is_some() {
                continue;
            }
            let (id, spool_dir) = (taken.request_id.clone(), self.shared().spool_dir.clone());
            let loaded = self
                .read(move |conn| {
                    requests::body(conn, &id)?.load(&spool_dir, || format!("body of request {id}"))
                })
                .await;
            match loaded {
                Ok(body) => taken.body = Some(body),
                Err(error @ Error::Corrupted { .. }) => {
                    tracing::error!(request.id = %taken.request_id, error = %error, "body lost");
                    damaged.push(lost(taken.request_id.clone()));
                }
                Err(error) => return Err(error),
            }
        }
        if !damaged.is_empty() {
            for ended in self.complete(damaged).await {
                ended?;
            }
        }
        let claimed = std::mem::take(&mut held.taken).into_iter().filter_map(|taken| {
            let Taken { tenant, request_id, kind, target, length: _, body } = taken;
            Some(Claimed { tenant, request_id, kind, target, body: body? })
        });
        Ok(claimed.collect())
    }
}

/// Requests that go back to their queues unless they are handed out.
struct Held<'a> {
    shared: &'a Shared,
    taken: Vec<Taken>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.taken.is_empty() {
            self.shared.index().untake(std::mem::take(&mut self.taken));
            self.shared.work.notify_one();
        }
    }
}

fn lost(request_id: RequestId) -> Completion {
    let message = "the request's body was damaged on the server's disk".to_owned();
    Completion {
        request_id,
        outcome: Outcome::Failed(Failure { category: Category::Server, message }),
        digest: None,
        effect: Effect::None,
    }
}
