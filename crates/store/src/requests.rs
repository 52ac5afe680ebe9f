//! Requests, as those see them who send them and wait for them.

use std::time::Duration;

use tinsmith_types::ids::{RequestId, TenantId};
use tokio::time::{Instant, timeout_at};

use crate::{
    Error, NewRequest, NewSample, Outcome, Peeked, Result, Retrieved, Store, Submitted,
    feeds::BLOCK,
    index::{Arrival, Look},
    sqlite::requests::{self, Standing},
};

impl Store {
    /// Makes a training request durable: it is on disk when this returns.
    ///
    /// The same `(model_id, seq_id)` with the same digest finds its first submission, also after it
    /// has finished and after a restart. A request that `creates` its run makes the run in the same
    /// transaction. A `refused` one takes its place in the order, already failed.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the run, or for the session of a new run; [`Error::Conflict`] for
    /// another digest; [`Error::Full`] where the run has too many unfinished requests.
    pub async fn submit(&self, tenant: &TenantId, new: NewRequest) -> Result<Submitted> {
        let tenant = tenant.clone();
        let (owner, model, kind, body) =
            (tenant.clone(), new.model_id.clone(), new.kind, new.body.clone());
        let admitted = self
            .write(
                move |tx| tx.submit(&tenant, &new),
                move |shared, admitted| {
                    shared.sessions.heard(&admitted.session_id, shared.clock.now());
                    if !admitted.submitted.fresh {
                        return;
                    }
                    let now = shared.clock.monotonic();
                    let mut index = shared.index();
                    let (seq, request_id) = (admitted.seq, admitted.submitted.request_id.clone());
                    if let Some(failure) = &admitted.failure {
                        let outcome = Outcome::Failed(failure.clone());
                        index.finished(&request_id, owner, kind, outcome);
                        index.consumed(&model, seq, now);
                    } else {
                        let (tenant, length, body) = (owner, body.len(), Some(body));
                        let arrival =
                            Arrival { tenant, model, seq, request_id, kind, length, body };
                        index.arrived(arrival, now);
                    }
                    if index.has_work() {
                        shared.work.notify_one();
                    }
                },
            )
            .await?;
        Ok(admitted.submitted)
    }

    /// Queues a sample, in memory only. The same `(sampling_session_id, seq_id)` with the same digest
    /// finds its first submission as long as that is remembered.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the sampling session; [`Error::Conflict`] for another digest;
    /// [`Error::Full`] where the table of samples is full.
    pub async fn submit_sample(&self, tenant: &TenantId, new: NewSample) -> Result<Submitted> {
        let shared = self.shared();
        if shared.stopped() {
            return Err(Error::Fatal);
        }
        let session = new.sampling_session_id.clone();
        self.sampler_origin(tenant, &session).await?;
        let id = new.seq_id.and_then(|seq| {
            shared.starts.sample_id_of(&shared.starts.current, tenant, &session, seq)
        });
        let id = id.unwrap_or_else(|| shared.starts.sample_id(tenant));
        loop {
            if let Some(block) = new.seq_id.map(|seq| seq.0.div_euclid(BLOCK))
                && !shared.index().samples.is_noted(&session, block)
            {
                self.note_block(&session, block).await?;
            }
            let mut index = shared.index();
            let now = shared.clock.monotonic();
            let Some(submitted) = index.submit_sample(tenant, &new, &id, now) else { continue };
            drop(index);
            shared.work.notify_one();
            return submitted;
        }
    }

    /// How a request stands, after waiting for its end for at most `wait`. Waiting costs no reads.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that was never given to this tenant.
    pub async fn retrieve(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        wait: Duration,
    ) -> Result<Retrieved> {
        Ok(match self.peek(tenant, id, wait, usize::MAX).await? {
            Peeked::Whole(retrieved) => retrieved,
            // No result has more bytes than that.
            Peeked::Larger { .. } => Retrieved::Gone,
        })
    }

    /// As [`Self::retrieve`], but of a result of more than `bytes_max` bytes only says that it is there.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that was never given to this tenant.
    pub async fn peek(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        wait: Duration,
        bytes_max: usize,
    ) -> Result<Peeked> {
        let deadline = Instant::now() + wait;
        let mut expired = wait.is_zero();
        loop {
            let look = self.shared().index().look(tenant, id, bytes_max);
            let retrieved = match look {
                Look::Pending(state, _) if expired => Retrieved::Pending(state),
                Look::Pending(_, mut done) => {
                    // The sender sends nothing: it goes when the request has ended.
                    expired = timeout_at(deadline, done.changed()).await.is_err();
                    continue;
                }
                Look::Known(retrieved) => retrieved,
                Look::Larger(bytes) => return Ok(Peeked::Larger { bytes }),
                Look::Foreign => return Err(not_found(id)),
                Look::Unknown if self.shared().starts.gave(tenant, id) => Retrieved::Gone,
                Look::Unknown => self.retrieve_from_disk(tenant, id).await?,
            };
            if let Retrieved::Finished { outcome: Outcome::Done(result), .. } = &retrieved
                && result.len() > bytes_max
            {
                return Ok(Peeked::Larger { bytes: result.len() });
            }
            return Ok(Peeked::Whole(retrieved));
        }
    }

    /// Ends a sample that nobody waits for; one that has ended stays as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such sample.
    #[expect(clippy::unused_async, reason = "as the other methods; another store may have to wait")]
    pub async fn cancel_sample(&self, tenant: &TenantId, id: &RequestId) -> Result<()> {
        let now = self.shared().clock.monotonic();
        if self.shared().index().samples.cancel(tenant, id, now) {
            Ok(())
        } else {
            Err(not_found(id))
        }
    }

    async fn retrieve_from_disk(&self, tenant: &TenantId, id: &RequestId) -> Result<Retrieved> {
        let (tenant, id) = (tenant.clone(), id.clone());
        let spool_dir = self.shared().spool_dir.clone();
        self.read(move |conn| {
            Ok(match requests::standing(conn, &tenant, &id)? {
                Standing::Pending => Retrieved::Pending(crate::QueueState::Active),
                Standing::Failed(kind, failure) => {
                    Retrieved::Finished { kind, outcome: Outcome::Failed(failure) }
                }
                Standing::Done(_, crate::sqlite::Stored::Dropped) => Retrieved::Gone,
                Standing::Done(kind, stored) => {
                    let result = stored.load(&spool_dir, || format!("result of request {id}"))?;
                    Retrieved::Finished { kind, outcome: Outcome::Done(result) }
                }
            })
        })
        .await
    }
}

pub(crate) fn not_found(id: &RequestId) -> Error {
    Error::NotFound { what: format!("request {id}") }
}
