//! What users and organizations are called on the wire.

use tinsmith_types::ids::TenantId;

/// The user whose things these are.
pub(crate) fn user_urn(tenant: &TenantId) -> String {
    format!("tml:organization_user:{tenant}")
}

/// An address for programs that want one; nothing is sent to it.
pub(crate) fn email(tenant: &TenantId) -> String {
    format!("{tenant}@localhost")
}
