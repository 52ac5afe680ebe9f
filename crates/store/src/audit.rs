//! The audit log: what was made, read, changed, published and deleted, and by whom.

use jiff::Timestamp;
use serde_json::{Map, Value};
use tinsmith_types::ids::{ModelId, TenantId};

use crate::{
    CheckpointKind, Result, Store,
    sqlite::{Tx, audit, checkpoints::Name},
};

/// Something that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// `<resource>_<action>`, such as `checkpoint_read`.
    pub event: String,
    /// Who did it (`actor`, a tenant), and what it was about.
    pub details: Map<String, Value>,
}

impl Store {
    /// Notes that the content of a checkpoint was handed to `reader`, for its owner and for the reader.
    /// `purpose` is one word, such as `load`.
    pub async fn audit_read(
        &self,
        (owner, reader): (&TenantId, &TenantId),
        (model, kind, name): (&ModelId, CheckpointKind, &str),
        purpose: &'static str,
    ) -> Result<()> {
        let (owner, reader) = (owner.clone(), reader.clone());
        let name = Name { model: model.clone(), kind, name: name.to_owned() };
        let apply = move |tx: &mut Tx<'_>| tx.audit_read((&owner, &reader), &name, purpose);
        self.write(apply, |_, ()| {}).await
    }

    /// The tenant's entries from `from` up to `until` whose event begins with `prefix`, oldest first. Where
    /// there are more than `limit`, the newest.
    pub async fn audit_entries(
        &self,
        tenant: &TenantId,
        (from, until): (Timestamp, Timestamp),
        prefix: &'static str,
        limit: u32,
    ) -> Result<Vec<AuditEntry>> {
        let tenant = tenant.clone();
        self.read(move |conn| audit::entries(conn, &tenant, (from, until), prefix, limit)).await
    }
}
