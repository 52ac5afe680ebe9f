//! Finds sessions by what is known of them, newest first, page by page.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;
use tinsmith_types::ids::{ModelId, SessionId, TenantId};

use crate::{Result, SessionRecord, Store, sessions::DEFAULT_PROJECT, sqlite::search};

/// Which sessions are looked for. Each filter that is given must hold, but of `id` and `display_name`
/// either is enough.
#[derive(Clone, Debug, Default)]
pub struct SessionSearch {
    /// This very session.
    pub id: Option<SessionId>,
    /// Of one of these projects.
    pub projects: Option<Vec<String>>,
    /// With these notes.
    pub user_metadata: BTreeMap<String, String>,
    /// With these words in its name, in any case.
    pub display_name: Option<String>,
    /// Standing as one of these says.
    pub statuses: Option<Vec<StatusFilter>>,
    /// Sessions on the page; at least 1.
    pub limit: usize,
    /// When the last session of the page before was made, and its id.
    pub after: Option<(Timestamp, SessionId)>,
}

/// A status that is looked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StatusFilter {
    /// It goes on.
    Active,
    /// The server ended it.
    Cancelled,
    /// One of its runs cannot go on.
    Failed,
    /// Its client ended it, for one of these reasons where they are given.
    ClientFinished(Option<Vec<String>>),
}

/// How a session stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SessionStatus {
    /// It goes on.
    Active,
    /// The server ended it: nobody was heard for too long.
    Cancelled,
    /// A run of it cannot go on, and its client has not ended it.
    Failed {
        /// Which.
        model_id: ModelId,
        /// Why.
        message: String,
    },
    /// Its client ended it.
    ClientFinished {
        /// `success`, `errored` or `interrupted`.
        reason: String,
        /// The client's own words.
        detail: Option<String>,
    },
}

/// A session that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundSession {
    /// The session.
    pub record: SessionRecord,
    /// How it stands.
    pub status: SessionStatus,
    /// Checkpoints of its runs.
    pub checkpoints: u64,
    /// Their bytes.
    pub checkpoint_bytes: u64,
}

/// Some of the sessions that were found, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchPage {
    /// At most as many as were asked for.
    pub sessions: Vec<FoundSession>,
    /// What the next page comes after, if there may be one.
    pub next: Option<(Timestamp, SessionId)>,
}

impl Store {
    /// A page of the tenant's sessions that pass the filters. A page can have fewer sessions than asked for where very many were looked at.
    pub async fn search_sessions(
        &self,
        tenant: &TenantId,
        search: SessionSearch,
    ) -> Result<SearchPage> {
        let tenant = tenant.clone();
        let now = self.shared().clock.now();
        self.read(move |conn| search::search(conn, &tenant, &search, now)).await
    }
}

impl SessionSearch {
    /// Whether what stands in the session's own record passes.
    pub(crate) fn passes(&self, record: &SessionRecord) -> bool {
        let project = record.project_id.as_deref().unwrap_or(DEFAULT_PROJECT);
        let in_project = |projects: &Vec<String>| projects.iter().any(|name| name == project);
        let noted = |(key, value): (&String, &String)| {
            record.user_metadata.get(key).and_then(Value::as_str) == Some(value)
        };
        self.projects.as_ref().is_none_or(in_project)
            && self.user_metadata.iter().all(noted)
            && self.is_named(record)
    }

    fn is_named(&self, record: &SessionRecord) -> bool {
        let by_id = self.id.as_ref().map(|id| *id == record.id);
        let by_name = self.display_name.as_ref().map(|words| {
            let name = record.display_name.as_deref().unwrap_or_default().to_lowercase();
            let words = words.to_lowercase();
            !name.is_empty() && words.split_whitespace().all(|word| name.contains(word))
        });
        match (by_id, by_name) {
            (None, None) => true,
            (by_id, by_name) => by_id.unwrap_or(false) || by_name.unwrap_or(false),
        }
    }

    /// Whether a session that stands so passes.
    pub(crate) fn wants(&self, status: &SessionStatus) -> bool {
        let Some(filters) = &self.statuses else { return true };
        filters.iter().any(|filter| match (filter, status) {
            (StatusFilter::Active, SessionStatus::Active)
            | (StatusFilter::Cancelled, SessionStatus::Cancelled)
            | (StatusFilter::Failed, SessionStatus::Failed { .. }) => true,
            (
                StatusFilter::ClientFinished(reasons),
                SessionStatus::ClientFinished { reason, .. },
            ) => reasons.as_ref().is_none_or(|reasons| reasons.contains(reason)),
            (
                StatusFilter::Active
                | StatusFilter::Cancelled
                | StatusFilter::Failed
                | StatusFilter::ClientFinished(_),
                _,
            ) => false,
        })
    }
}
