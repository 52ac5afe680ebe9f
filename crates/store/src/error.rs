//! What can go wrong, split by what the caller can do about it.

use std::io;

/// Result of a store's method.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Each message is a fragment that fits "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing, or it belongs to another tenant.
    #[error("find {what}")]
    NotFound {
        /// The kind of thing and its id.
        what: String,
    },
    /// The id is taken by something else.
    #[error("match {what} with what was submitted under that id before")]
    Conflict {
        /// The kind of thing and its id.
        what: String,
    },
    /// The session is finished or expired.
    #[error("use a session that has finished")]
    Finished,
    /// A queue or table is at its limit; try again later.
    #[error("queue more: the limit is reached")]
    Full,
    /// A checkpoint of that name exists and was not to be replaced.
    #[error("save as `{name}`: the name is taken")]
    NameTaken {
        /// The checkpoint's name.
        name: String,
    },
    /// Bytes on disk are not what was written.
    #[error("verify {what}")]
    Corrupted {
        /// The file or record.
        what: String,
    },
    /// The data directory cannot be used.
    #[error("open the data directory: {reason}")]
    Refused {
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// Reading or writing failed, and nothing was changed; a full disk is one cause.
    #[error("read or write the data directory")]
    Io(#[from] io::Error),
    /// A write failed in a way that leaves the disk's state unknown, or the store is closed: it
    /// accepts nothing more and must be opened again.
    #[error("write: the store has stopped")]
    Fatal,
}

impl Error {
    /// The same error for each of those who share a failed commit.
    pub(crate) fn copy(&self) -> Self {
        match self {
            Self::NotFound { what } => Self::NotFound { what: what.clone() },
            Self::Conflict { what } => Self::Conflict { what: what.clone() },
            Self::Finished => Self::Finished,
            Self::Full => Self::Full,
            Self::NameTaken { name } => Self::NameTaken { name: name.clone() },
            Self::Corrupted { what } => Self::Corrupted { what: what.clone() },
            Self::Refused { reason } => Self::Refused { reason: reason.clone() },
            Self::Io(error) => Self::Io(io::Error::new(error.kind(), error.to_string())),
            Self::Fatal => Self::Fatal,
        }
    }
}
