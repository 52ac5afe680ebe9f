//! Lists that come in pages, and reading them to their end.

use std::{fmt, sync::Arc};

use crate::{ApiFuture, Result};

/// Entries that are fetched at a time where a whole list is read.
const PAGE: u32 = 100;

/// Which part of a list is wanted. Nothing said: the first page, of the API's usual size.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct ListOptions {
    /// Entries of a page.
    pub limit: Option<u32>,
    /// Entries to skip.
    pub offset: u32,
    /// Only what counts to this project; sessions are not told apart by it.
    pub project_id: Option<String>,
}

impl ListOptions {
    /// The first page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Entries of a page: 20 of runs and sessions, 100 of checkpoints where it is not said.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Entries to skip.
    pub fn offset(mut self, offset: u32) -> Self {
        self.offset = offset;
        self
    }

    /// Only what counts to this project.
    pub fn project_id(mut self, project_id: impl Into<String>) -> Self {
        self.project_id = Some(project_id.into());
        self
    }

    /// Both numbers are always sent, as the official client does.
    pub(super) fn query(self, limit: u32) -> Vec<(&'static str, String)> {
        let limit = self.limit.unwrap_or(limit);
        let mut query = vec![("limit", limit.to_string()), ("offset", self.offset.to_string())];
        query.extend(self.project_id.map(|id| ("project_id", id)));
        query
    }
}

/// A part of a list.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// Entries of the whole list, where the server says so. Where not, a page that is not full is the last.
    pub(super) total: Option<u64>,
}

type Fetch<T> = Arc<dyn Fn(ListOptions) -> ApiFuture<Page<T>> + Send + Sync>;

/// A list that is fetched page by page as it is read; nothing is fetched before.
///
/// Read it with [`Pages::next`] in async code, by iterating elsewhere, or at once with [`Pages::all`].
/// Where entries come or go meanwhile, one may be missed or come twice.
#[must_use = "nothing is fetched before it is read"]
pub struct Pages<T> {
    fetch: Fetch<T>,
    /// Where the next page begins.
    next: ListOptions,
    fetched: std::vec::IntoIter<T>,
    /// Under way; kept here so that a read that is given up loses nothing.
    page: Option<ApiFuture<Page<T>>>,
    ended: bool,
}

impl<T: Send + 'static> Pages<T> {
    pub(super) fn new(
        options: ListOptions,
        fetch: impl Fn(ListOptions) -> ApiFuture<Page<T>> + Send + Sync + 'static,
    ) -> Self {
        let limit = options.limit.unwrap_or(PAGE).max(1);
        let next = ListOptions { limit: Some(limit), ..options };
        Self {
            fetch: Arc::new(fetch),
            next,
            fetched: Vec::new().into_iter(),
            page: None,
            ended: false,
        }
    }

    /// The next entry; `None` after the last. After an error the list has ended.
    pub async fn next(&mut self) -> Option<Result<T>> {
        loop {
            if let Some(item) = self.fetched.next() {
                return Some(Ok(item));
            }
            if self.ended {
                return None;
            }
            let fetch = &self.fetch;
            let page = self.page.get_or_insert_with(|| fetch(self.next.clone())).await;
            self.page = None;
            if let Err(error) = self.take(page) {
                return Some(Err(error));
            }
        }
    }

    /// All entries that are left.
    ///
    /// # Errors
    ///
    /// A page cannot be fetched.
    pub async fn all(mut self) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await {
            items.push(item?);
        }
        Ok(items)
    }

    fn take(&mut self, page: Result<Page<T>>) -> Result<()> {
        let page = page.inspect_err(|_| self.ended = true)?;
        let count = u32::try_from(page.items.len()).unwrap_or(u32::MAX);
        self.next.offset = self.next.offset.saturating_add(count);
        self.ended = match page.total {
            // A server that promises more than it gives would be asked for ever.
            Some(total) => count == 0 || u64::from(self.next.offset) >= total,
            None => self.next.limit.is_none_or(|limit| count < limit),
        };
        self.fetched = page.items.into_iter();
        Ok(())
    }
}

impl<T> fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("next", &self.next).field("ended", &self.ended).finish()
    }
}

impl<T: Send + 'static> IntoIterator for Pages<T> {
    type Item = Result<T>;
    type IntoIter = BlockingPages<T>;

    /// Blocks where a page has to be fetched; within an async runtime that is an error: use [`Pages::next`].
    fn into_iter(self) -> BlockingPages<T> {
        BlockingPages(self)
    }
}

/// A list as an iterator that blocks where a page has to be fetched.
#[derive(Debug)]
pub struct BlockingPages<T>(Pages<T>);

impl<T: Send + 'static> Iterator for BlockingPages<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        loop {
            if let Some(item) = self.0.fetched.next() {
                return Some(Ok(item));
            }
            if self.0.ended {
                return None;
            }
            let page = self.0.page.take();
            let page = page.unwrap_or_else(|| (self.0.fetch)(self.0.next.clone())).wait();
            if let Err(error) = self.0.take(page) {
                return Some(Err(error));
            }
        }
    }
}
