//! What can go wrong, split by what the caller can do.

use std::fmt;

use serde_json::{Value, json};

/// What can go wrong in a call.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The call's arguments make no sense; nothing was sent.
    #[error("check the arguments: {message}")]
    Validation {
        /// What is wrong with them.
        message: String,
    },
    /// The server refused the request.
    #[error("get a good answer: status {status}: {detail}")]
    Api {
        /// HTTP status.
        status: u16,
        /// What the server says.
        detail: String,
    },
    /// The operation was queued, and failed.
    #[error("run request {request_id} ({category}): {message}")]
    RequestFailed {
        /// The request; empty where the failure is this program's.
        request_id: String,
        /// Whose fault it is.
        category: Category,
        /// What the server says.
        message: String,
    },
    /// The server forgot the request: it has to be submitted again.
    #[error("find the result of request {request_id}: the server has forgotten it")]
    Expired {
        /// The request.
        request_id: String,
    },
    /// The server could not be reached, for as long as the configuration allows.
    #[error("reach the server: {message}")]
    Connection {
        /// What the transport says.
        message: String,
    },
    /// The result did not come in time, or is not waited for any more; the server may still be working on it.
    #[error("get the result of request {request_id} in time: {exit_reason}")]
    Timeout {
        /// The request; empty where none was sent yet.
        request_id: String,
        /// Which limit ended the wait.
        exit_reason: String,
    },
    /// The answer is not what the API promises.
    #[error("read the answer: {message}")]
    Response {
        /// What is wrong with it, with the beginning of its body.
        message: String,
    },
    /// An earlier call of this training client never reached the server, so that its run cannot go on in
    /// order: resume it from a checkpoint with a new client.
    #[error("use a training client of which an earlier call was never sent")]
    Broken,
    /// The client was closed.
    #[error("finish the call: the client was closed")]
    Stopped,
    /// Too many calls failed of late: the circuit breaker lets none through for a while.
    #[error("send the request: the circuit breaker is open for another {retry_after_ms} ms")]
    CircuitOpen {
        /// When one is let through again.
        retry_after_ms: u64,
    },
}

/// What calls answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault a failed request is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Category {
    /// The request could not work: sending it again is of no use.
    User,
    /// The server failed a good request.
    Server,
    /// Something that the server stands on failed a good request.
    Provider,
    /// The server does not say.
    Unknown,
}

impl Category {
    /// The category of that name on the wire; [`Category::Unknown`] for names that are not known.
    pub fn parse(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "user" => Self::User,
            "server" => Self::Server,
            "provider" => Self::Provider,
            _ => Self::Unknown,
        }
    }

    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Server => "server",
            Self::Provider => "provider",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the same request may work another time: all but [`Category::User`].
    pub fn is_retryable(self) -> bool {
        self != Self::User
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kind of an [`Error`], without its details.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A limit of time was reached, or the call was cancelled.
    ApiTimeout,
    /// A queued operation failed.
    RequestFailed,
    /// The server could not be reached.
    Connection,
    /// The arguments make no sense, or the answer does not.
    Validation,
    /// The server refused the request with an HTTP status.
    ApiStatus,
    /// The server has forgotten the request.
    Expired,
    /// The client cannot be used any more.
    Closed,
    /// The circuit breaker is open.
    CircuitOpen,
}

impl ErrorKind {
    /// In `snake_case`, for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ApiTimeout => "api_timeout",
            Self::RequestFailed => "request_failed",
            Self::Connection => "api_connection",
            Self::Validation => "validation",
            Self::ApiStatus => "api_status",
            Self::Expired => "expired",
            Self::Closed => "closed",
            Self::CircuitOpen => "circuit_open",
        }
    }
}

impl Error {
    /// The arguments make no sense.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::Validation { message: message.into() }
    }

    /// The answer makes no sense.
    pub(crate) fn response(message: impl fmt::Display) -> Self {
        Self::Response { message: message.to_string() }
    }

    /// Without the details.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Validation { .. } | Self::Response { .. } => ErrorKind::Validation,
            Self::Api { .. } => ErrorKind::ApiStatus,
            Self::RequestFailed { .. } => ErrorKind::RequestFailed,
            Self::Expired { .. } => ErrorKind::Expired,
            Self::Connection { .. } => ErrorKind::Connection,
            Self::Timeout { .. } => ErrorKind::ApiTimeout,
            Self::Broken | Self::Stopped => ErrorKind::Closed,
            Self::CircuitOpen { .. } => ErrorKind::CircuitOpen,
        }
    }

    /// Whose fault it is: what the server says of failed requests, and what the status says of refused ones.
    pub fn category(&self) -> Category {
        match self {
            Self::RequestFailed { category, .. } => *category,
            Self::Validation { .. } => Category::User,
            Self::Api { status: 408 | 409 | 429 | 500.., .. } => Category::Server,
            Self::Api { status: 400..=499, .. } => Category::User,
            Self::Api { .. }
            | Self::Expired { .. }
            | Self::Connection { .. }
            | Self::Timeout { .. }
            | Self::Response { .. }
            | Self::Broken
            | Self::Stopped
            | Self::CircuitOpen { .. } => Category::Unknown,
        }
    }

    /// What to show to people: the whole sentence.
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// The details as JSON, for logs.
    pub fn data(&self) -> Value {
        match self {
            Self::Validation { message } | Self::Response { message } => {
                json!({ "message": message })
            }
            Self::Connection { message } => json!({ "message": message }),
            Self::Api { status, detail } => json!({ "status": status, "detail": detail }),
            Self::RequestFailed { request_id, category, message } => json!({
                "request_id": request_id, "category": category.as_str(), "message": message,
            }),
            Self::Expired { request_id } => json!({ "request_id": request_id }),
            Self::Timeout { request_id, exit_reason } => {
                json!({ "request_id": request_id, "exit_reason": exit_reason })
            }
            Self::CircuitOpen { retry_after_ms } => json!({ "retry_after_ms": retry_after_ms }),
            Self::Broken | Self::Stopped => json!({}),
        }
    }

    /// The HTTP status, where the server refused.
    pub fn status(&self) -> Option<u16> {
        if let Self::Api { status, .. } = self { Some(*status) } else { None }
    }

    /// The request, where one was queued.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::RequestFailed { request_id, .. }
            | Self::Expired { request_id }
            | Self::Timeout { request_id, .. } => Some(request_id).filter(|id| !id.is_empty()),
            Self::Validation { .. }
            | Self::Api { .. }
            | Self::Connection { .. }
            | Self::Response { .. }
            | Self::Broken
            | Self::Stopped
            | Self::CircuitOpen { .. } => None,
        }
        .map(String::as_str)
    }

    /// Whether the caller has to change something before the same call can work.
    pub fn is_user(&self) -> bool {
        self.category() == Category::User
    }

    /// Whether the same call may work another time.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Api { status, .. } => matches!(status, 408 | 409 | 429 | 500..),
            Self::RequestFailed { category, .. } => category.is_retryable(),
            Self::Connection { .. }
            | Self::Timeout { .. }
            | Self::Expired { .. }
            | Self::CircuitOpen { .. } => true,
            Self::Validation { .. } | Self::Response { .. } | Self::Broken | Self::Stopped => false,
        }
    }
}

impl From<tinsmith_types::Error> for Error {
    fn from(error: tinsmith_types::Error) -> Self {
        Self::response(error)
    }
}
