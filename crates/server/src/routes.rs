//! The handlers, by group. A group is named alike in `types` and in the tests' tree.

pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod billing;
pub(crate) mod checkpoints;
pub(crate) mod custom_losses;
pub(crate) mod downloads;
pub(crate) mod futures;
pub(crate) mod runs;
pub(crate) mod sampling;
pub(crate) mod search;
pub(crate) mod service;
pub(crate) mod sessions;
pub(crate) mod telemetry;
pub(crate) mod tinkerbell;
pub(crate) mod traces;
pub(crate) mod training;
pub(crate) mod weights;
