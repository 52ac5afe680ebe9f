//! The binary: what it says to what it cannot use, and what it answers to every recorded request.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod conversation;
mod losses;
mod mutations;
mod random;
mod recording;
mod refusals;
mod replay;
mod server;
mod states;
mod training;
mod verbs;
