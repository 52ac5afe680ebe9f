//! Whole nodes, a store and a worker on a tiny model: undisturbed, stopped, killed, spilled. What is compared
//! is bits.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod faults;
mod model;
mod recovery;
mod simulation;
mod training;
mod world;
