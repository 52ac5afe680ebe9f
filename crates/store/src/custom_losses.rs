//! Losses that clients sent, kept as long as their session.

use tinsmith_types::ids::{LossId, TenantId};

use crate::{CustomLossRecord, NewCustomLoss, Result, Store, sqlite::custom_losses};

impl Store {
    /// Makes a loss durable; the same id and digest find the first one. `false` where the session has `session_max`
    /// others already.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for the session; [`Error::Conflict`](crate::Error::Conflict) for
    /// another digest.
    pub async fn create_custom_loss(
        &self,
        tenant: &TenantId,
        new: NewCustomLoss,
        session_max: u64,
    ) -> Result<bool> {
        let tenant = tenant.clone();
        self.write(move |tx| tx.create_custom_loss(&tenant, &new, session_max), |_, _| {}).await
    }

    /// A loss.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), also for one whose session ended long ago.
    pub async fn custom_loss(&self, tenant: &TenantId, id: &LossId) -> Result<CustomLossRecord> {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.read(move |conn| custom_losses::custom_loss(conn, &tenant, &id)).await
    }
}
