//! Exactly what travels over HTTP: JSON and protobuf, every SDK generation. No behaviour.
//!
//! One file for each group of endpoints, named as in the URLs; a request implements
//! [`json::Request`], and one that is queued is a variant of [`queued::QueuedRequest`].

#![warn(missing_docs)]

pub mod audit;
pub mod auth;
pub mod billing;
pub mod checkpoints;
pub mod custom_losses;
pub mod datum;
mod defaults;
pub mod error;
pub mod futures;
pub mod ids;
pub mod json;
pub mod model_input;
pub mod path;
pub mod proto;
pub mod queued;
pub mod runs;
pub mod sampling;
pub mod search;
pub mod service;
pub mod session;
pub mod telemetry;
pub mod tensor;
pub mod tinkerbell;
pub mod training;
pub mod weights;

pub use error::Error;
