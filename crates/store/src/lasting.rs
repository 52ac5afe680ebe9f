//! The session of clients that open none, and what they remove from it.

use tinsmith_types::ids::{ModelId, SessionId, TenantId};

use crate::{
    Result, Store,
    sqlite::{self, lasting},
};

impl Store {
    /// The tenant's session for clients that open none, with a number for a new run or sampler in it, which
    /// nobody else gets. The session is made where there is none, or where somebody ended it; it never expires.
    pub async fn lasting_number(&self, tenant: &TenantId) -> Result<(SessionId, i64)> {
        let owner = tenant.clone();
        let apply = move |tx: &mut sqlite::Tx<'_>| tx.lasting_number(&owner);
        let owner = tenant.clone();
        self.write(apply, move |shared, (session, _)| {
            shared.sessions.insert(session.clone(), owner, shared.clock.now());
            shared.sessions.keep(session);
        })
        .await
    }

    /// The session that [`Self::lasting_number`] gave last, if it gave any.
    pub async fn lasting_session(&self, tenant: &TenantId) -> Result<Option<SessionId>> {
        let tenant = tenant.clone();
        self.read(move |conn| Ok(lasting::session(conn, &tenant)?.map(|(id, _)| id))).await
    }

    /// Marks a run as removed; false where it was.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) where there is no such run.
    pub async fn remove_run(&self, tenant: &TenantId, id: &ModelId) -> Result<bool> {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.write(move |tx| tx.remove_run(&tenant, &id), |_, _| {}).await
    }

    /// Whether a run was removed by its owner.
    pub async fn is_removed(&self, tenant: &TenantId, id: &ModelId) -> Result<bool> {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.read(move |conn| lasting::is_removed(conn, &tenant, &id)).await
    }
}
