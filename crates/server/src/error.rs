//! Everything that a request can be refused with, and what it looks like over HTTP.
//!
//! The body is `{"detail": …, "code": "stable_snake_case"}` with an explicit length: the SDK takes a 400
//! without one for a broken proxy. Permanent faults are never 409, 429 or 5xx: the SDK repeats those.

use std::{borrow::Cow, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tinsmith_store as store;
use tinsmith_types::error::ErrorBody;

/// What handlers answer.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The bytes are not what they claim to be.
    #[error("{detail}")]
    Malformed { detail: String },
    /// Understood, and wrong or not offered here.
    #[error("{detail}")]
    Invalid { code: &'static str, detail: String },
    /// No credential.
    #[error("{detail}")]
    Unauthorized { detail: String },
    /// A token that does not hold: its owner exchanges a key for a new one.
    #[error("{detail}")]
    InvalidToken { detail: String },
    /// Not from here.
    #[error("{detail}")]
    Forbidden { code: &'static str, detail: String },
    /// No such thing, or not the caller's.
    #[error("{what} not found")]
    NotFound { what: String },
    #[error("no such endpoint: {path}; GET / lists all")]
    NoEndpoint { path: String },
    #[error("method {method} is not allowed on {path}; GET / lists all endpoints")]
    MethodNotAllowed { method: String, path: String },
    #[error("request body took longer than {} s to arrive", limit.as_secs())]
    BodyTimeout { limit: Duration },
    /// A session that has ended, or a sample of an earlier start.
    #[error("{detail}")]
    Gone { code: &'static str, detail: String },
    /// With the first bytes of it, decompressed, where they are known.
    #[error("request body has more than {bytes_max} bytes {stage}")]
    BodyTooLarge { bytes_max: usize, stage: &'static str, head: Bytes },
    /// A used identity key with another body.
    #[error("{detail}")]
    Conflict { detail: String },
    #[error("{what} is full; try again")]
    Full { what: &'static str },
    #[error(transparent)]
    Store(store::Error),
    #[error("{detail}")]
    Internal { detail: String },
}

impl Error {
    pub(crate) fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Invalid { code, detail: detail.into() }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed { detail: detail.into() }
    }

    /// The first bytes of a body that is too large.
    pub(crate) fn head(&self) -> Option<&Bytes> {
        if let Self::BodyTooLarge { head, .. } = self { Some(head) } else { None }
    }

    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Malformed { .. } => (StatusCode::BAD_REQUEST, "malformed_body"),
            Self::Invalid { code, .. } => (StatusCode::BAD_REQUEST, code),
            Self::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::InvalidToken { .. } => (StatusCode::UNAUTHORIZED, "invalid_token"),
            Self::Forbidden { code, .. } => (StatusCode::FORBIDDEN, code),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            Self::NoEndpoint { .. } => (StatusCode::NOT_FOUND, "no_such_endpoint"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::BodyTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::Gone { code, .. } => (StatusCode::GONE, code),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::Conflict { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "conflict"),
            Self::Full { .. } => (StatusCode::TOO_MANY_REQUESTS, "full"),
            Self::Store(_) | Self::Internal { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        }
    }
}

/// Longest text that is quoted back to a client or logged, in bytes.
const TEXT_BYTES_MAX: usize = 2000;

/// A text that may quote whatever a client sent, cut to what people read.
pub(crate) fn short(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT_BYTES_MAX {
        return text.into();
    }
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    format!("{}… ({} bytes)", &text[..end], text.len()).into()
}

impl From<tinsmith_types::Error> for Error {
    fn from(error: tinsmith_types::Error) -> Self {
        let code = match &error {
            tinsmith_types::Error::MistakenField { .. } => "mistaken_field",
            tinsmith_types::Error::Value { .. } => "invalid_value",
            tinsmith_types::Error::Json { at, message } => {
                if let Some(detail) = hosted_message(at, message) {
                    return Self::invalid("missing_field", detail);
                }
                "malformed_body"
            }
            tinsmith_types::Error::Protobuf(_) | tinsmith_types::Error::UnknownKind(_) => {
                "malformed_body"
            }
        };
        let cause =
            std::error::Error::source(&error).map_or_else(String::new, |c| format!(": {c}"));
        Self::Invalid { code, detail: format!("failed to {error}{cause}") }
    }
}

/// What the hosted service says about these two, which programs know.
fn hosted_message(at: &str, message: &str) -> Option<&'static str> {
    let lacks = |field: &str| {
        message.starts_with(&format!("missing field `{field}`"))
            || (at == field && message.starts_with("invalid type: null"))
    };
    if lacks("base_model") {
        return Some("base_model is required");
    }
    lacks("session_id").then_some(
        "session_id is required. The version of the Tinker SDK you are using is no longer supported.",
    )
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NotFound { what } => Self::NotFound { what },
            store::Error::Conflict { what } => {
                Self::Conflict { detail: format!("{what} was submitted before with another body") }
            }
            store::Error::Finished => Self::Gone {
                code: "session_finished",
                detail: "the session has finished or expired; open a new one".to_owned(),
            },
            store::Error::Full => Self::Full { what: "the queue" },
            store::Error::NameTaken { name } => Self::Invalid {
                code: "name_taken",
                detail: format!("a checkpoint named {name:?} exists; pass overwrite to replace it"),
            },
            other @ (store::Error::Corrupted { .. }
            | store::Error::Refused { .. }
            | store::Error::Io(_)
            | store::Error::Fatal) => Self::Store(other),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let detail = if status.is_server_error() {
            // What failed inside is for the log; clients get the request id to ask with.
            let cause = std::error::Error::source(&self).map(ToString::to_string);
            tracing::error!(error = %self, cause, "request failed");
            "internal error; the server's log has it under this X-Request-Id".to_owned()
        } else {
            short(&self.to_string()).into_owned()
        };
        let body = serde_json::to_string(&ErrorBody::new(detail, code)).unwrap_or_default();
        let mut response = (
            status,
            [
                (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
                (header::CONTENT_LENGTH, HeaderValue::from(body.len())),
            ],
            Body::from(body),
        )
            .into_response();
        if matches!(self, Self::InvalidToken { .. }) {
            let ask = HeaderValue::from_static("Bearer error=\"invalid_token\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
        }
        if matches!(self, Self::Full { .. }) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
