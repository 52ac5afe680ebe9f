//! When each operation of a session waited and ran, for traces.

use std::time::Duration;

use jiff::Timestamp;
use tinsmith_types::ids::{RequestId, SamplingSessionId, SessionId, TenantId};

use crate::{RequestKind, Result, Store, sqlite::spans};

/// One operation, from its submission to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The run or sampler that it worked on.
    pub target: String,
    /// Its name.
    pub request_id: RequestId,
    /// What it asked for.
    pub kind: RequestKind,
    /// Its place in the run's order; samples have none.
    pub seq_id: Option<i64>,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When the worker began with it; `None`: it has not, or it is not known.
    pub started_at: Option<Timestamp>,
    /// When it ended; `None`: it goes on.
    pub finished_at: Option<Timestamp>,
    /// Whether it failed or was cancelled.
    pub failed: bool,
}

/// A sample that has ended, or goes on; times are on the monotonic clock.
#[derive(Clone, Debug)]
pub(crate) struct SampleSpan {
    pub(crate) tenant: TenantId,
    pub(crate) sampler: SamplingSessionId,
    pub(crate) request_id: RequestId,
    pub(crate) created: Duration,
    pub(crate) started: Option<Duration>,
    pub(crate) finished: Option<Duration>,
    pub(crate) failed: bool,
}

impl SampleSpan {
    /// A time of the span on the clock that people read.
    pub(crate) fn at((now, monotonic): (Timestamp, Duration), time: Duration) -> Timestamp {
        now - monotonic.saturating_sub(time)
    }

    fn into_span(self, now: (Timestamp, Duration)) -> Span {
        Span {
            target: self.sampler.0,
            request_id: self.request_id,
            kind: RequestKind::Sample,
            seq_id: None,
            created_at: Self::at(now, self.created),
            started_at: self.started.map(|time| Self::at(now, time)),
            finished_at: self.finished.map(|time| Self::at(now, time)),
            failed: self.failed,
        }
    }
}

impl Store {
    /// Notes that work on a claimed request begins. Kept in memory until the request ends.
    pub fn started(&self, id: &RequestId) {
        let now = (self.shared().clock.now(), self.shared().clock.monotonic());
        self.shared().index().started(id, now);
    }

    /// The operations of a session: the newest `limit` of its runs' requests and of its samples, each by
    /// the time of their submission. True: there were more.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for the session.
    pub async fn session_spans(
        &self,
        tenant: &TenantId,
        id: &SessionId,
        limit: u32,
    ) -> Result<(Vec<Span>, bool)> {
        self.settle_ledger().await?;
        let (_, samplers) = self.session_children(tenant, id).await?;
        let samplers = samplers.into_iter().collect();
        let (owner, key) = (tenant.clone(), id.clone());
        let (mut found, cut) =
            self.read(move |conn| spans::of_session(conn, &owner, &key, limit)).await?;
        let now = (self.shared().clock.now(), self.shared().clock.monotonic());
        let index = self.shared().index();
        for span in found.iter_mut().filter(|span| span.finished_at.is_none()) {
            span.started_at = index.started_at(&span.request_id);
        }
        let running = index.samples.unfinished(tenant, &samplers);
        found.extend(running.into_iter().map(|span| span.into_span(now)));
        drop(index);
        found.sort_by(|a, b| {
            let place = |span: &Span| (span.created_at, span.seq_id, span.request_id.clone());
            place(a).cmp(&place(b))
        });
        Ok((found, cut))
    }
}
