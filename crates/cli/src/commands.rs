//! One file a command.

pub(crate) mod bench;
pub(crate) mod checkpoint;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod quickstart;
pub(crate) mod serve;
pub(crate) mod version;
