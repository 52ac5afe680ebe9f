//! Sessions: made, kept alive, ended. Heartbeats stay in memory and are written now and then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::Connection;
use tinsmith_types::ids::{ModelId, SamplingSessionId, SequenceId, SessionId, TenantId};

use crate::{
    Error, NewSession, RecordedSequence, Result, SessionRecord, Store,
    sqlite::{self, lasting, recordings, sessions},
};

/// The project of a session that names none.
pub const DEFAULT_PROJECT: &str = "default";

/// How a session ends of which nothing was heard for too long.
pub(crate) const EXPIRED: &str = "expired";

impl Store {
    /// Makes a session; the same key and body within ten minutes give the same session.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the key came with another body.
    pub async fn create_session(
        &self,
        tenant: &TenantId,
        new: NewSession,
        idempotency_key: Option<&str>,
    ) -> Result<SessionRecord> {
        let (owner, key) = (tenant.clone(), idempotency_key.map(str::to_owned));
        let apply = {
            let owner = owner.clone();
            move |tx: &mut sqlite::Tx<'_>| tx.create_session(&owner, &new, key.as_deref())
        };
        self.write(apply, move |shared, record| {
            if record.finished.is_none() {
                shared.sessions.insert(record.id.clone(), owner, record.last_heartbeat_at);
            }
        })
        .await
    }

    /// A session.
    pub async fn session(&self, tenant: &TenantId, id: &SessionId) -> Result<SessionRecord> {
        let (owner, key) = (tenant.clone(), id.clone());
        let mut record = self.read(move |conn| sessions::session(conn, &owner, &key)).await?;
        if let Some(at) = self.shared().sessions.last_heartbeat(tenant, id) {
            record.last_heartbeat_at = record.last_heartbeat_at.max(at);
        }
        Ok(record)
    }

    /// Keeps a session from expiring.
    ///
    /// # Errors
    /// [`Error::Finished`] where it has ended or expired.
    pub async fn heartbeat(&self, tenant: &TenantId, id: &SessionId) -> Result<()> {
        if self.shared().sessions.beat(tenant, id, self.shared().clock.now()) {
            return Ok(());
        }
        self.session(tenant, id).await?;
        Err(Error::Finished)
    }

    /// What was recorded of sampled sequences; those that nothing is known of are not there: they were not to
    /// be recorded, their session has ended, or newer ones took their room.
    pub async fn recorded_sequences(
        &self,
        tenant: &TenantId,
        ids: BTreeSet<SequenceId>,
    ) -> Result<BTreeMap<SequenceId, RecordedSequence>> {
        let tenant = tenant.clone();
        self.read(move |conn| {
            let mut found = BTreeMap::new();
            for id in ids {
                if let Some(sequence) = recordings::recorded_sequence(conn, &tenant, &id)? {
                    found.insert(id, sequence);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Ends a session, with more about it in the client's words. The first reason stays; a repeat is fine.
    pub async fn finish_session(
        &self,
        tenant: &TenantId,
        id: &SessionId,
        reason: &str,
        detail: Option<&str>,
    ) -> Result<()> {
        let heartbeat = self.shared().sessions.last_heartbeat(tenant, id);
        let (owner, key) = (tenant.clone(), id.clone());
        let (reason, detail) = (reason.to_owned(), detail.map(str::to_owned));
        let ended = id.clone();
        self.write(
            move |tx| tx.finish_session(&owner, &key, (&reason, detail.as_deref()), heartbeat),
            move |shared, _| shared.sessions.remove(&ended),
        )
        .await?;
        Ok(())
    }

    /// Moves a session, and all that belongs to it, into a project.
    pub async fn assign_project(
        &self,
        tenant: &TenantId,
        id: &SessionId,
        project: &str,
    ) -> Result<()> {
        let (tenant, id, project) = (tenant.clone(), id.clone(), project.to_owned());
        self.write(move |tx| tx.assign_project(&tenant, &id, &project), |_, ()| {}).await
    }

    /// A page of the tenant's sessions, newest first, and how many there are.
    pub async fn sessions(
        &self,
        tenant: &TenantId,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<SessionId>, u64)> {
        let tenant = tenant.clone();
        self.read(move |conn| sessions::sessions(conn, &tenant, limit, offset)).await
    }

    /// The runs and samplers of a session, oldest first.
    pub async fn session_children(
        &self,
        tenant: &TenantId,
        id: &SessionId,
    ) -> Result<(Vec<ModelId>, Vec<SamplingSessionId>)> {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.read(move |conn| sessions::children(conn, &tenant, &id)).await
    }

    /// Writes heartbeats down and ends the sessions that have been silent for too long.
    pub(crate) async fn sweep_sessions(&self) -> Result<()> {
        let shared = self.shared();
        let now = shared.clock.now();
        for (tenant, id) in shared.sessions.silent(now, shared.config.session_expiry) {
            self.finish_session(&tenant, &id, EXPIRED, None).await?;
        }
        let beats = shared.sessions.take_unwritten();
        if !beats.is_empty() {
            self.write(move |tx| tx.note_heartbeats(&beats), |_, ()| {}).await?;
        }
        Ok(())
    }
}

/// The sessions that have not ended.
#[derive(Debug, Default)]
pub(crate) struct LiveSessions {
    by_id: Mutex<BTreeMap<SessionId, Live>>,
}

#[derive(Debug)]
struct Live {
    tenant: TenantId,
    last_heartbeat_at: Timestamp,
    written: bool,
    /// It never expires.
    lasting: bool,
}

impl LiveSessions {
    /// Silence counts from this start on: while the server was down nobody could be heard.
    pub(crate) fn recover(conn: &Connection, now: Timestamp) -> Result<Self> {
        let live = Self::default();
        for (id, tenant, _) in sessions::unfinished(conn)? {
            live.insert(id, tenant, now);
        }
        for id in lasting::sessions(conn)? {
            live.keep(&id);
        }
        Ok(live)
    }

    /// A sign of life from one of the session's own requests.
    pub(crate) fn heard(&self, id: &SessionId, now: Timestamp) {
        if let Some(live) = self.lock().get_mut(id) {
            (live.last_heartbeat_at, live.written) = (now, false);
        }
    }

    /// Writes what is new, at the end.
    pub(crate) fn flush(&self, conn: &Connection) {
        let beats = self.take_unwritten();
        let update =
            "UPDATE sessions SET last_heartbeat_at = ?2 WHERE id = ?1 AND finished IS NULL";
        for (id, at) in beats {
            if let Err(error) = conn.execute(update, (&id.0, at.as_microsecond())) {
                tracing::warn!(session.id = %id, error = %error, "last heartbeat not written");
            }
        }
    }

    pub(crate) fn insert(&self, id: SessionId, tenant: TenantId, last_heartbeat_at: Timestamp) {
        self.lock().entry(id).or_insert(Live {
            tenant,
            last_heartbeat_at,
            written: true,
            lasting: false,
        });
    }

    /// Lets a session never expire.
    pub(crate) fn keep(&self, id: &SessionId) {
        if let Some(live) = self.lock().get_mut(id) {
            live.lasting = true;
        }
    }

    pub(crate) fn remove(&self, id: &SessionId) {
        self.lock().remove(id);
    }

    fn beat(&self, tenant: &TenantId, id: &SessionId, now: Timestamp) -> bool {
        let mut live = self.lock();
        let Some(live) = live.get_mut(id).filter(|live| live.tenant == *tenant) else {
            return false;
        };
        (live.last_heartbeat_at, live.written) = (now, false);
        true
    }

    fn last_heartbeat(&self, tenant: &TenantId, id: &SessionId) -> Option<Timestamp> {
        let live = self.lock();
        live.get(id).filter(|live| live.tenant == *tenant).map(|live| live.last_heartbeat_at)
    }

    fn silent(&self, now: Timestamp, expiry: Duration) -> Vec<(TenantId, SessionId)> {
        let live = self.lock();
        let expired = live.iter().filter(|(_, live)| !live.lasting).filter(|(_, live)| {
            Duration::try_from(now.duration_since(live.last_heartbeat_at))
                .is_ok_and(|silence| silence >= expiry)
        });
        expired.map(|(id, live)| (live.tenant.clone(), id.clone())).collect()
    }

    fn take_unwritten(&self) -> Vec<(SessionId, Timestamp)> {
        let mut live = self.lock();
        let unwritten = live.iter_mut().filter(|(_, live)| !live.written);
        unwritten
            .map(|(id, live)| {
                live.written = true;
                (id.clone(), live.last_heartbeat_at)
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, Live>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
