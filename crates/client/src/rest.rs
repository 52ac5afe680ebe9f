//! What a server keeps: training runs, checkpoints, sessions, samplers. No session is opened for it.
//!
//! A new call goes into the file of `rest/` that its URLs begin with, and has a line in `faces.rs`.

use std::fmt;

use tinsmith_types::{path::CheckpointPath, service::Capabilities};

use crate::{ApiFuture, Config, Error, Result, http::Http};

mod account;
mod archive;
mod checkpoints;
mod pages;
mod runs;
mod sessions;

pub use account::Whoami;
pub use pages::{BlockingPages, ListOptions, Pages};

/// A checkpoint's address, `tinker://<run>/<kind>/<name>`: parsed from text, and written as the same text.
pub type TinkerPath = CheckpointPath;

/// Longest id or name in a URL, in bytes.
const SEGMENT_BYTES_MAX: usize = 1024;

/// Reads and changes what a server keeps. Cheap to clone; clones share their connections.
///
/// ```no_run
/// use tinsmith::{Config, ListOptions, RestClient};
///
/// # fn main() -> tinsmith::Result<()> {
/// let rest = RestClient::new(Config::new("http://127.0.0.1:8000"))?;
/// for checkpoint in rest.user_checkpoints(ListOptions::new()) {
///     println!("{}", checkpoint?.tinker_path);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RestClient {
    pub(crate) http: Http,
    access_scope: AccessScope,
}

/// Whose runs and sessions are looked up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AccessScope {
    /// The caller's own.
    #[default]
    Owned,
    /// All that the caller may see, such as public ones.
    Accessible,
}

impl AccessScope {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owned => "owned",
            Self::Accessible => "accessible",
        }
    }
}

impl RestClient {
    /// A client without a session.
    ///
    /// # Errors
    ///
    /// The configuration cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        Ok(Self::of(Http::new(config)?))
    }

    /// A client configured by the environment, as [`Config::from_env`] says.
    ///
    /// # Errors
    ///
    /// The environment, or what it says, cannot be used.
    pub fn from_env() -> Result<Self> {
        Self::new(Config::from_env()?)
    }

    /// A client on connections that are there already.
    pub(crate) fn of(http: Http) -> Self {
        Self { http, access_scope: AccessScope::default() }
    }

    /// The same client, which looks up runs and sessions of this scope from now on.
    #[must_use]
    pub fn with_access_scope(&self, access_scope: AccessScope) -> Self {
        Self { http: self.http.clone(), access_scope }
    }

    /// The base models that the server offers.
    pub fn get_server_capabilities(&self) -> ApiFuture<Capabilities> {
        self.get("get_server_capabilities".to_owned(), Vec::new())
    }

    /// Reads JSON from a path whose segments were made by [`segment`].
    fn get<T>(&self, path: String, query: Vec<(&'static str, String)>) -> ApiFuture<T>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        self.get_checked(Ok(path), query)
    }

    fn get_checked<T>(
        &self,
        path: Result<String>,
        query: Vec<(&'static str, String)>,
    ) -> ApiFuture<T>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        let http = self.http.clone();
        self.http.start(async move { http.get(&path?, &query).await })
    }

    fn scope(&self) -> (&'static str, String) {
        ("access_scope", self.access_scope.as_str().to_owned())
    }
}

/// A checkpoint's address as a caller gave it: text or parsed.
pub(crate) fn address(path: impl TryInto<TinkerPath, Error: fmt::Display>) -> Result<TinkerPath> {
    path.try_into().map_err(|error| Error::validation(error.to_string()))
}

/// Where a checkpoint lies under `/api/v1/`.
fn place(path: &TinkerPath) -> Result<String> {
    place_of(path.run.as_str(), &path.checkpoint_id())
}

/// The same for a checkpoint id, `<kind>/<name>`, of a run.
fn place_of(run: &str, checkpoint_id: &str) -> Result<String> {
    let mut place = format!("training_runs/{}/checkpoints", segment("training run id", run)?);
    for part in checkpoint_id.split('/') {
        place = format!("{place}/{}", segment("checkpoint id", part)?);
    }
    Ok(place)
}

/// An id as one segment of a URL's path: it can neither leave its place nor become a query.
fn segment(what: &str, id: &str) -> Result<String> {
    if id.is_empty() || id == "." || id == ".." || id.len() > SEGMENT_BYTES_MAX {
        return Err(Error::validation(format!(
            "the {what} {:?} is none: 1 to {SEGMENT_BYTES_MAX} bytes, and not `.` or `..`",
            id.chars().take(64).collect::<String>()
        )));
    }
    let mut segment = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' => {
                segment.push(char::from(byte));
            }
            _ => segment.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_one_segment_of_the_url() {
        let check = |id: &str, expected: &str| {
            assert_eq!(segment("id", id).unwrap(), expected);
        };
        check(
            "00000000-0000-4000-8000-000000000001:train:0",
            "00000000-0000-4000-8000-000000000001:train:0",
        );
        check("a/../b", "a%2F..%2Fb");
        check("a?b#c%", "a%3Fb%23c%25");
        check("ü", "%C3%BC");
        for bad in ["", ".", ".."] {
            assert!(segment("id", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_come_as_text_or_parsed() {
        let parsed: TinkerPath = "tinker://run-1/weights/a".parse().unwrap();
        assert_eq!(address("tinker://run-1/weights/a").unwrap(), parsed);
        assert_eq!(address("tinker://run-1/weights/a".to_owned()).unwrap(), parsed);
        assert_eq!(address(&parsed).unwrap(), parsed);
        assert_eq!(place(&parsed).unwrap(), "training_runs/run-1/checkpoints/weights/a");
        assert!(address("run-1").unwrap_err().to_string().contains("does not begin with"));
    }
}
