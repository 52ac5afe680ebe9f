//! The HTTP API against a real store and a worker that makes results up. The tree mirrors the URLs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod bodies;
mod harness;
mod routes;
mod serve;
mod worker;
