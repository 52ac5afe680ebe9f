//! The data directory: made, locked, and refused where it would not be safe.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{Config, Error, Result};

/// File systems whose locks and flushes cannot be relied on.
const NETWORK: [&str; 14] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "beegfs",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
];

/// A directory that is ours as long as this lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Whether what is written must survive.
    pub(crate) durable: bool,
    // Dropped in this order: unlocked, then removed.
    _lock: File,
    _temporary: Option<TempDir>,
}

impl DataDir {
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let (path, temporary) = if let Some(path) = &config.data_dir {
            (path.clone(), None)
        } else {
            let temporary = tempfile::tempdir()?;
            (temporary.path().to_owned(), Some(temporary))
        };
        // Other users of the machine have no business in it.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| {
            let reason = format!("{} cannot be made: {error}", path.display());
            Error::Refused { reason }
        })?;
        if !config.allow_network_fs {
            refuse_network(&path)?;
        }
        let lock = lock(&path)?;
        Ok(Self { path, durable: temporary.is_none(), _lock: lock, _temporary: temporary })
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("tinsmith.sqlite")
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    pub(crate) fn scratch_file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.path)
    }

    /// Makes the names of the files in it durable, and its own.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.durable {
            File::open(&self.path)?.sync_all()?;
            File::open(self.path.join(".."))?.sync_all()?;
        }
        Ok(())
    }
}

fn lock(path: &Path) -> Result<File> {
    let lock = File::options().write(true).create(true).truncate(false).open(path.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let reason = format!(
                "{} is in use by another server; stop that one, or give another --data-dir",
                path.display()
            );
            Err(Error::Refused { reason })
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn refuse_network(path: &Path) -> Result<()> {
    // Where there is no such list, there is nothing to refuse by.
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return Ok(()) };
    let path = path.canonicalize()?;
    match file_system(&mounts, &path) {
        Some(name) if NETWORK.contains(&name) => {
            let reason = format!(
                "{} is on a network file system ({name}), where a crash can lose acknowledged \
                 requests; use a local disk or allow it explicitly",
                path.display()
            );
            Err(Error::Refused { reason })
        }
        _ => Ok(()),
    }
}

/// The type of the file system that holds `path`, by a list in the form of `/proc/self/mounts`.
fn file_system<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let entries = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        Some((PathBuf::from(at), fields.next()?))
    });
    // A later mount at the same place hides the earlier one: `max_by_key` returns the last.
    entries
        .filter(|(at, _)| path.starts_with(at))
        .max_by_key(|(at, _)| at.components().count())
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_decides() {
        let mounts = "/dev/vda / ext4 rw 0 0\nhost:/x /mnt/big\\040disk nfs4 rw 0 0\n\
                      /dev/vdb /mnt/big\\040disk/local xfs rw 0 0\n";
        for (path, expected) in [
            ("/home/data", "ext4"),
            ("/mnt/big disk/data", "nfs4"),
            ("/mnt/big disk/local/data", "xfs"),
            ("/mnt/big disks", "ext4"),
        ] {
            assert_eq!(file_system(mounts, Path::new(path)), Some(expected), "{path}");
        }
    }
}
