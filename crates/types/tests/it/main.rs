//! What crosses crate borders: the generated protobuf code, and the recorded conversations.

mod generated;
mod golden;
