//! What can go wrong, split by what the caller can do.

use tinsmith_types::futures::Category;

/// What can go wrong in a call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The call's arguments make no sense; nothing was sent.
    #[error("send the request: {message}")]
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
    #[error("run request {request_id} ({category:?}): {message}")]
    RequestFailed {
        /// The request.
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
    /// The result did not come in time; the server may still be working on it.
    #[error("get the result of request {request_id} in time")]
    Timeout {
        /// The request.
        request_id: String,
    },
    /// The answer is not what the API promises.
    #[error("read the answer: {message}")]
    Response {
        /// What is wrong with it.
        message: String,
    },
    /// An earlier call of this training client never reached the server, so that its run cannot go on in
    /// order: resume it from a checkpoint with a new client.
    #[error("use a training client of which an earlier call was never sent")]
    Broken,
    /// The runtime that the call ran on was shut down.
    #[error("finish the call: its runtime has stopped")]
    Stopped,
}

/// What calls answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<tinsmith_types::Error> for Error {
    fn from(error: tinsmith_types::Error) -> Self {
        Self::Response { message: error.to_string() }
    }
}
