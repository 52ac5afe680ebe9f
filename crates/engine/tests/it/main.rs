//! The engine as its callers see it, on a tiny random Qwen3 and the CPU backend.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod cache;
mod distributions;
mod invariance;
mod losses;
mod optimizer;
mod refusals;
mod sampling;
mod scores;
mod sequence_losses;
mod speculation;
mod state;
mod tiny;
mod training;
