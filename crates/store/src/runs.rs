//! Runs, as their owners see them.

use tinsmith_types::ids::{ModelId, TenantId};

use crate::{CheckpointRecord, NewCopy, NewImport, Result, RunRecord, Store, sqlite::runs};

impl Store {
    /// A run.
    pub async fn run(&self, tenant: &TenantId, id: &ModelId) -> Result<RunRecord> {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.read(move |conn| runs::run(conn, &tenant, &id)).await
    }

    /// A page of the tenant's runs, of one project or of all, newest first, and how many there are.
    pub async fn runs(
        &self,
        tenant: &TenantId,
        project: Option<&str>,
        (limit, offset): (u32, u32),
    ) -> Result<(Vec<RunRecord>, u64)> {
        let (tenant, project) = (tenant.clone(), project.map(str::to_owned));
        self.read(move |conn| runs::runs(conn, &tenant, project.as_deref(), (limit, offset))).await
    }

    /// Makes checkpoints that come from elsewhere visible, as those of a session's first run, and ends the
    /// session; all of it in one commit. Nothing can be asked of that run, others begin from its checkpoints.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for the session or the blob.
    pub async fn import(&self, tenant: &TenantId, new: NewImport) -> Result<RunRecord> {
        let (tenant, session) = (tenant.clone(), new.run.session_id.clone());
        let apply = move |tx: &mut crate::sqlite::Tx<'_>| tx.import(&tenant, &new);
        self.write(apply, move |shared, _| shared.sessions.remove(&session)).await
    }

    /// Gives a checkpoint a second name, in a run that is made for it; nothing of its files is written again.
    /// The same run and source find the first copy.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for the session or the blob;
    /// [`Error::Conflict`](crate::Error::Conflict) where there is another run of that name.
    pub async fn copy_checkpoint(
        &self,
        tenant: &TenantId,
        new: NewCopy,
    ) -> Result<CheckpointRecord> {
        let (tenant, ended) =
            (tenant.clone(), new.ends_session.then(|| new.run.session_id.clone()));
        let apply = move |tx: &mut crate::sqlite::Tx<'_>| tx.copy(&tenant, &new);
        self.write(apply, move |shared, _| {
            if let Some(session) = ended {
                shared.sessions.remove(&session);
            }
        })
        .await
    }

    /// Sets why a run cannot go on, or a remark for its owner; `None` leaves what was there.
    pub async fn mark_run(
        &self,
        tenant: &TenantId,
        id: &ModelId,
        corrupted: Option<String>,
        note: Option<String>,
    ) -> Result<()> {
        let (tenant, id) = (tenant.clone(), id.clone());
        let apply = move |tx: &mut crate::sqlite::Tx<'_>| {
            tx.mark_run(&tenant, &id, corrupted.as_deref(), note.as_deref())
        };
        self.write(apply, |_, ()| {}).await
    }
}
