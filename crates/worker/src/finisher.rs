//! Stages files and completes requests, in the order in which the engine finished them.
//!
//! A run's completions reach the disk in seq order, so that after a crash its journal is a completed head
//! and a pending tail; a snapshot is named only after all that it holds was completed.

use std::{sync::mpsc, time::Duration};

use bytes::Bytes;
use tinsmith_store::{
    BlobId, Category, Completion, Effect, Error, Failure, Manifest, NewCheckpoint,
    NewSamplingSession, Outcome, SnapshotRecord, Store,
};
use tinsmith_types::ids::{ModelId, RequestId, SeqId};
use tokio::sync::mpsc as tokio_mpsc;

use crate::convert;

/// Completions that share one commit.
const BATCH_MAX: usize = 64;
/// How long a full disk is left alone before the first retry; doubled with each one.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(50);
/// How long a full disk is left alone at most.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Work for the disk.
#[derive(Debug)]
pub(crate) enum Finish {
    /// A result that needs no files.
    Complete(Completion),
    /// Files first, then the result that names them.
    Stage { files: Box<Staged>, completion: Completion, effect: StagedEffect },
    /// A run's state, after everything before it was completed.
    Snapshot { files: Box<Staged> },
    /// Answered once everything before it is on disk.
    Flush(mpsc::Sender<()>),
}

impl Finish {
    /// Files, and the JSON result of the request that they were made for.
    pub(crate) fn stage(
        files: Staged,
        request_id: &RequestId,
        result: &serde_json::Value,
        effect: StagedEffect,
    ) -> Self {
        let completion = Completion {
            request_id: request_id.clone(),
            outcome: Outcome::Done(convert::json(result)),
            digest: None,
            effect: Effect::None,
        };
        Self::Stage { files: Box::new(files), completion, effect }
    }
}

/// A directory to be made durable.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) manifest: Manifest,
    pub(crate) files: Vec<(String, Bytes)>,
}

/// What becomes visible once the files are durable; their name is filled in here.
#[derive(Debug)]
pub(crate) enum StagedEffect {
    /// The state of a run that a checkpoint was loaded into. It is named together with the load's result:
    /// the checkpoint may be gone when the load would have to be replayed.
    Loaded(SeqId),
    Checkpoint(Box<NewCheckpoint>),
    SamplingSession(Box<NewSamplingSession>),
}

/// Ends when the worker drops its sender, or when the store has failed for good.
pub(crate) async fn run(store: Store, mut items: tokio_mpsc::Receiver<Finish>) {
    let mut received = Vec::new();
    while items.recv_many(&mut received, BATCH_MAX).await > 0 {
        let mut batch = Vec::new();
        for item in received.drain(..) {
            finish(&store, &mut batch, item).await;
        }
        complete(&store, &mut batch).await;
        if !store.ready() {
            tracing::error!("the store has failed: requests stay pending until the next start");
            return;
        }
    }
}

async fn finish(store: &Store, batch: &mut Vec<Completion>, item: Finish) {
    match item {
        Finish::Complete(completion) => batch.push(completion),
        Finish::Stage { files, completion, effect } => {
            batch.push(stage(store, *files, completion, effect).await);
        }
        Finish::Snapshot { files } => {
            complete(store, batch).await;
            snapshot(store, *files).await;
        }
        Finish::Flush(reply) => {
            complete(store, batch).await;
            if reply.send(()).is_err() {
                tracing::debug!("nobody waits for the flush any more");
            }
        }
    }
}

/// Returns once every completion is on disk, or the store has failed for good. What a passing fault of the
/// disk kept back is sent again: its effect is in the engine, so that it must not stay pending.
async fn complete(store: &Store, batch: &mut Vec<Completion>) {
    let mut left = std::mem::take(batch);
    let mut wait = RETRY_WAIT_MIN;
    while !left.is_empty() {
        let results = store.complete(left.clone()).await;
        let ended = left.into_iter().zip(results);
        let mut faulty = false;
        left = ended
            .filter_map(|(completion, result)| {
                let error = result.err()?;
                faulty |= matches!(error, Error::Io(_));
                retry(completion, &error)
            })
            .collect();
        if faulty && !pause(store, &mut wait).await {
            return;
        }
    }
}

/// What is sent instead of a completion that was not taken; `None`: nothing.
fn retry(completion: Completion, error: &Error) -> Option<Completion> {
    let id = &completion.request_id;
    match error {
        Error::Io(_) => {
            tracing::warn!(request.id = %id, %error, "a result waits for the disk");
            Some(completion)
        }
        Error::NameTaken { .. } | Error::Conflict { .. } => {
            tracing::debug!(request.id = %id, %error, "a request's effect was refused");
            None
        }
        Error::Fatal => {
            tracing::error!(request.id = %id, %error, "a result is left to replay");
            None
        }
        Error::NotFound { .. }
        | Error::Finished
        | Error::Full
        | Error::Corrupted { .. }
        | Error::Refused { .. } => {
            if matches!(completion.outcome, Outcome::Failed(_)) {
                tracing::debug!(request.id = %id, %error, "nobody knows a request that failed");
                return None;
            }
            // Where the effect was at fault, the request waits still. Where the request itself is
            // unknown, as a sample that was dropped, this one is refused too, and that is the end.
            tracing::warn!(request.id = %id, %error, "a request's effect cannot be made visible");
            Some(failed(completion.request_id, format!("could not keep the result: {error}")))
        }
    }
}

/// Leaves the disk alone for a while, longer each time; false if there is no use in a retry.
async fn pause(store: &Store, wait: &mut Duration) -> bool {
    tokio::time::sleep(*wait).await;
    *wait = RETRY_WAIT_MAX.min(*wait * 2);
    store.ready()
}

async fn stage(
    store: &Store,
    files: Staged,
    completion: Completion,
    effect: StagedEffect,
) -> Completion {
    let staged = match &effect {
        StagedEffect::Loaded(_) => stage_surely(store, files).await,
        StagedEffect::Checkpoint(_) | StagedEffect::SamplingSession(_) => {
            store.stage(files.manifest, files.files).await
        }
    };
    match staged {
        Ok((blob, size_bytes)) => {
            let effect = match effect {
                StagedEffect::Loaded(applied_seq) => {
                    Effect::Loaded(SnapshotRecord { applied_seq, blob })
                }
                StagedEffect::Checkpoint(new) => {
                    Effect::Checkpoint(NewCheckpoint { blob, size_bytes, ..*new })
                }
                StagedEffect::SamplingSession(new) => {
                    Effect::SamplingSession(NewSamplingSession { blob: Some(blob), ..*new })
                }
            };
            Completion { effect, ..completion }
        }
        Err(error) => failed(completion.request_id, format!("could not save the files: {error}")),
    }
}

/// Waits for a disk that is full: the engine holds the loaded state already, so that the load cannot fail.
async fn stage_surely(store: &Store, files: Staged) -> tinsmith_store::Result<(BlobId, u64)> {
    let mut wait = RETRY_WAIT_MIN;
    loop {
        match store.stage(files.manifest.clone(), files.files.clone()).await {
            Err(error @ Error::Io(_)) => {
                tracing::warn!(run.id = %files.manifest.model_id, %error, "a load waits for the disk");
                if !pause(store, &mut wait).await {
                    return Err(Error::Fatal);
                }
            }
            staged => return staged,
        }
    }
}

async fn snapshot(store: &Store, files: Staged) {
    let model = files.manifest.model_id.clone();
    if let Err(error) = put_snapshot(store, files).await {
        tracing::warn!(run.id = %model, %error, "could not snapshot a run");
    }
}

/// Makes a run's state durable and names it. What it holds must be completed before.
pub(crate) async fn put_snapshot(store: &Store, files: Staged) -> tinsmith_store::Result<()> {
    let model: ModelId = files.manifest.model_id.clone();
    let applied_seq = files.manifest.applied_seq;
    let (blob, _) = store.stage(files.manifest, files.files).await?;
    store.put_snapshot(&model, SnapshotRecord { applied_seq, blob }).await
}

fn failed(request_id: RequestId, message: String) -> Completion {
    let failure = Failure { category: Category::Server, message };
    Completion { request_id, outcome: Outcome::Failed(failure), digest: None, effect: Effect::None }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn done() -> Completion {
        Completion {
            request_id: RequestId::from("req-1"),
            outcome: Outcome::Done(Bytes::from_static(b"result")),
            digest: Some([1; 32]),
            effect: Effect::RunReady,
        }
    }

    #[test]
    fn a_result_waits_for_a_full_disk() {
        let full = Error::Io(io::ErrorKind::StorageFull.into());
        assert_eq!(retry(done(), &full), Some(done()));
    }

    #[test]
    fn a_request_whose_effect_cannot_be_made_visible_fails_once() {
        let missing = Error::NotFound { what: "blob 00".to_owned() };
        let instead = retry(done(), &missing).expect("it fails");
        let message = "could not keep the result: find blob 00".to_owned();
        let failure = Failure { category: Category::Server, message };
        assert_eq!(instead.outcome, Outcome::Failed(failure));
        assert_eq!(instead.effect, Effect::None);
        assert_eq!(retry(instead, &missing), None);
    }

    #[test]
    fn what_the_store_has_settled_is_not_sent_again() {
        let taken = Error::NameTaken { name: "a".to_owned() };
        let conflict = Error::Conflict { what: "a".to_owned() };
        for error in [taken, conflict, Error::Fatal] {
            assert_eq!(retry(done(), &error), None);
        }
    }
}
