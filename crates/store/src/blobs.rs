//! Published directories: files and a manifest, named by the manifest's blake3.
//!
//! A directory is written under a temporary name, flushed, and renamed into place, so that a name never
//! points at bytes that are not durable. What no row refers to is swept after a grace period.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use crate::{BlobId, Error, FileRecord, Manifest, Result};

const MANIFEST: &str = "manifest.json";

/// The folder of blobs.
#[derive(Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
    durable: bool,
    /// When this start opened, on the monotonic clock: older blobs count as staged then.
    opened: Duration,
    /// When each blob was last staged by this start. Held while a blob is put in place and while one is
    /// taken away, so that neither overtakes the other.
    staged: Mutex<HashMap<BlobId, Duration>>,
}

impl Blobs {
    pub(crate) fn open(dir: PathBuf, durable: bool, opened: Duration) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { dir, durable, opened, staged: Mutex::default() })
    }

    /// Writes `files` with a manifest that lists them; returns the blob and the bytes of its files.
    pub(crate) fn stage(
        &self,
        mut manifest: Manifest,
        files: &[(String, Bytes)],
        now: Duration,
    ) -> Result<(BlobId, u64)> {
        manifest.files = BTreeMap::new();
        for (name, content) in files {
            check_name(name)?;
            let record = FileRecord {
                size_bytes: content.len() as u64,
                blake3: blake3::hash(content).to_hex().to_string(),
            };
            if manifest.files.insert(name.clone(), record).is_some() {
                return Err(bad_name(name));
            }
        }
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
        let id = BlobId(blake3::hash(&text).to_hex().to_string());
        let size_bytes = manifest.files.values().map(|file| file.size_bytes).sum();
        if self.keep(&id, now) {
            return Ok((id, size_bytes));
        }
        let draft = self.dir.join(format!(".draft-{}", uuid::Uuid::new_v4().simple()));
        let published =
            self.write(&draft, files, &text).and_then(|()| self.publish(&draft, &id, now));
        if published.is_err() {
            // The draft is swept at the next start if this fails too.
            drop(fs::remove_dir_all(&draft));
        }
        published?;
        Ok((id, size_bytes))
    }

    /// Reads a blob and checks every byte of it.
    pub(crate) fn read(&self, id: &BlobId) -> Result<(Manifest, BTreeMap<String, Bytes>)> {
        let manifest = self.manifest(id)?;
        let mut files = BTreeMap::new();
        for (name, record) in &manifest.files {
            let content = self.load(id, name)?;
            if content.len() as u64 != record.size_bytes
                || blake3::hash(&content).to_hex().as_str() != record.blake3
            {
                return Err(corrupted(id, name));
            }
            files.insert(name.clone(), content);
        }
        Ok((manifest, files))
    }

    /// Reads a blob's list of files and checks that it is the one that was written.
    pub(crate) fn manifest(&self, id: &BlobId) -> Result<Manifest> {
        let text = self.load(id, MANIFEST)?;
        if blake3::hash(&text).to_hex().as_str() != id.0 {
            return Err(corrupted(id, MANIFEST));
        }
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|_| corrupted(id, MANIFEST))?;
        manifest.files.keys().try_for_each(|name| check_name(name))?;
        Ok(manifest)
    }

    /// Opens a file that the blob's manifest lists.
    pub(crate) fn open_file(&self, id: &BlobId, name: &str) -> Result<File> {
        check_name(name)?;
        File::open(self.path(id)?.join(name)).map_err(|error| not_there(id, name, error))
    }

    fn load(&self, id: &BlobId, name: &str) -> Result<Bytes> {
        let content = fs::read(self.path(id)?.join(name));
        content.map(Bytes::from).map_err(|error| not_there(id, name, error))
    }

    /// Whether the blob is in place.
    pub(crate) fn exists(&self, id: &BlobId) -> bool {
        self.path(id).is_ok()
    }

    /// Takes away the blobs that `referenced` denies and that were staged at least `grace` ago;
    /// returns the directories that are left to be deleted.
    pub(crate) fn sweep(
        &self,
        now: Duration,
        grace: Duration,
        referenced: impl Fn(&BlobId) -> Result<bool>,
    ) -> Result<Vec<PathBuf>> {
        let mut taken = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let id = BlobId(name);
            if self.path(&id).is_err() || referenced(&id)? {
                continue;
            }
            let doomed = self.dir.join(format!(".doomed-{}", uuid::Uuid::new_v4().simple()));
            let mut staged = self.staged();
            let since = staged.get(&id).copied().unwrap_or(self.opened);
            if now.saturating_sub(since) >= grace {
                fs::rename(self.dir.join(&id.0), &doomed)?;
                staged.remove(&id);
                taken.push(doomed);
            }
        }
        Ok(taken)
    }

    /// Renews the grace of a blob that is in place; false where it is not.
    fn keep(&self, id: &BlobId, now: Duration) -> bool {
        let mut staged = self.staged();
        let exists = self.exists(id);
        if exists {
            staged.insert(id.clone(), now);
        }
        exists
    }

    fn write(&self, draft: &PathBuf, files: &[(String, Bytes)], manifest: &[u8]) -> Result<()> {
        fs::create_dir(draft)?;
        let all = files.iter().map(|(name, content)| (name.as_str(), &content[..]));
        for (name, content) in all.chain([(MANIFEST, manifest)]) {
            let mut file = File::options().write(true).create_new(true).open(draft.join(name))?;
            file.write_all(content)?;
            if self.durable {
                file.sync_all()?;
            }
        }
        if self.durable {
            File::open(draft)?.sync_all()?;
        }
        Ok(())
    }

    fn publish(&self, draft: &PathBuf, id: &BlobId, now: Duration) -> Result<()> {
        let mut staged = self.staged();
        if self.exists(id) {
            // Another call with the same content was quicker.
            fs::remove_dir_all(draft)?;
        } else {
            fs::rename(draft, self.dir.join(&id.0))?;
            if self.durable {
                File::open(&self.dir)?.sync_all()?;
            }
        }
        staged.insert(id.clone(), now);
        Ok(())
    }

    fn path(&self, id: &BlobId) -> Result<PathBuf> {
        let named = id.0.len() == 64 && id.0.bytes().all(|byte| byte.is_ascii_hexdigit());
        let path = self.dir.join(&id.0);
        if named && path.is_dir() {
            Ok(path)
        } else {
            Err(Error::NotFound { what: format!("blob {id}") })
        }
    }

    fn staged(&self) -> MutexGuard<'_, HashMap<BlobId, Duration>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn corrupted(id: &BlobId, name: &str) -> Error {
    Error::Corrupted { what: format!("file {name} of blob {id}") }
}

fn not_there(id: &BlobId, name: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound { corrupted(id, name) } else { error.into() }
}

fn check_name(name: &str) -> Result<()> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if plain && !name.is_empty() && !name.starts_with('.') && name != MANIFEST {
        Ok(())
    } else {
        Err(bad_name(name))
    }
}

fn bad_name(name: &str) -> Error {
    let message = format!("`{name}` cannot be the name of a file in a blob, or is given twice");
    Error::Io(io::Error::new(io::ErrorKind::InvalidInput, message))
}
