//! What is computed: one decoder with named switches, a table of model families, LoRA, weight loading.
//!
//! A new family is one table entry (`families/<name>.rs`). The maths runs through the ops of a
//! [`tinsmith_backend::Backend`]; when it runs, and for whom, is the engine's business.

pub mod batch;
pub mod config;
pub mod decoder;
mod error;
pub mod families;
pub mod files;
#[cfg(test)]
mod golden;
pub mod lora;
pub mod memory;
pub mod peft;
pub mod rope;
mod tensors;
pub mod workspace;

pub use error::{Error, Result};
