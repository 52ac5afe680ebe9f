//! One file a command.

pub(crate) mod auth;
pub(crate) mod bench;
pub(crate) mod checkpoint;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod model;
pub(crate) mod quickstart;
pub(crate) mod run;
pub(crate) mod sample;
pub(crate) mod serve;
pub(crate) mod session;
pub(crate) mod train;
pub(crate) mod usage;
pub(crate) mod version;
