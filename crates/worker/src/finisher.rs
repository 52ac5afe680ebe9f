//! Stages files and completes requests, in the order in which the engine finished them.
//!
//! A run's completions reach the disk in seq order, so that after a crash its journal is a completed head
//! and a pending tail; a snapshot is named only after all that it holds was completed.

use std::sync::mpsc;

use bytes::Bytes;
use tinsmith_store::{
    Category, Completion, Effect, Failure, Manifest, NewCheckpoint, NewSamplingSession, Outcome,
    SnapshotRecord, Store,
};
use tinsmith_types::ids::{ModelId, RequestId, SeqId};
use tokio::sync::mpsc as tokio_mpsc;

/// Completions that share one commit.
const BATCH_MAX: usize = 64;

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

async fn complete(store: &Store, batch: &mut Vec<Completion>) {
    if batch.is_empty() {
        return;
    }
    for result in store.complete(std::mem::take(batch)).await {
        if let Err(error) = result {
            tracing::warn!(%error, "a request was not completed as the engine left it");
        }
    }
}

async fn stage(
    store: &Store,
    files: Staged,
    completion: Completion,
    effect: StagedEffect,
) -> Completion {
    match store.stage(files.manifest, files.files).await {
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
