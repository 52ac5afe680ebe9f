//! Statements about training requests.

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use tinsmith_types::ids::{ModelId, RequestId, SeqId, SessionId, TenantId};

use crate::{
    Category, Completion, Digest, Effect, Error, Failure, JournalEntry, JournalState, NewRequest,
    Outcome, RequestKind, Result, Submitted, UsageKind,
    sqlite::{
        Stored, Tx,
        checkpoints::Saved,
        found, named,
        runs::{owner, run_not_found},
        signed, text, unsigned,
    },
};

const PENDING: i64 = 0;
const DONE: i64 = 1;
const FAILED: i64 = 2;

/// What became of a submission.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) submitted: Submitted,
    pub(crate) seq: SeqId,
    pub(crate) session_id: SessionId,
    /// Set where it takes its place in the order already failed.
    pub(crate) failure: Option<Failure>,
}

/// A completed request, as its waiters will see it.
#[derive(Debug)]
pub(crate) struct Completed {
    pub(crate) request_id: RequestId,
    pub(crate) tenant: TenantId,
    pub(crate) kind: RequestKind,
    pub(crate) outcome: Outcome,
    /// Why its effect was refused.
    pub(crate) refused: Option<Error>,
}

/// Requests that waited in vain.
#[derive(Debug)]
pub(crate) struct Skipped {
    pub(crate) failed: Vec<(RequestId, TenantId, RequestKind)>,
    pub(crate) failure: Failure,
    /// The id that is awaited next.
    pub(crate) next: SeqId,
}

/// A request without its body.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) tenant: TenantId,
    pub(crate) request_id: RequestId,
    pub(crate) model: ModelId,
    pub(crate) seq: SeqId,
    pub(crate) kind: RequestKind,
    pub(crate) pending: bool,
}

impl Tx<'_> {
    pub(crate) fn submit(&mut self, tenant: &TenantId, new: &NewRequest) -> Result<Admitted> {
        let model = &new.model_id;
        let owner = match (owner(self.conn, model)?, &new.creates) {
            (Some(owner), _) => owner,
            (None, None) => return Err(run_not_found(model)),
            (None, Some(creates)) => {
                self.insert_run(tenant, model, creates)?;
                super::runs::Owner {
                    tenant: tenant.clone(),
                    session_id: creates.session_id.clone(),
                    next_seq: 0,
                    copied_from: None,
                }
            }
        };
        if owner.tenant != *tenant {
            return Err(run_not_found(model));
        }
        if owner.copied_from.is_some() {
            return Err(Error::Conflict { what: format!("run {model}, which holds a copy") });
        }
        let seq = match new.seq_id {
            Some(seq) => seq.0,
            None if new.creates.is_some() => 0,
            None => self.next_free(model)?.max(owner.next_seq),
        };
        let admitted = |request_id, fresh, failure| Admitted {
            submitted: Submitted { request_id, fresh },
            seq: SeqId(seq),
            session_id: owner.session_id.clone(),
            failure,
        };
        if let Some((first, digest)) = self.find(model, seq)? {
            if digest != new.digest {
                return Err(Error::Conflict { what: format!("request {seq} of {model}") });
            }
            return Ok(admitted(first, false, None));
        }
        if self.is_full(model, SeqId(seq)) {
            return Err(Error::Full);
        }
        let late = (seq < owner.next_seq).then(|| Failure {
            category: Category::User,
            message: format!("seq {seq} arrived after its turn had passed"),
        });
        let failure = new.refused.clone().or(late);
        let id = RequestId(format!("req-{}", uuid::Uuid::new_v4().simple()));
        self.insert(tenant, new, (&id, seq), failure.as_ref())?;
        Ok(admitted(id, true, failure))
    }

    /// Ends a request with its effect. `None`: it had ended before. An error leaves no trace of it,
    /// and what was completed before it in the same write stays.
    pub(crate) fn complete(&mut self, completion: &Completion) -> Result<Option<Completed>> {
        self.conn.prepare_cached("SAVEPOINT completion")?.execute([])?;
        let ended = self.end(completion);
        // SQLite ends the transaction by itself where the disk is full.
        if !self.conn.is_autocommit() {
            if ended.is_err() {
                self.conn.prepare_cached("ROLLBACK TO completion")?.execute([])?;
            }
            self.conn.prepare_cached("RELEASE completion")?.execute([])?;
        }
        ended
    }

    /// Fails every request that waits for `missing`, unless it has come.
    pub(crate) fn skip_gap(&mut self, model: &ModelId, missing: SeqId) -> Result<Option<Skipped>> {
        if self.find(model, missing.0)?.is_some() {
            return Ok(None);
        }
        let failure =
            Failure { category: Category::User, message: format!("seq {missing} never arrived") };
        let parked = {
            let mut select = self.conn.prepare_cached(
                "SELECT * FROM requests WHERE model_id = ?1 AND seq_id > ?2 AND state = 0",
            )?;
            let rows = select.query_map((&model.0, missing.0), known)?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        for known in &parked {
            self.finish(known, &Outcome::Failed(failure.clone()), None)?;
        }
        let next = self.next_free(model)?;
        let update = "UPDATE runs SET next_seq = max(next_seq, ?2) WHERE id = ?1";
        self.conn.prepare_cached(update)?.execute((&model.0, next))?;
        let failed = parked.into_iter().map(|it| (it.request_id, it.tenant, it.kind)).collect();
        Ok(Some(Skipped { failed, failure, next: SeqId(next) }))
    }

    /// Lets go of results that ended before `before`, in microseconds; returns how many, at most 1,000.
    pub(crate) fn drop_results(&self, before: i64) -> Result<usize> {
        let mut update = self.conn.prepare_cached(
            "UPDATE requests SET result_kept = 0, result = NULL, result_segment = NULL,
                result_offset = NULL, result_length = NULL, result_blake3 = NULL
             WHERE number IN (SELECT number FROM requests
                WHERE result_kept = 1 AND finished_at <= ?1 LIMIT 1000)",
        )?;
        Ok(update.execute([before])?)
    }

    fn end(&mut self, completion: &Completion) -> Result<Option<Completed>> {
        let id = &completion.request_id;
        let known = self
            .conn
            .prepare_cached("SELECT * FROM requests WHERE id = ?1")?
            .query_row([&id.0], known);
        let known = found(known, || format!("request {id}"))?;
        if !known.pending {
            return Ok(None);
        }
        let mut outcome = completion.outcome.clone();
        let mut refused = None;
        if matches!(outcome, Outcome::Done(_))
            && let Err(error) = self.make_visible(&known, &completion.effect)
        {
            let message = match &error {
                Error::NameTaken { name } => format!(
                    "a checkpoint named `{name}` exists already in {}; choose another name",
                    known.model
                ),
                Error::Conflict { what } => format!("{what} exists already with another content"),
                Error::NotFound { .. }
                | Error::Finished
                | Error::Full
                | Error::Corrupted { .. }
                | Error::Refused { .. }
                | Error::Io(_)
                | Error::Fatal => return Err(error),
            };
            outcome = Outcome::Failed(Failure { category: Category::User, message });
            refused = Some(error);
        }
        self.finish(&known, &outcome, completion.digest)?;
        // After `finish`: the state holds this request too.
        if let (Outcome::Done(_), Effect::Loaded(snapshot)) = (&outcome, &completion.effect) {
            self.put_snapshot(&known.model, snapshot)?;
        }
        let Known { tenant, request_id, kind, .. } = known;
        Ok(Some(Completed { request_id, tenant, kind, outcome, refused }))
    }

    /// The id that parked requests wait for is let in even so: without it they would stay.
    fn is_full(&self, model: &ModelId, seq: SeqId) -> bool {
        let index = self.shared.index();
        index.unfinished(model) >= self.shared.config.pending_requests_per_run_max
            && !index.fills_gap(model, seq)
    }

    fn insert(
        &mut self,
        tenant: &TenantId,
        new: &NewRequest,
        (id, seq): (&RequestId, i64),
        failure: Option<&Failure>,
    ) -> Result<()> {
        // What is never run needs no body.
        let body = if failure.is_some() { Stored::Dropped } else { self.store(&new.body)? };
        let now = self.now.as_microsecond();
        self.conn
            .prepare_cached(
                "INSERT INTO requests (id, tenant, model_id, seq_id, kind, digest, state, created_at,
                    finished_at, failure, body, body_segment, body_offset, body_length, body_blake3)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?
            .execute((
                &id.0,
                &tenant.0,
                &new.model_id.0,
                seq,
                text(&new.kind)?,
                new.digest,
                if failure.is_some() { FAILED } else { PENDING },
                now,
                failure.map(|_| now),
                failure.map(text).transpose()?,
                body.inline(),
                body.place().map(|place| signed(place.segment)),
                body.place().map(|place| signed(place.offset)),
                body.place().map(|place| signed(place.length)),
                body.place().map(|place| place.blake3),
            ))?;
        let update = "UPDATE runs SET last_request_at = ?2 WHERE id = ?1";
        self.conn.prepare_cached(update)?.execute((&new.model_id.0, now))?;
        Ok(())
    }

    fn finish(&mut self, known: &Known, outcome: &Outcome, digest: Option<Digest>) -> Result<()> {
        let (state, failure, result) = match outcome {
            Outcome::Done(result) => (DONE, None, self.store(result)?),
            Outcome::Failed(failure) => (FAILED, Some(text(failure)?), Stored::Dropped),
        };
        let started_at = self.shared.index().started_at(&known.request_id);
        self.conn
            .prepare_cached(
                "UPDATE requests SET state = ?2, finished_at = ?3, result_kept = ?4,
                    result_digest = ?5, failure = ?6, started_at = ?12, result = ?7, result_segment = ?8,
                    result_offset = ?9, result_length = ?10, result_blake3 = ?11
                 WHERE id = ?1",
            )?
            .execute((
                &known.request_id.0,
                state,
                self.now.as_microsecond(),
                state == DONE,
                digest,
                failure,
                result.inline(),
                result.place().map(|place| signed(place.segment)),
                result.place().map(|place| signed(place.offset)),
                result.place().map(|place| signed(place.length)),
                result.place().map(|place| place.blake3),
                started_at.map(Timestamp::as_microsecond),
            ))?;
        // What the index shows is committed, so that every id below has indeed arrived.
        let next = self.shared.index().next_seq(&known.model);
        if let Some(next) = next {
            let update = "UPDATE runs SET next_seq = ?2 WHERE id = ?1 AND next_seq < ?2";
            self.conn.prepare_cached(update)?.execute((&known.model.0, next.0))?;
        }
        Ok(())
    }

    fn make_visible(&self, known: &Known, effect: &Effect) -> Result<()> {
        match effect {
            Effect::None | Effect::Sampled(..) => Ok(()),
            Effect::Trained(tokens) => self.add_usage(&known.model, UsageKind::Training, *tokens),
            Effect::RunReady | Effect::Loaded(_) => {
                let update = "UPDATE runs SET ready = 1 WHERE id = ?1";
                self.conn.prepare_cached(update)?.execute([&known.model.0])?;
                Ok(())
            }
            Effect::Checkpoint(new) => match self.save_checkpoint(&known.tenant, new)? {
                Saved::Saved => Ok(()),
                Saved::Taken => Err(Error::NameTaken { name: new.name.clone() }),
            },
            Effect::SamplingSession(new) => {
                self.create_sampling_session(&known.tenant, new)?;
                Ok(())
            }
        }
    }

    fn find(&self, model: &ModelId, seq: i64) -> Result<Option<(RequestId, Digest)>> {
        let select = "SELECT id, digest FROM requests WHERE model_id = ?1 AND seq_id = ?2";
        let mut select = self.conn.prepare_cached(select)?;
        let row =
            select.query_row((&model.0, seq), |row| Ok((RequestId(row.get(0)?), row.get(1)?)));
        Ok(row.optional()?)
    }

    /// One more than the highest id that has arrived.
    fn next_free(&self, model: &ModelId) -> Result<i64> {
        let select = "SELECT coalesce(max(seq_id), -1) + 1 FROM requests WHERE model_id = ?1";
        Ok(self.conn.prepare_cached(select)?.query_row([&model.0], |row| row.get(0))?)
    }
}

/// How a request stands on disk.
#[derive(Debug)]
pub(crate) enum Standing {
    Pending,
    Done(RequestKind, Stored),
    Failed(RequestKind, Failure),
}

pub(crate) fn standing(conn: &Connection, tenant: &TenantId, id: &RequestId) -> Result<Standing> {
    let mut select = conn.prepare_cached(
        "SELECT result, result_segment, result_offset, result_length, result_blake3,
            state, kind, failure
         FROM requests WHERE id = ?1 AND tenant = ?2",
    )?;
    let row = select.query_row((&id.0, &tenant.0), |row| {
        Ok(match row.get("state")? {
            PENDING => Standing::Pending,
            DONE => Standing::Done(named(row, "kind")?, Stored::from_row(row, 0)?),
            _ => Standing::Failed(named(row, "kind")?, super::json(row, "failure")?),
        })
    });
    found(row, || format!("request {id}"))
}

/// Where a request's body is.
pub(crate) fn body(conn: &Connection, id: &RequestId) -> Result<Stored> {
    let mut select = conn.prepare_cached(
        "SELECT body, body_segment, body_offset, body_length, body_blake3
         FROM requests WHERE id = ?1",
    )?;
    found(select.query_row([&id.0], |row| Stored::from_row(row, 0)), || format!("request {id}"))
}

/// The run's requests after `after`, in order, the bodies still to be loaded; `None` for those that no
/// replay needs.
pub(crate) fn journal(
    conn: &Connection,
    model: &ModelId,
    after: SeqId,
) -> Result<Vec<(JournalEntry, Option<Stored>)>> {
    let mut select = conn.prepare_cached(
        "SELECT body, body_segment, body_offset, body_length, body_blake3,
            id, seq_id, kind, state, result_digest
         FROM requests WHERE model_id = ?1 AND seq_id > ?2 ORDER BY seq_id",
    )?;
    let rows = select.query_map((&model.0, after.0), |row| {
        let entry = JournalEntry {
            seq_id: SeqId(row.get("seq_id")?),
            request_id: RequestId(row.get("id")?),
            kind: named(row, "kind")?,
            body: Bytes::new(),
            state: match row.get("state")? {
                PENDING => JournalState::Pending,
                DONE => JournalState::Applied(row.get("result_digest")?),
                _ => JournalState::Failed,
            },
        };
        let applied = matches!(entry.state, JournalState::Applied(_));
        let needed = applied && entry.kind.changes_run();
        let stored = needed.then(|| Stored::from_row(row, 0)).transpose()?;
        Ok((entry, stored))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The requests that a start has to know: unfinished ones, and those that may lie beyond a gap; each
/// with the bytes of its body.
pub(crate) fn unsettled(conn: &Connection) -> Result<Vec<(Known, usize)>> {
    let mut select = conn.prepare(
        "SELECT id, tenant, model_id, seq_id, kind, state,
            coalesce(body_length, length(body), 0) AS length
         FROM requests WHERE state = 0
         UNION
         SELECT requests.id, requests.tenant, model_id, seq_id, kind, state,
            coalesce(body_length, length(body), 0)
         FROM runs JOIN requests ON model_id = runs.id AND seq_id >= next_seq
         ORDER BY model_id, seq_id",
    )?;
    let rows = select.query_map([], |row| {
        let length = unsigned(row.get("length")?);
        Ok((known(row)?, usize::try_from(length).unwrap_or(usize::MAX)))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn known(row: &Row<'_>) -> rusqlite::Result<Known> {
    Ok(Known {
        tenant: TenantId(row.get("tenant")?),
        request_id: RequestId(row.get("id")?),
        model: ModelId(row.get("model_id")?),
        seq: SeqId(row.get("seq_id")?),
        kind: named(row, "kind")?,
        pending: row.get::<_, i64>("state")? == PENDING,
    })
}
