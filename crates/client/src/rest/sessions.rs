//! `sessions` and `samplers`.

use std::time::Duration;

use serde_json::Value;
use tinsmith_types::{
    ids::SessionId,
    sampling::SamplerInfo,
    search::{
        AssignProjectRequest, SearchSessionsRequest, SearchSessionsResponse, TraceExportResponse,
    },
    session::{ListSessionsResponse, SessionInfo},
};

use super::{ListOptions, Pages, RestClient, pages::Page, segment};
use crate::{ApiFuture, Error};

/// Entries of a page, unless the caller says otherwise: as the API documents it.
const LIMIT: u32 = 20;
/// Between two looks at a trace that is being made.
const TRACE_POLL: Duration = Duration::from_secs(5);
/// Looks at a trace that is being made: a quarter of an hour.
const TRACE_POLLS_MAX: u32 = 180;

impl RestClient {
    /// A session's training runs and samplers.
    pub fn get_session(&self, session_id: &str) -> ApiFuture<SessionInfo> {
        let path = segment("session id", session_id);
        self.get_checked(path.map(|id| format!("sessions/{id}")), vec![self.scope()])
    }

    /// A page of sessions, newest first: 20 from the first on, unless `options` says otherwise.
    pub fn list_sessions(&self, options: ListOptions) -> ApiFuture<ListSessionsResponse> {
        let mut query = options.query(LIMIT);
        query.push(self.scope());
        self.get("sessions".to_owned(), query)
    }

    /// All sessions from `options.offset` on, newest first, fetched page by page as they are read.
    pub fn sessions(&self, options: ListOptions) -> Pages<SessionId> {
        let client = self.clone();
        Pages::new(options, move |options| {
            client.list_sessions(options).map(|page| Page { items: page.sessions, total: None })
        })
    }

    /// A page of the sessions that pass the filters, newest first; `next_cursor` of the answer begins the next.
    /// Experimental in the official SDK.
    pub fn search_sessions(
        &self,
        request: SearchSessionsRequest,
    ) -> ApiFuture<SearchSessionsResponse> {
        let http = self.http.clone();
        self.http.start(async move { http.post("sessions/search", &request).await })
    }

    /// Moves a session into a project.
    pub fn assign_session_project(&self, session_id: &str, project_id: &str) -> ApiFuture<()> {
        let path = segment("session id", session_id).map(|id| format!("sessions/{id}/project"));
        let request = AssignProjectRequest { project_id: project_id.to_owned() };
        let http = self.http.clone();
        self.http.start(async move { http.put::<Value>(&path?, &request).await.map(drop) })
    }

    /// Has a trace of a session's operations made, for <https://ui.perfetto.dev>: its URL, which needs no key and
    /// expires.
    pub fn export_session_trace(&self, session_id: &str) -> ApiFuture<String> {
        let id = session_id.to_owned();
        let path =
            segment("session id", session_id).map(|id| format!("sessions/{id}/trace_export"));
        let http = self.http.clone();
        self.http.start(async move {
            let path = path?;
            for _ in 0..TRACE_POLLS_MAX {
                match http.get(&path, &[]).await? {
                    TraceExportResponse::Ready { url } => return Ok(url),
                    TraceExportResponse::Failed { error } => {
                        return Err(Error::Response {
                            message: format!("the trace of {id}: {error}"),
                        });
                    }
                    TraceExportResponse::Pending => http.clock().sleep(TRACE_POLL).await,
                }
            }
            let exit_reason = format!("the trace of session {id} was not ready in time");
            Err(Error::Timeout { request_id: String::new(), exit_reason })
        })
    }

    /// What a sampler samples from. Ids of samplers are in the answer of [`RestClient::get_session`].
    pub fn get_sampler(&self, sampler_id: &str) -> ApiFuture<SamplerInfo> {
        let path = segment("sampler id", sampler_id);
        self.get_checked(path.map(|id| format!("samplers/{id}")), Vec::new())
    }
}
