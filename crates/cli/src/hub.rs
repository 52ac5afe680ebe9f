//! Models by hub id: from the local cache of Hugging Face's tools, or downloaded into it.
//!
//! A cached snapshot is used as it is, without network: deleting it fetches the newest. The HTTP client takes
//! proxies from the environment; the roots of trust are Mozilla's, compiled in.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError, ApiRepo},
};

use crate::terminal::{is_terminal, say};

/// Where models are, if nothing else is said.
pub(crate) const ENDPOINT: &str = "https://huggingface.co";
/// Longest id that the hub has.
const ID_MAX: usize = 96;

const REQUIRED: &[&str] = &["config.json", "tokenizer.json"];
const OPTIONAL: &[&str] = &[
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];
/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// Which shard holds which tensor.
const INDEX: &str = "model.safetensors.index.json";

/// How the hub is reached, and where its files are kept.
#[derive(Clone)]
pub(crate) struct Access {
    /// Holds the cache, `hub`, and the login, `token`. None: there is no home.
    pub(crate) home: Option<PathBuf>,
    /// Goes before the login in `home`.
    pub(crate) token: Option<String>,
    /// Without a slash at its end.
    pub(crate) endpoint: String,
}

// The token stays out of logs.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("home", &self.home)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("endpoint", &self.endpoint)
            .finish()
    }
}

/// Whether the text has the form of a hub id, `org/name`. No path that starts with `.`, `/` or `~` has.
pub(crate) fn is_id(text: &str) -> bool {
    let part = |part: &str| {
        part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
    };
    text.len() <= ID_MAX && text.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// The directory of the model `id`, after a download of what is not in the cache.
///
/// # Errors
///
/// No home for the cache, no network, no permission, no such model, or one without what is needed: with
/// what to do about it.
pub(crate) fn fetch(id: &str, access: &Access) -> Result<PathBuf> {
    let home = access.home.as_ref();
    let home = home.context("find the cache of the hub: set HF_HOME or HOME")?;
    let cache = Cache::new(home.join("hub"));
    if let Some(dir) = cached(id, &cache) {
        return Ok(dir);
    }
    let mut builder = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(access.endpoint.clone())
        .with_progress(is_terminal());
    if access.token.is_some() {
        builder = builder.with_token(access.token.clone());
    }
    let api = builder.build().map_err(Error::from);
    api.and_then(|api| Download { id, access, cache }.run(&api)).with_context(|| {
        format!("fetch {id} (no directory here, so a hub id) from {}", access.endpoint)
    })
}

/// The snapshot that `main` names, if all that is needed is in it. Other tools leave snapshots of, say, the
/// tokenizer alone.
fn cached(id: &str, cache: &Cache) -> Option<PathBuf> {
    let config = cache.model(id.to_owned()).get("config.json")?;
    let dir = config.parent()?;
    let is_there = |name: &str| dir.join(name).is_file();
    let weights = is_there(SINGLE)
        || shards(&dir.join(INDEX)).is_ok_and(|shards| shards.iter().all(|name| is_there(name)));
    (REQUIRED.iter().all(|name| is_there(name)) && weights).then(|| dir.to_owned())
}

/// The files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(index).with_context(|| format!("read {}", index.display()))?;
    let parsed: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("read {}", index.display()))?;
    let names = parsed["weight_map"].as_object().map(|map| map.values());
    let names = names.with_context(|| format!("find the weight_map of {}", index.display()))?;
    let mut shards = BTreeSet::new();
    for name in names {
        // A name with a path in it could point anywhere on the machine.
        let name = name.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let name = name.with_context(|| format!("use a file name in {}", index.display()))?;
        shards.insert(name.to_owned());
    }
    Ok(shards)
}

struct Download<'a> {
    id: &'a str,
    access: &'a Access,
    cache: Cache,
}

impl Download<'_> {
    fn run(&self, api: &Api) -> Result<PathBuf> {
        let info = api.model(self.id.to_owned()).info().map_err(|error| self.explain(error))?;
        ensure!(
            !info.sha.is_empty() && info.sha.chars().all(|c| c.is_ascii_hexdigit()),
            "read its commit: the hub says {:?}",
            info.sha
        );
        // All files of one commit, even if there is a newer one while they come.
        let repo =
            api.repo(Repo::with_revision(self.id.to_owned(), RepoType::Model, info.sha.clone()));
        let names: BTreeSet<&str> =
            info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let dir = self.cache.model(self.id.to_owned()).pointer_path(&info.sha);
        for name in REQUIRED {
            ensure!(names.contains(name), "find {name}: the model has none");
            self.file(&repo, &dir, name)?;
        }
        for name in OPTIONAL.iter().filter(|name| names.contains(*name)) {
            self.file(&repo, &dir, name)?;
        }
        if names.contains(SINGLE) {
            self.file(&repo, &dir, SINGLE)?;
        } else if names.contains(INDEX) {
            self.file(&repo, &dir, INDEX)?;
            for name in shards(&dir.join(INDEX))? {
                ensure!(names.contains(name.as_str()), "find {name}: only {INDEX} has it");
                self.file(&repo, &dir, &name)?;
            }
        } else {
            bail!("find weights: the model has neither {SINGLE} nor {INDEX}");
        }
        // Only now: whoever looks for `main` finds all of it.
        let written = self.cache.model(self.id.to_owned()).create_ref(&info.sha);
        written.with_context(|| format!("note the commit in {}", self.cache.path().display()))?;
        Ok(dir)
    }

    fn file(&self, repo: &ApiRepo, dir: &Path, name: &str) -> Result<()> {
        if dir.join(name).is_file() {
            return Ok(());
        }
        say(&format!("downloading {name} of {}", self.id));
        let path = repo.download(name).map_err(|error| self.explain(error));
        let path = path.with_context(|| format!("download {name}"))?;
        ensure!(path == dir.join(name), "download {name}: the hub sent another commit's");
        Ok(())
    }

    /// What to do about it.
    fn explain(&self, error: ApiError) -> Error {
        let ApiError::RequestError(request) = error else {
            return anyhow!("{error}; what has come is kept: try again");
        };
        if is_unreachable(&request) {
            return anyhow!(
                "connect ({request}): this machine cannot reach the hub; download the directory \
                 elsewhere and give DIR"
            );
        }
        let ureq::Error::StatusCode(status) = *request else {
            return anyhow!("{request}; what has come is kept: try again");
        };
        match status {
            401 | 403 => anyhow!(
                "be let in: the hub says {status}; set HF_TOKEN to a token that may read the model, accept \
                 its licence at {}/{} if it has one, and check the name: unknown ones are refused too",
                self.access.endpoint,
                self.id
            ),
            404 => anyhow!("find it: the hub says 404; check the name, or the directory"),
            _ => anyhow!("get an answer: the hub says {status}; what has come is kept: try again"),
        }
    }
}

/// Whether no answer came.
fn is_unreachable(error: &ureq::Error) -> bool {
    use ureq::Error as E;
    matches!(
        error,
        E::Io(_)
            | E::Timeout(_)
            | E::HostNotFound
            | E::ConnectionFailed
            | E::ConnectProxyFailed(_)
            | E::InvalidProxyUrl
            | E::Tls(_)
    )
}

#[cfg(test)]
mod tests;
