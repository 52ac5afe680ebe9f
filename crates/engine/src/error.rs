//! What can go wrong, split by who can do something about it.

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's request is at fault; the message names the place.
    #[error("{message}")]
    User {
        /// For the caller to read.
        message: String,
    },
    /// A limit of the `Config` is reached; the same call may succeed when some work has finished.
    #[error("take on more work: {message}")]
    Full {
        /// Names the limit.
        message: String,
    },
    /// The engine was used wrongly by the program around it.
    #[error("{message}")]
    Internal {
        /// For the log.
        message: String,
    },
    /// The device failed.
    #[error("use the device")]
    Backend(#[from] tinsmith_backend::Error),
}

/// What engine calls answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;
