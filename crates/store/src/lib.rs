//! Durable state: requests and results, records, checkpoint blobs.
//!
//! [`Store`] is an async handle over its own writer thread. Nothing here knows HTTP or tensors: bodies
//! and results are opaque bytes with a kind. Every method that touches a tenant's thing takes the tenant.

pub mod clock;
pub mod records;
