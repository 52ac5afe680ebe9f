//! Pages of listings.

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use tinsmith_types::runs::{Cursor, PageQuery};

use crate::{
    error::{Error, Result},
    state::Shared,
};

/// The part of a listing that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    query: PageQuery,
    entries_max: u32,
}

impl Page {
    /// Entries on this page, of which there are `default` where the client names no number.
    pub(crate) fn limit(&self, default: u32) -> u32 {
        self.query.limit.unwrap_or(default).min(self.entries_max)
    }

    /// Entries before this page.
    pub(crate) fn offset(&self) -> u32 {
        self.query.offset.unwrap_or(0)
    }

    /// Where the page lies.
    pub(crate) fn cursor(&self, default: u32, total_count: u64) -> Cursor {
        Cursor {
            offset: u64::from(self.offset()),
            limit: u64::from(self.limit(default)),
            total_count,
        }
    }
}

impl FromRequestParts<Shared> for Page {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self> {
        let Query(query) = Query::<PageQuery>::try_from_uri(&parts.uri)
            .map_err(|error| Error::invalid("invalid_query", error.body_text()))?;
        Ok(Self { query, entries_max: app.config.page_entries_max })
    }
}
