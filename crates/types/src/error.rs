//! Why something from the wire cannot be understood, and the body that tells a client so.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why bytes are not what they should be. All of it is the sender's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body is not the JSON that was expected.
    #[error("read the JSON body: {}{message}", location(.at))]
    Json {
        /// Dotted path of the value at fault; empty for the body itself.
        at: String,
        /// What is wrong with it.
        message: String,
    },
    /// A field goes by another name.
    #[error("read the JSON body: `{field}` is not a field here; use `{use_instead}`")]
    MistakenField {
        /// Dotted path of the field.
        field: String,
        /// The right name.
        use_instead: &'static str,
    },
    /// The body is not the protobuf message that was expected.
    #[error("read the protobuf body")]
    Protobuf(#[from] prost::DecodeError),
    /// A value is well-formed and makes no sense.
    #[error("read {at}: {message}")]
    Value {
        /// Which value, such as `data[3].loss_fn_inputs.weights`.
        at: String,
        /// What is wrong with it.
        message: String,
    },
    /// A queued request has a kind that does not exist.
    #[error("read a queued request of the unknown kind `{0}`")]
    UnknownKind(String),
}

impl Error {
    pub(crate) fn value(at: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Value { at: at.into(), message: message.into() }
    }

    /// The same error, seen from one level further out.
    pub(crate) fn within(self, outer: impl FnOnce() -> String) -> Self {
        match self {
            Self::Value { at, message } => Self::Value { at: format!("{}.{at}", outer()), message },
            Self::Json { .. }
            | Self::MistakenField { .. }
            | Self::Protobuf(_)
            | Self::UnknownKind(_) => self,
        }
    }
}

fn location(at: &str) -> String {
    if at.is_empty() || at == "." { String::new() } else { format!("`{at}`: ") }
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ErrorBody {
    /// What the SDK shows: a text, or any JSON.
    #[serde(default)]
    pub detail: Value,
    /// A stable name of the fault, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl ErrorBody {
    /// A body with a text and a code.
    pub fn new(detail: impl Into<String>, code: impl Into<String>) -> Self {
        Self { detail: Value::String(detail.into()), code: Some(code.into()) }
    }
}
