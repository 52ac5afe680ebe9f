//! Durable state: requests and results, records, checkpoint blobs.
//!
//! [`Store`] is an async handle over its own writer thread. Nothing here knows HTTP or tensors: bodies
//! and results are opaque bytes with a kind. Every method that touches a tenant's thing takes the tenant.

#![warn(missing_docs)]

mod audit;
mod blobs;
mod checkpoints;
mod claims;
pub mod clock;
mod config;
#[cfg(test)]
mod conformance;
mod custom_losses;
mod data_dir;
mod error;
mod feeds;
mod index;
mod journal;
mod kept_samples;
mod lasting;
mod ledger;
mod polls;
pub mod records;
mod requests;
mod runs;
mod samples;
mod search;
mod sessions;
mod spans;
mod spool;
mod sqlite;
mod start;
mod store;
mod sweep;

pub use audit::AuditEntry;
pub use clock::{Clock, ManualClock, SystemClock};
pub use config::Config;
pub use error::{Error, Result};
pub use kept_samples::{KeptSample, KeptSampler};
pub use ledger::{SampleUsage, StorageRow, UsageKind, UsageRow};
pub use polls::{EndedSample, FeedPage, FeedQuery, Peeked, QueueState, Retrieved, Room, Shortage};
pub use records::*;
pub use samples::SamplerOrigin;
pub use search::{FoundSession, SearchPage, SessionSearch, SessionStatus, StatusFilter};
pub use sessions::DEFAULT_PROJECT;
pub use spans::Span;
pub use store::Store;
