//! The protobuf messages, generated from `proto/tinker_public.proto`, and what fills and reads their
//! byte arrays.

pub mod describe;
#[rustfmt::skip]
#[expect(clippy::doc_markdown, reason = "comments that prost adds")]
mod generated;
pub mod layout;
pub mod pack;

pub use generated::*;
