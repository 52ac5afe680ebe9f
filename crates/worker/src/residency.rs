//! Brings runs and samplers into memory and out of it again: load, replay, snapshot, spill.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tinsmith_engine::{Backend, Files, LoraSpec, Parts, RunKey};
use tinsmith_store::{
    BlobId, CheckpointKind, Failure, JournalState, LoraRecord, Manifest, RunRecord,
};
use tinsmith_types::{
    ids::{ModelId, SeqId, TenantId},
    queued::QueuedRequest,
};

use crate::{
    finisher::{Finish, Staged, put_snapshot},
    run::{Item, Purpose, RUN_FILE, Run, Unsaved},
    worker::{Worker, corrupted_failure, engine_failure, server_failure, user_failure},
};

/// Everything that goes on after a crash.
pub(crate) const WHOLE: Parts = Parts { optimizer: true, gradient: true };
/// LoRA's alpha, as on the hosted service.
const ALPHA: u32 = 32;
/// How long a read that the disk failed waits before it is tried again; doubled each time.
const READ_WAIT_MIN: Duration = Duration::from_millis(50);
/// The last of these waits.
const READ_WAIT_MAX: Duration = Duration::from_millis(400);

/// Why a request cannot be queued at its run.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Every run in memory has work: some has to rest first.
    NoRoom,
    /// It has to stay pending until the next start, for this reason.
    Pending(String),
    /// It fails.
    Failed(Failure),
}

/// Why a run cannot be brought back.
#[derive(Debug)]
enum Broken {
    /// The next start may do better.
    Passing(String),
    /// Its bytes on disk are not what was written.
    Corrupted(String),
}

impl From<tinsmith_store::Error> for Broken {
    fn from(error: tinsmith_store::Error) -> Self {
        let reason = format!("could not {error}");
        match error {
            tinsmith_store::Error::Corrupted { .. } => Self::Corrupted(reason),
            tinsmith_store::Error::NotFound { .. }
            | tinsmith_store::Error::Conflict { .. }
            | tinsmith_store::Error::Finished
            | tinsmith_store::Error::Full
            | tinsmith_store::Error::NameTaken { .. }
            | tinsmith_store::Error::Refused { .. }
            | tinsmith_store::Error::Io(_)
            | tinsmith_store::Error::Fatal => Self::Passing(reason),
        }
    }
}

/// What a snapshot holds beside the engine's files.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RunFile {
    /// Requests that failed since the last optimizer step.
    failed: u64,
}

impl<B: Backend> Worker<B> {
    /// Makes sure that a run is in memory, with what it has to replay at the head of its queue.
    pub(crate) fn ensure_run(&mut self, tenant: &TenantId, id: &ModelId) -> Result<(), Refusal> {
        if self.runs.contains_key(id) {
            return Ok(());
        }
        if let Some(reason) = self.set_aside.get(id) {
            return Err(Refusal::Pending(reason.clone()));
        }
        self.spill_beyond(self.config.resident_runs_max.saturating_sub(1));
        if self.runs.len() >= self.config.resident_runs_max && !self.runs.is_empty() {
            return Err(Refusal::NoRoom);
        }
        let record = self.record(tenant, id)?;
        if let Some(model) = self.model_of(&record.base_digest)
            && !self.make_run_room(model, &lora_spec(&record.lora))
        {
            return Err(Refusal::NoRoom);
        }
        // What the run did before it was spilled may still be on its way to the disk, and a journal that
        // shows it as pending would not replay it.
        if !self.flush() {
            return Err(Refusal::Pending("the store has failed".to_owned()));
        }
        let record = self.record(tenant, id)?;
        let loaded = match self.model_of(&record.base_digest) {
            Some(model) => self.load_run(id, record, model),
            None => Err(Broken::Passing(format!(
                "its base model {} (digest {}) is not served: start the server with the same weights",
                record.base_model, record.base_digest
            ))),
        };
        match loaded {
            Ok(run) => {
                self.runs.insert(id.clone(), run);
                Ok(())
            }
            Err(Broken::Passing(reason)) => {
                self.set_aside(tenant, id, reason.clone());
                Err(Refusal::Pending(reason))
            }
            Err(Broken::Corrupted(reason)) => {
                self.mark_corrupted(tenant, id, &reason);
                Err(Refusal::Failed(corrupted_failure(&reason)))
            }
        }
    }

    fn record(&mut self, tenant: &TenantId, id: &ModelId) -> Result<RunRecord, Refusal> {
        let store = self.store.clone();
        match self.read(async || store.run(tenant, id).await) {
            Ok(record) => Ok(record),
            Err(error @ tinsmith_store::Error::NotFound { .. }) => {
                Err(Refusal::Failed(server_failure(error.to_string())))
            }
            Err(error) => {
                let reason = format!("could not {error}");
                self.set_aside(tenant, id, reason.clone());
                Err(Refusal::Pending(reason))
            }
        }
    }

    /// Takes resting runs of a model out of memory until one more of this spec fits. False: those that are
    /// left have work. A run that no memory is large enough for is the engine's to refuse.
    fn make_run_room(&mut self, model: usize, spec: &LoraSpec) -> bool {
        let engine = &self.models[model].engine;
        let (bytes, most) = (engine.run_bytes(spec), engine.runs_bytes_max());
        loop {
            let runs = || self.runs.iter().filter(|(_, run)| run.model == model);
            let taken: usize = runs().map(|(_, run)| run.bytes).sum();
            if taken == 0 || taken.saturating_add(bytes) <= most {
                return true;
            }
            let idle = runs().filter(|(_, run)| run.is_idle());
            let Some((id, _)) = idle.min_by_key(|(_, run)| run.used_at) else { return false };
            let id = id.clone();
            self.spill(&id);
        }
    }

    /// Asks the store, and a few times more where the disk fails in passing.
    fn read<T>(
        &self,
        ask: impl AsyncFn() -> tinsmith_store::Result<T>,
    ) -> tinsmith_store::Result<T> {
        self.runtime.block_on(async {
            let mut wait = READ_WAIT_MIN;
            loop {
                match ask().await {
                    Err(error @ tinsmith_store::Error::Io(_)) if wait <= READ_WAIT_MAX => {
                        tracing::warn!(%error, "a read from the store is tried again");
                        tokio::time::sleep(wait).await;
                        wait *= 2;
                    }
                    answer => return answer,
                }
            }
        })
    }

    fn load_run(&mut self, id: &ModelId, record: RunRecord, model: usize) -> Result<Run, Broken> {
        let store = self.store.clone();
        let key = RunKey(self.key());
        let mut applied = SeqId(-1);
        let mut failed = 0;
        let mut kernel_set = record.kernel_set.clone();
        // A corrupted run only answers that it is.
        if record.corrupted.is_none()
            && let Some(snapshot) = self.read(async || store.snapshot(id).await)?
        {
            let (manifest, files) = self.read(async || store.blob(&snapshot.blob).await)?;
            failed = run_file(&files).map_err(Broken::Passing)?.failed;
            self.models[model].engine.restore_run(key, &plain(files), WHOLE).map_err(|error| {
                let message = engine_failure(&error).message;
                Broken::Passing(format!("its snapshot could not be loaded: {message}"))
            })?;
            applied = snapshot.applied_seq;
            kernel_set = manifest.kernel_set;
        }
        let compared = kernel_set == self.models[model].engine.kernel_set();
        let bytes = self.models[model].engine.run_bytes(&lora_spec(&record.lora));
        let mut run = Run {
            key,
            model,
            bytes,
            record,
            queue: std::collections::VecDeque::new(),
            in_flight: 0,
            applied,
            seen: applied,
            failed,
            failed_applied: failed,
            unsaved: Unsaved::default(),
            compared,
            used_at: self.clock.monotonic(),
        };
        if run.record.corrupted.is_none()
            && let Err(broken) = self.queue_replay(id, &mut run)
        {
            // Nothing points at what the snapshot brought into the engine.
            self.models[model].engine.drop_run(key);
            return Err(broken);
        }
        if !compared {
            let note = format!(
                "went on with the kernel set {} after {kernel_set}: replayed without comparison",
                self.models[model].engine.kernel_set()
            );
            tracing::warn!(run.id = %id, note);
            self.remark(&run.record.tenant, id, note);
        }
        Ok(run)
    }

    /// Queues what was completed after the snapshot.
    fn queue_replay(&self, id: &ModelId, run: &mut Run) -> Result<(), Broken> {
        let applied = run.applied;
        let journal = self.read(async || self.store.journal(id, applied).await)?;
        let mut settled = true;
        for entry in journal {
            settled &= entry.state != JournalState::Pending;
            if settled {
                run.count(&entry);
            }
            let JournalState::Applied(digest) = entry.state else { continue };
            if !entry.kind.changes_run() {
                continue;
            }
            let request = QueuedRequest::decode(entry.kind.name(), &entry.body)
                .map_err(|error| Broken::Passing(format!("could not read the journal: {error}")))?;
            run.queue.push_back(Item {
                seq_id: entry.seq_id,
                kind: entry.kind,
                body: entry.body,
                request,
                purpose: Purpose::Replay { digest, failed: run.failed },
            });
        }
        if !run.queue.is_empty() {
            tracing::info!(run.id = %id, requests = run.queue.len(), "replaying");
        }
        Ok(())
    }

    /// The engine that holds the weights of this digest.
    pub(crate) fn model_of(&self, digest: &str) -> Option<usize> {
        self.models.iter().position(|model| model.digest == digest)
    }

    /// Why a checkpoint cannot have this name, if it cannot. The store refuses it too, but later than the
    /// next optimizer step has to know how many requests failed.
    pub(crate) fn taken(&self, id: &ModelId, kind: CheckpointKind, name: &str) -> Option<Failure> {
        let tenant = &self.runs.get(id)?.record.tenant;
        // An earlier save may be on its way.
        self.flush();
        self.runtime.block_on(self.store.checkpoint(tenant, id, kind, name)).ok()?;
        let message =
            format!("a checkpoint named `{name}` exists already in {id}; choose another name");
        Some(user_failure(message))
    }

    /// Whether so much work is unsaved that the run has to be snapshotted before it goes on.
    pub(crate) fn is_snapshot_due(&self, id: &ModelId) -> bool {
        let Some(run) = self.runs.get(id) else { return false };
        let replays =
            run.queue.front().is_some_and(|item| matches!(item.purpose, Purpose::Replay { .. }));
        let work_max = if replays {
            self.config.snapshot_after_replay
        } else {
            self.config.snapshot_after_work
        };
        is_savable(run)
            && (run.unsaved.work >= work_max
                || run.unsaved.bytes >= self.config.snapshot_after_bytes)
    }

    /// Snapshots runs that have rested, or that have replayed a lot.
    pub(crate) fn snapshot_resting(&mut self) {
        let now = self.clock.monotonic();
        let rest = self.config.snapshot_after_rest;
        let resting: Vec<ModelId> = self
            .runs
            .iter()
            .filter(|(_, run)| run.is_idle() && is_savable(run))
            .filter(|(_, run)| now.saturating_sub(run.used_at) >= rest)
            .map(|(id, _)| id.clone())
            .collect();
        for id in resting {
            self.snapshot(&id);
        }
    }

    /// Snapshots every run that can be.
    pub(crate) fn snapshot_all(&mut self) {
        let savable = self.runs.iter().filter(|(_, run)| run.in_flight == 0 && is_savable(run));
        let ids: Vec<ModelId> = savable.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.snapshot(&id);
        }
    }

    /// Hands a run's whole state to the disk.
    pub(crate) fn snapshot(&mut self, id: &ModelId) {
        match self.state(id) {
            Ok(files) => {
                self.send(Finish::Snapshot { files: Box::new(files) });
                self.saved(id);
            }
            Err(failure) => {
                tracing::error!(run.id = %id, error = failure.message, "could not export a run");
                // Its journal brings it back; only more work is a reason to try again.
                self.saved(id);
            }
        }
    }

    /// Makes a run's whole state durable before it goes on.
    pub(crate) fn snapshot_now(&mut self, id: &ModelId) -> Result<(), Failure> {
        let files = self.state(id)?;
        let store = self.store.clone();
        if !self.flush() {
            return Err(server_failure("the store has failed".to_owned()));
        }
        let put = self.runtime.clone().block_on(put_snapshot(&store, files));
        put.map_err(|error| server_failure(format!("could not save the run's state: {error}")))?;
        self.saved(id);
        Ok(())
    }

    /// Nothing of the run has to be replayed any more.
    pub(crate) fn saved(&mut self, id: &ModelId) {
        if let Some(run) = self.runs.get_mut(id) {
            run.unsaved = Unsaved::default();
        }
    }

    pub(crate) fn state(&mut self, id: &ModelId) -> Result<Staged, Failure> {
        let mut staged = self.export(id, WHOLE)?;
        let run = self.runs.get(id).ok_or_else(|| server_failure("the run is gone".to_owned()))?;
        let file = serde_json::to_vec(&RunFile { failed: run.failed_applied })
            .map_err(|error| server_failure(error.to_string()))?;
        staged.files.push((RUN_FILE.to_owned(), Bytes::from(file)));
        Ok(staged)
    }

    /// A run's files as they are now, with their manifest. The run must be idle inside its engine.
    pub(crate) fn export(&mut self, id: &ModelId, parts: Parts) -> Result<Staged, Failure> {
        let run = self.runs.get(id).ok_or_else(|| server_failure("the run is gone".to_owned()))?;
        let record = &run.record;
        let engine = &mut self.models[run.model].engine;
        let files = engine
            .export_run(run.key, parts, &record.base_model)
            .map_err(|error| engine_failure(&error))?;
        let manifest = Manifest {
            format: 1,
            base_model: record.base_model.clone(),
            base_digest: record.base_digest.clone(),
            lora: record.lora,
            alpha: ALPHA,
            kernel_set: engine.kernel_set().to_owned(),
            model_id: record.id.clone(),
            applied_seq: run.applied,
            optimizer: parts.optimizer,
            optimizer_config: record.optimizer_config.clone(),
            files: BTreeMap::new(),
        };
        let files = files.into_iter().map(|(name, bytes)| (name, Bytes::from(bytes))).collect();
        Ok(Staged { manifest, files })
    }

    /// Takes the runs out of memory that have rested longest, until at most `runs_max` are left.
    pub(crate) fn spill_beyond(&mut self, runs_max: usize) {
        while self.runs.len() > runs_max {
            let idle = self.runs.iter().filter(|(_, run)| run.is_idle());
            let Some((id, _)) = idle.min_by_key(|(_, run)| run.used_at) else { return };
            let id = id.clone();
            self.spill(&id);
        }
    }

    /// Saves a resting run and takes it out of memory.
    fn spill(&mut self, id: &ModelId) {
        if self.runs.get(id).is_some_and(is_savable)
            && let Err(failure) = self.snapshot_now(id)
        {
            let error = failure.message;
            tracing::warn!(run.id = %id, error, "spilled without a snapshot, to be replayed");
        }
        self.forget(id);
    }

    /// Takes a run out of memory; its snapshot and journal bring it back.
    pub(crate) fn forget(&mut self, id: &ModelId) {
        if let Some(run) = self.runs.remove(id) {
            self.uncount(&run.queue);
            self.models[run.model].engine.drop_run(run.key);
        }
    }

    /// Marks a run that its journal does not lead back to; it is never silently continued.
    pub(crate) fn corrupt(&mut self, id: &ModelId, reason: &str) {
        let Some(run) = self.runs.get_mut(id) else { return };
        if run.record.corrupted.is_some() {
            return;
        }
        run.record.corrupted = Some(reason.to_owned());
        let tenant = run.record.tenant.clone();
        self.mark_corrupted(&tenant, id, reason);
    }

    fn mark_corrupted(&mut self, tenant: &TenantId, id: &ModelId, reason: &str) {
        tracing::error!(run.id = %id, reason, "a run is corrupted");
        self.stats.corrupted_runs += 1;
        let marked = self.store.mark_run(tenant, id, Some(reason.to_owned()), None);
        if let Err(error) = self.runtime.block_on(marked) {
            tracing::error!(run.id = %id, %error, "could not mark a run as corrupted");
        }
    }

    /// Takes a run out of memory that could not be brought back. Its requests stay pending, those to come
    /// too: the next start tries again.
    pub(crate) fn give_up(&mut self, id: &ModelId, reason: String) {
        let Some(run) = self.runs.get(id) else { return };
        tracing::error!(run.id = %id, reason, "a run's requests stay pending until the next start");
        let tenant = run.record.tenant.clone();
        self.forget(id);
        self.set_aside(&tenant, id, reason);
    }

    /// Leaves a run alone until the next start: a later request must not overtake those left pending.
    fn set_aside(&mut self, tenant: &TenantId, id: &ModelId, reason: String) {
        self.remark(tenant, id, reason.clone());
        self.set_aside.insert(id.clone(), reason);
    }

    /// Writes down a remark for the run's owner.
    fn remark(&self, tenant: &TenantId, id: &ModelId, note: String) {
        let marked = self.store.mark_run(tenant, id, None, Some(note));
        if let Err(error) = self.runtime.block_on(marked) {
            tracing::warn!(run.id = %id, %error, "could not write down a remark");
        }
    }

    /// Files of a published directory.
    pub(crate) fn blob(&self, id: &BlobId) -> Result<(Manifest, Files), Failure> {
        let (manifest, files) = self
            .runtime
            .block_on(self.store.blob(id))
            .map_err(|error| server_failure(error.to_string()))?;
        Ok((manifest, plain(files)))
    }
}

/// A run has something to save, and may be saved: a corrupted one keeps what is on disk.
fn is_savable(run: &Run) -> bool {
    run.unsaved.requests > 0 && run.record.corrupted.is_none() && run.applied.0 >= 0
}

pub(crate) fn lora_spec(record: &LoraRecord) -> LoraSpec {
    LoraSpec {
        rank: record.rank as usize,
        seed: record.seed,
        train_attn: record.train_attn,
        train_mlp: record.train_mlp,
        train_unembed: record.train_unembed,
    }
}

fn run_file(files: &BTreeMap<String, Bytes>) -> Result<RunFile, String> {
    let Some(bytes) = files.get(RUN_FILE) else { return Ok(RunFile::default()) };
    serde_json::from_slice(bytes).map_err(|error| format!("could not read {RUN_FILE}: {error}"))
}

fn plain(files: BTreeMap<String, Bytes>) -> Files {
    files.into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect()
}
