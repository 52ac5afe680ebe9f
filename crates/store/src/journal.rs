//! What a run is recovered from: its newest snapshot, and its requests since.

use tinsmith_types::ids::{ModelId, SeqId};

use crate::{
    JournalEntry, Result, SnapshotRecord, Store,
    sqlite::{Stored, requests, runs},
};

impl Store {
    /// The newest durable state of a run. For the worker, which serves every tenant.
    pub async fn snapshot(&self, model: &ModelId) -> Result<Option<SnapshotRecord>> {
        let model = model.clone();
        self.read(move |conn| runs::snapshot(conn, &model)).await
    }

    /// Replaces the newest durable state of a run. The bodies of the requests inside it go; their
    /// results stay for their time.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for the run or the blob;
    /// [`Error::Conflict`](crate::Error::Conflict) where a request inside it has not been completed,
    /// or a later snapshot is there already.
    pub async fn put_snapshot(&self, model: &ModelId, snapshot: SnapshotRecord) -> Result<()> {
        let model = model.clone();
        self.write(move |tx| tx.put_snapshot(&model, &snapshot), |_, ()| {}).await
    }

    /// The run's requests after `after`, in order, finished or not. Only those that were applied and
    /// change the run have their bodies ([`JournalEntry::body`]): the others are not read.
    ///
    /// # Errors
    /// [`Error::Corrupted`](crate::Error::Corrupted) where one of these bodies is damaged, or was let go
    /// because a later snapshot holds its effect.
    pub async fn journal(&self, model: &ModelId, after: SeqId) -> Result<Vec<JournalEntry>> {
        let model = model.clone();
        let spool_dir = self.shared().spool_dir.clone();
        self.read(move |conn| {
            let entries = requests::journal(conn, &model, after)?;
            let load = |(mut entry, stored): (JournalEntry, Option<Stored>)| {
                if let Some(stored) = stored {
                    let what = || format!("body of request {} of {model}", entry.seq_id);
                    entry.body = stored.load(&spool_dir, what)?;
                }
                Ok(entry)
            };
            entries.into_iter().map(load).collect()
        })
        .await
    }
}
