//! Where a download grows until it is whole: `.<name>.partial` beside the directory, with what is known of
//! each file, so that another attempt goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{archive, transfer::Checksum};
use crate::{Error, Result};

/// Directories within a checkpoint that are looked into.
const DEPTH_MAX: usize = 32;

/// A download that is not whole yet; nobody else works on it meanwhile.
pub(super) struct Staging {
    target: PathBuf,
    root: PathBuf,
    state: State,
    force: bool,
    _lock: File,
}

/// What is known of the files so far.
#[derive(Debug, Default, Deserialize, Serialize)]
struct State {
    /// The checkpoint that this is a download of.
    checkpoint: String,
    /// By path within the checkpoint.
    files: BTreeMap<PathBuf, Known>,
}

/// What the server said of a file, so that a later attempt asks for the rest of the same one.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub(super) struct Known {
    /// Its `ETag` or `Last-Modified`: what `If-Range` takes.
    pub(super) version: Option<String>,
    pub(super) size_bytes: Option<u64>,
    pub(super) checksum: Option<Checksum>,
    /// All of it is here, and was checked.
    pub(super) whole: bool,
}

impl Staging {
    /// Takes up an earlier attempt at the same checkpoint, or begins.
    pub(super) fn open(target: &Path, checkpoint: &str, force: bool) -> Result<Self> {
        let name = target.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::validation(format!("{} is no name of a directory to make", target.display()))
        })?;
        if !force && has_entries(target) {
            return Err(Error::validation(format!(
                "{} is there already: choose another directory, or have it replaced (force)",
                target.display()
            )));
        }
        let root = target.with_file_name(format!(".{name}.partial"));
        make_dir(&root)?;
        let lock = root.join("lock");
        let lock_file = File::create(&lock).map_err(|error| file_error("create", &lock, &error))?;
        match lock_file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::validation(format!(
                    "another download into {} is under way",
                    target.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(file_error("lock", &lock, &error)),
        }
        let mut staging = Self {
            target: target.to_owned(),
            root,
            state: State::default(),
            force,
            _lock: lock_file,
        };
        let known = fs::read(staging.root.join("state.json")).ok();
        let known = known.and_then(|json| serde_json::from_slice::<State>(&json).ok());
        match known.filter(|state| state.checkpoint == checkpoint) {
            Some(state) => staging.state = state,
            None => {
                remove_dir(&staging.files())?;
                staging.state = State { checkpoint: checkpoint.to_owned(), ..State::default() };
            }
        }
        make_dir(&staging.files())?;
        Ok(staging)
    }

    /// Where a file grows; its directories are made.
    pub(super) fn place(&self, file: &Path) -> Result<PathBuf> {
        let place = self.files().join(file);
        if let Some(dir) = place.parent() {
            make_dir(dir)?;
        }
        Ok(place)
    }

    pub(super) fn known(&self, file: &Path) -> Known {
        self.state.files.get(file).cloned().unwrap_or_default()
    }

    /// Writes down what is known of a file.
    pub(super) fn note(&mut self, file: &Path, known: Known) -> Result<()> {
        self.state.files.insert(file.to_owned(), known);
        let (new, place) = (self.root.join("state.new"), self.root.join("state.json"));
        let json = serde_json::to_vec(&self.state)
            .map_err(|error| Error::Response { message: error.to_string() })?;
        fs::write(&new, json).map_err(|error| file_error("write", &new, &error))?;
        fs::rename(&new, &place).map_err(|error| file_error("rename", &new, &error))
    }

    /// Replaces an archive, which is whole, by the files in it.
    pub(super) async fn unpack(&self, archive: &Path) -> Result<()> {
        let (from, into) = (self.files().join(archive), self.root.join("unpacked"));
        let unpacked = tokio::task::spawn_blocking(move || {
            remove_dir(&into)?;
            make_dir(&into)?;
            archive::unpack(&from, &into)?;
            Ok::<_, Error>(into)
        });
        let unpacked = unpacked.await.map_err(|_| Error::Stopped)??;
        remove_dir(&self.files())?;
        fs::rename(&unpacked, self.files()).map_err(|error| file_error("rename", &unpacked, &error))
    }

    /// Puts the files into place, all at once: where they are, and what they are.
    pub(super) fn publish(self) -> Result<(PathBuf, Vec<PathBuf>)> {
        let mut files = BTreeSet::new();
        list(&self.files(), Path::new(""), 0, &mut files)?;
        let old = self.root.join("replaced");
        remove_dir(&old)?;
        if has_entries(&self.target) {
            self.may_replace(&files)?;
            fs::rename(&self.target, &old)
                .map_err(|error| file_error("replace", &self.target, &error))?;
        } else if self.target.is_dir() {
            fs::remove_dir(&self.target)
                .map_err(|error| file_error("replace", &self.target, &error))?;
        }
        fs::rename(self.files(), &self.target)
            .map_err(|error| file_error("write", &self.target, &error))?;
        // What is left is of no use to anybody, and hides.
        if let Err(error) = remove_dir(&self.root) {
            tracing::warn!(%error, "what a download left behind stays");
        }
        Ok((self.target, files.into_iter().collect()))
    }

    /// A directory with anything but files of the same names is somebody's, whatever they say.
    fn may_replace(&self, files: &BTreeSet<PathBuf>) -> Result<()> {
        let mut there = BTreeSet::new();
        if self.force && self.target.is_dir() {
            list(&self.target, Path::new(""), 0, &mut there)?;
        }
        let other = there.difference(files).next().map(|file| file.display().to_string());
        match other {
            None if !there.is_empty() => Ok(()),
            other => Err(Error::validation(format!(
                "{} is not an earlier download of this checkpoint (it has {}): choose another directory",
                self.target.display(),
                other.as_deref().unwrap_or("come meanwhile")
            ))),
        }
    }

    fn files(&self) -> PathBuf {
        self.root.join("files")
    }
}

/// Something is there that is more than an empty directory.
fn has_entries(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// All files below `dir`, by their paths within it.
fn list(dir: &Path, within: &Path, depth: usize, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|error| file_error("list", dir, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| file_error("list", dir, &error))?;
        let (path, inner) = (entry.path(), within.join(entry.file_name()));
        let kind = entry.file_type().map_err(|error| file_error("look at", &path, &error))?;
        if kind.is_dir() && depth < DEPTH_MAX {
            list(&path, &inner, depth + 1, files)?;
        } else {
            files.insert(inner);
        }
    }
    Ok(())
}

pub(super) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| file_error("make", dir, &error))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_error("remove", dir, &error))
        }
        _ => Ok(()),
    }
}

/// The disk does not do what it should: nothing that asking the server again would help.
pub(super) fn file_error(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::validation(format!("{verb} {}: {error}", path.display()))
}
