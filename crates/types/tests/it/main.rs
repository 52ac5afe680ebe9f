//! What crosses crate borders: the generated protobuf code, and the recorded conversations.

mod fuzz;
mod generated;
mod golden;
