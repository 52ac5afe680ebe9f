//! What can go wrong, split by who can do something about it.

use crate::Failure;

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
    /// The model or its files are at fault.
    #[error("use the model")]
    Model(#[source] tinsmith_model::Error),
    /// The device failed.
    #[error("use the device")]
    Backend(#[from] tinsmith_backend::Error),
}

/// What engine calls answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The caller's fault.
    pub(crate) fn user(message: impl Into<String>) -> Self {
        Self::User { message: message.into() }
    }

    /// Beyond a limit.
    pub(crate) fn full(message: impl Into<String>) -> Self {
        Self::Full { message: message.into() }
    }

    /// Our fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::Internal { message: message.into() }
    }
}

impl From<tinsmith_model::Error> for Error {
    /// An adapter is what the caller asked for or sent; all else about the model is ours.
    fn from(error: tinsmith_model::Error) -> Self {
        match error {
            tinsmith_model::Error::Adapter(message) => Self::User { message },
            tinsmith_model::Error::Backend(error) => Self::Backend(error),
            error @ (tinsmith_model::Error::Io { .. } | tinsmith_model::Error::Model { .. }) => {
                Self::Model(error)
            }
        }
    }
}

/// The whole chain in one line: what a failure tells.
pub(crate) fn failure(error: &Error) -> Failure {
    let user = match error {
        Error::User { .. } => true,
        Error::Full { .. } | Error::Internal { .. } | Error::Model(_) | Error::Backend(_) => false,
    };
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    Failure { user, message }
}
