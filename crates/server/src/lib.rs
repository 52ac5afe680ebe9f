//! HTTP API: decode, check, write down, answer polls.
//!
//! Handlers talk to the store and never to what computes. A new endpoint is a handler in
//! `routes/<group>.rs` and a line in the table of `router.rs`.

mod body;
mod catalog;
mod check;
mod config;
mod download;
mod drain;
mod error;
mod id;
mod identity;
mod links;
mod negotiate;
mod openapi;
mod ordered;
mod origin;
mod page;
mod parts;
mod prices;
mod redact;
mod router;
mod routes;
mod segments;
mod serve;
mod state;
mod submit;
mod tar;
mod token;
mod trace;

pub use catalog::{Catalog, ModelEntry};
pub use config::Config;
pub use prices::{Priced, Prices};
pub use router::router;
pub use serve::serve;
