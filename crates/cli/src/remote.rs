//! The server that a command talks to, and what to do where that fails.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use tinsmith::{
    AccessScope, AdminClient, ApiFuture, Config, ConfigBuilder, Error, RestClient, RetryPolicy,
    ServiceClient,
};

/// For all attempts at a question.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Args, Clone, Debug)]
pub(crate) struct Remote {
    /// The server; without it `$TINKER_BASE_URL`, else `http://localhost:8000`. The key is `$TINKER_API_KEY`.
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
}

impl Remote {
    fn builder(&self) -> Result<ConfigBuilder> {
        let builder = ConfigBuilder::from_env().context("configure the client")?;
        Ok(match &self.base_url {
            Some(url) => builder.base_url(url),
            None => builder,
        })
    }

    /// For a question: who asks it does not want to wait for a server that is not there.
    fn config(&self) -> Result<Config> {
        let retry = RetryPolicy { max_retries: 2, timeout: ANSWER_MAX, ..RetryPolicy::default() };
        self.builder()?.retry(retry).build().context("configure the client")
    }

    pub(crate) fn rest(&self) -> Result<RestClient> {
        RestClient::new(self.config()?).context("configure the client")
    }

    pub(crate) fn admin(&self) -> Result<AdminClient> {
        AdminClient::new(self.config()?).context("configure the client")
    }

    /// For work that goes on when the server is away for minutes; that it is there now was made sure.
    fn patient(&self) -> Result<Config> {
        self.wait("reach the server", self.rest()?.get_server_capabilities())?;
        self.builder()?.build().context("configure the client")
    }

    pub(crate) fn patient_rest(&self) -> Result<RestClient> {
        RestClient::new(self.patient()?).context("configure the client")
    }

    /// A session, to train or to sample in.
    pub(crate) fn session(&self) -> Result<ServiceClient> {
        self.explained("open a session", ServiceClient::connect_blocking(self.patient()?))
    }

    /// Waits for an answer. `what` fits "failed to …".
    pub(crate) fn wait<T: Send + 'static>(&self, what: &str, call: ApiFuture<T>) -> Result<T> {
        self.explained(what, call.wait())
    }

    /// An error with what to do about it.
    pub(crate) fn explained<T>(&self, what: &str, result: tinsmith::Result<T>) -> Result<T> {
        result.map_err(|error| self.explain(&error).context(what.to_owned()))
    }

    fn explain(&self, error: &Error) -> anyhow::Error {
        let advice = match (error, error.status()) {
            (Error::Connection { .. }, _) => format!(
                "is a server running at {}? `tinsmith serve` starts one; another is named by --base-url or \
                 TINKER_BASE_URL",
                self.url()
            ),
            (_, Some(401)) => "set TINKER_API_KEY to a key that the server knows".to_owned(),
            (_, Some(403)) => "the key may not do this: use another".to_owned(),
            (_, _) => return anyhow!("{error}"),
        };
        anyhow!("{error}: {advice}")
    }

    /// Where the server is.
    pub(crate) fn url(&self) -> String {
        self.config().map_or_else(|_| "?".to_owned(), |config| config.base_url().to_owned())
    }
}

/// Whose things are looked up.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// Whose: one's own, or all that the key may see.
    #[arg(long, value_enum, default_value = "owned")]
    access_scope: ScopeName,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ScopeName {
    Owned,
    Accessible,
}

impl Scope {
    pub(crate) fn of(self, rest: &RestClient) -> RestClient {
        rest.with_access_scope(match self.access_scope {
            ScopeName::Owned => AccessScope::Owned,
            ScopeName::Accessible => AccessScope::Accessible,
        })
    }
}

/// Which part of a list.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Entries at most; 0: all.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Entries to skip.
    #[arg(long, default_value_t = 0)]
    offset: u32,
}

/// The API's longest page.
const PAGE_MAX: usize = 100;

impl Part {
    /// What to ask for at a time.
    pub(crate) fn options(self) -> tinsmith::ListOptions {
        let page = if self.limit == 0 { PAGE_MAX } else { self.limit.min(PAGE_MAX) };
        let page = u32::try_from(page).unwrap_or(1);
        tinsmith::ListOptions::new().limit(page).offset(self.offset)
    }

    /// As many entries as are wanted.
    pub(crate) fn read<T: Send + 'static>(
        self,
        pages: tinsmith::Pages<T>,
    ) -> tinsmith::Result<Vec<T>> {
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        pages.into_iter().take(limit).collect()
    }

    /// The same part of a list that came whole.
    pub(crate) fn of<T>(self, whole: Vec<T>) -> Vec<T> {
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
        whole.into_iter().skip(offset).take(limit).collect()
    }
}
