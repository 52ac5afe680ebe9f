//! What administrators look at: usage, kept checkpoints, the audit log.

use tinsmith_types::{
    audit::AuditLogResponse,
    billing::{StorageResponse, UsageResponse},
};

use crate::{ApiFuture, Config, RestClient, Result, http::Http};

/// Reads what was used and what was done; a hosted server asks for an administrator's key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AdminClient {
    pub(crate) http: Http,
}

/// Which events of the audit log are wanted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AuditEventType {
    /// All of them.
    #[default]
    All,
    /// Those about checkpoints.
    Checkpoints,
    /// Those about projects.
    Projects,
    /// Those about teams.
    Teams,
    /// Those about organizations.
    Organizations,
}

impl AuditEventType {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Checkpoints => "checkpoints",
            Self::Projects => "projects",
            Self::Teams => "teams",
            Self::Organizations => "organizations",
        }
    }
}

impl AdminClient {
    /// A client without a session.
    ///
    /// # Errors
    ///
    /// The configuration cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        Ok(Self { http: Http::new(config)? })
    }

    /// A client configured by the environment, as [`Config::from_env`] says.
    ///
    /// # Errors
    ///
    /// The environment, or what it says, cannot be used.
    pub fn from_env() -> Result<Self> {
        Self::new(Config::from_env()?)
    }

    /// What was made, read, changed and deleted on a day, `YYYY-MM-DD` in UTC; without one, today.
    pub fn get_audit_log(
        &self,
        event_type: AuditEventType,
        day: Option<&str>,
    ) -> ApiFuture<AuditLogResponse> {
        let mut query = vec![("event_type", event_type.as_str().to_owned())];
        query.extend(day.map(|day| ("day", day.to_owned())));
        let http = self.http.clone();
        self.http.start(async move { http.get("audit", &query).await })
    }

    /// What was used, by the hour, from one time to before another: RFC 3339, each on an hour.
    pub fn get_billing_usage(
        &self,
        starting_on: &str,
        ending_before: &str,
    ) -> ApiFuture<UsageResponse> {
        let query = vec![
            ("starting_on", starting_on.to_owned()),
            ("ending_before", ending_before.to_owned()),
        ];
        let http = self.http.clone();
        self.http.start(async move { http.get("billing/usage/events", &query).await })
    }

    /// The checkpoints that are kept now, by project, and what they would cost.
    pub fn get_current_checkpoint_storage_usage(
        &self,
        project_id: Option<&str>,
    ) -> ApiFuture<StorageResponse> {
        let query: Vec<_> =
            project_id.map(|id| ("project_id", id.to_owned())).into_iter().collect();
        let http = self.http.clone();
        self.http.start(async move { http.get("billing/usage/checkpoints/current", &query).await })
    }
}

/// Where the official SDK had them before it had an admin client.
impl RestClient {
    fn admin(&self) -> AdminClient {
        AdminClient { http: self.http.clone() }
    }

    /// [`AdminClient::get_audit_log`].
    pub fn get_audit_log(
        &self,
        event_type: AuditEventType,
        day: Option<&str>,
    ) -> ApiFuture<AuditLogResponse> {
        self.admin().get_audit_log(event_type, day)
    }

    /// [`AdminClient::get_billing_usage`].
    pub fn get_billing_usage(
        &self,
        starting_on: &str,
        ending_before: &str,
    ) -> ApiFuture<UsageResponse> {
        self.admin().get_billing_usage(starting_on, ending_before)
    }

    /// [`AdminClient::get_current_checkpoint_storage_usage`].
    pub fn get_current_checkpoint_storage_usage(
        &self,
        project_id: Option<&str>,
    ) -> ApiFuture<StorageResponse> {
        self.admin().get_current_checkpoint_storage_usage(project_id)
    }
}
