//! What can go wrong with a loss that somebody sent; all of it is for that somebody to read.

/// What can go wrong with a loss graph.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The graph or its inputs are refused before anything is computed.
    #[error("{0}")]
    Graph(String),
    /// What a datum gives does not fit the inputs that the loss declares.
    #[error("{0}")]
    Input(String),
    /// An operation failed on a datum's values.
    #[error("node {node} ({target}): {message}")]
    Node {
        /// Its name in the graph.
        node: String,
        /// What it calls.
        target: String,
        /// What is wrong.
        message: String,
    },
    /// What the loss returned cannot be used.
    #[error("{0}")]
    Output(String),
}

/// What this crate's calls answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an operation answers: its message gets the node's name where it is called.
pub(crate) type Fallible<T> = std::result::Result<T, String>;
