//! Pages of listings.

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use serde::de::DeserializeOwned;
use tinsmith_types::runs::{Cursor, PageQuery};

use crate::{
    error::{Error, Result},
    state::Shared,
};

/// What stands behind the `?` of a URL; what cannot be read is refused as all else is.
#[derive(Clone, Debug)]
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Parameters<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => Err(Error::invalid("invalid_query", error.body_text())),
        }
    }
}

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

    /// The project whose entries are wanted; an empty name is none.
    pub(crate) fn project_id(&self) -> Option<String> {
        self.query.project_id.clone().filter(|project| !project.is_empty())
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
        let Parameters(query) = Parameters::<PageQuery>::from_request_parts(parts, app).await?;
        // With one tenant, what it owns is what it can see.
        let scope = query.access_scope.as_deref().unwrap_or("owned");
        if !["owned", "accessible"].contains(&scope) {
            let detail = format!("access_scope {scope:?} is not known; use owned or accessible");
            return Err(Error::invalid("invalid_access_scope", detail));
        }
        Ok(Self { query, entries_max: app.config.page_entries_max })
    }
}
