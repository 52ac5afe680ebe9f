//! Whole nodes, a store and a worker on a tiny model: undisturbed, stopped, killed, spilled. What is compared
//! is bits.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says what it leaves out, and one that panics is one that fails"
)]

mod faults;
mod model;
mod recovery;
mod simulation;
mod training;
mod world;
