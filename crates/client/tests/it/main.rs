//! The client against the server of its own test kit.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod creation;
mod custom_losses;
mod data;
mod downloads;
mod events;
mod futures;
mod guide;
mod kit;
mod leaks;
mod persistence;
mod polling;
mod properties;
mod recordings;
mod reports;
mod rest;
mod retries;
mod start;
mod surface;
mod workflows;
