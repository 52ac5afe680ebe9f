//! Tokenizers by hub id: from the local cache of Hugging Face's tools, or downloaded into it.
//!
//! `HF_HOME` and `HF_ENDPOINT` say where; a login of `hf auth login` is used. A cached one needs no network.

use std::path::{Path, PathBuf};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};

use crate::{Error, Result};

const TOKENIZER: &str = "tokenizer.json";
const OPTIONAL: [&str; 3] =
    ["tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"];
/// Longest id that the hub has.
const ID_MAX: usize = 96;

/// The directory with the tokenizer of the model `id`.
pub(super) fn fetch(id: &str) -> Result<PathBuf> {
    if !is_id(id) {
        let message =
            format!("there is no directory {id}, and it is no id of the Hugging Face hub");
        return Err(Error::validation(format!("{message}, `org/name`")));
    }
    if std::env::var_os("HF_HOME").is_none() && std::env::home_dir().is_none() {
        return Err(Error::validation(
            "there is no cache for the Hugging Face hub: set HF_HOME or HOME",
        ));
    }
    let cache = Cache::from_env();
    cached(id, &cache).map_or_else(|| download(id), Ok)
}

/// Its directory in the cache, if it is there.
fn cached(id: &str, cache: &Cache) -> Option<PathBuf> {
    let path = cache.model(id.to_owned()).get(TOKENIZER)?;
    path.parent().map(Path::to_owned)
}

fn download(id: &str) -> Result<PathBuf> {
    let failed = |error: ApiError| explain(id, &error);
    let api = ApiBuilder::from_env().with_progress(false).build().map_err(failed)?;
    let info = api.model(id.to_owned()).info().map_err(failed)?;
    if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Error::validation(format!(
            "the hub names no commit of {id}, but {:?}",
            info.sha
        )));
    }
    // All files of one commit, even if there is a newer one while they come.
    let repo = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, info.sha.clone()));
    let has = |name: &str| info.siblings.iter().any(|sibling| sibling.rfilename == name);
    if !has(TOKENIZER) {
        return Err(Error::validation(format!(
            "the model {id} has no {TOKENIZER} on the Hugging Face hub"
        )));
    }
    for name in OPTIONAL.into_iter().filter(|name| has(name)) {
        repo.get(name).map_err(failed)?;
    }
    let path = repo.get(TOKENIZER).map_err(failed)?;
    let dir = path
        .parent()
        .ok_or_else(|| Error::validation(format!("the cache lost {TOKENIZER} of {id}")))?;
    Ok(dir.to_owned())
}

/// Whether the text has the form of a hub id: nothing that could be a path beyond the cache.
fn is_id(text: &str) -> bool {
    let part = |part: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        part.chars().all(is_plain)
            && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
    };
    text.len() <= ID_MAX && text.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

fn explain(id: &str, error: &ApiError) -> Error {
    Error::Connection {
        message: format!(
            "the Hugging Face hub did not give the tokenizer of {id}: {error}; check the name, the network, and \
             that you are logged in (hf auth login) if the model is gated, or give a directory"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_no_paths() {
        for (text, expected) in [
            ("Qwen/Qwen3-8B", true),
            ("nano", false),
            ("../secret/file", false),
            ("a/../b", false),
            ("/etc/passwd", false),
            ("a/b/c", false),
        ] {
            assert_eq!(is_id(text), expected, "{text}");
        }
        let message = fetch("nano").unwrap_err().to_string();
        assert!(message.contains("no id of the Hugging Face hub"), "{message}");
    }

    #[test]
    fn what_is_cached_needs_no_network() {
        let home = tempfile::tempdir().unwrap();
        let model = home.path().join("models--org--name");
        let snapshot = model.join("snapshots/abc123");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(model.join("refs")).unwrap();
        let cache = Cache::new(home.path().to_owned());
        assert_eq!(cached("org/name", &cache), None);
        std::fs::write(model.join("refs/main"), "abc123").unwrap();
        std::fs::write(snapshot.join(TOKENIZER), "{}").unwrap();
        assert_eq!(cached("org/name", &cache), Some(snapshot));
    }
}
