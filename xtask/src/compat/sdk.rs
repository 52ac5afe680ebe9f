//! Versions of the official SDK, each in a folder of its own in the user's cache directory, without its dependencies:
//! those are the ones of the end-to-end tests' environment, which every version works with.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    python::{E2E, cache},
    run::run,
};

/// What one version alone depends on, and how it is pinned.
const ADDED: [(&str, &str); 1] = [("0.21.0", "grpcio==1.76.0")];

/// The folder of a version, to be put into `PYTHONPATH`.
pub(super) fn ensure(root: &Path, version: &str) -> Result<PathBuf> {
    let folder = cache()?.join("sdk").join(version);
    let complete = folder.join("complete");
    if !complete.is_file() {
        let package = format!("tinker=={version}");
        let added = ADDED.iter().filter(|(of, _)| *of == version).map(|(_, package)| *package);
        let packages: Vec<&str> = [package.as_str()].into_iter().chain(added).collect();
        install(root, &folder, &packages)?;
        fs::write(&complete, "").context("mark the SDK complete")?;
    }
    Ok(folder)
}

/// The number of the newest version that pip finds; it is installed.
pub(super) fn newest(root: &Path) -> Result<String> {
    let folder = cache()?.join("sdk/newest");
    install(root, &folder, &["tinker"])?;
    for entry in fs::read_dir(&folder).context("list the newest SDK")? {
        let name = entry.context("list the newest SDK")?.file_name();
        let name = name.to_string_lossy();
        let version = name.strip_prefix("tinker-").and_then(|name| name.strip_suffix(".dist-info"));
        if let Some(version) = version {
            return Ok(version.to_owned());
        }
    }
    anyhow::bail!("find the version of {}", folder.display())
}

fn install(root: &Path, folder: &Path, packages: &[&str]) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    let pip = E2E.program(root, "pip")?;
    let target = folder.to_str().context("read the cache folder's name as UTF-8")?;
    let quiet = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"];
    run(root, &pip, &[quiet.as_slice(), &[target], packages].concat())
}
