use std::path::{Path, PathBuf};

/// What can go wrong with models and adapters. Each text fits "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model directory cannot be read.
    #[error("read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The model directory holds something that cannot be served; the operator can change that.
    #[error("open the model: {}: {problem}", path.display())]
    Model {
        /// The file or directory at fault.
        path: PathBuf,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The adapter that was asked for, or its files, cannot be used; the user can change that.
    #[error("use the adapter: {0}")]
    Adapter(String),
    /// The device has no room, or failed.
    #[error(transparent)]
    Backend(#[from] tinsmith_backend::Error),
}

/// What this crate answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn model(path: &Path, problem: impl Into<String>) -> Self {
        Self::Model { path: path.to_owned(), problem: problem.into() }
    }
}
