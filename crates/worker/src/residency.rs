//! Brings runs and samplers into memory and out of it again: load, replay, snapshot, spill.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tinsmith_engine::{Backend, Files, LoraSpec, Parts, RunKey, SamplerKey};
use tinsmith_store::{
    BlobId, CheckpointKind, Failure, JournalState, LoraRecord, Manifest, RunRecord,
};
use tinsmith_types::{
    ids::{ModelId, SamplingSessionId, SeqId, TenantId},
    queued::QueuedRequest,
};

use crate::{
    finisher::{Finish, Staged, put_snapshot},
    run::{Item, Purpose, RUN_FILE, Run, Unsaved, is_replayed},
    samplers::Sampler,
    worker::{Worker, engine_failure, server_failure, user_failure},
};

/// Everything that goes on after a crash.
pub(crate) const WHOLE: Parts = Parts { optimizer: true, gradient: true };
/// LoRA's alpha, as on the hosted service.
const ALPHA: u32 = 32;

/// Why a request cannot be queued at its run.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Every run in memory has work: some has to rest first.
    NoRoom,
    /// Its base model is not served now, or the store has failed: it has to stay pending.
    Pending,
    /// It fails.
    Failed(Failure),
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
        self.spill_beyond(self.config.resident_runs_max.saturating_sub(1));
        if self.runs.len() >= self.config.resident_runs_max && !self.runs.is_empty() {
            return Err(Refusal::NoRoom);
        }
        // What the run did before it was spilled may still be on its way to the disk, and a journal that
        // shows it as pending would not replay it.
        if !self.flush() {
            return Err(Refusal::Pending);
        }
        let runtime = self.runtime.clone();
        let store = self.store.clone();
        let record = runtime.block_on(store.run(tenant, id)).map_err(|error| lost(&error))?;
        let Some(model) = self.model_of(&record.base_digest) else {
            let note = format!(
                "its base model {} (digest {}) is not served: start the server with the same weights",
                record.base_model, record.base_digest
            );
            runtime
                .block_on(store.mark_run(tenant, id, None, Some(note)))
                .map_err(|error| lost(&error))?;
            return Err(Refusal::Pending);
        };
        let run = self.load_run(id, record, model)?;
        self.count_queued(run.queue.len());
        self.runs.insert(id.clone(), run);
        Ok(())
    }

    fn load_run(&mut self, id: &ModelId, record: RunRecord, model: usize) -> Result<Run, Refusal> {
        let runtime = self.runtime.clone();
        let store = self.store.clone();
        let key = RunKey(self.key());
        let engine = &mut self.models[model].engine;
        let mut applied = SeqId(-1);
        let mut failed = 0;
        let mut kernel_set = record.kernel_set.clone();
        // A corrupted run only answers that it is.
        if record.corrupted.is_none()
            && let Some(snapshot) =
                runtime.block_on(store.snapshot(id)).map_err(|error| lost(&error))?
        {
            let (manifest, files) =
                runtime.block_on(store.blob(&snapshot.blob)).map_err(|error| lost(&error))?;
            failed =
                run_file(&files).map_err(|error| Refusal::Failed(server_failure(error)))?.failed;
            engine
                .restore_run(key, &plain(files), WHOLE)
                .map_err(|error| Refusal::Failed(engine_failure(&error)))?;
            applied = snapshot.applied_seq;
            kernel_set = manifest.kernel_set;
        }
        let compared = kernel_set == engine.kernel_set();
        if !compared {
            let note = format!(
                "went on with the kernel set {} after {kernel_set}: replayed without comparison",
                engine.kernel_set()
            );
            tracing::warn!(run.id = %id, note);
            let marked = store.mark_run(&record.tenant, id, None, Some(note));
            runtime.block_on(marked).map_err(|error| lost(&error))?;
        }
        let mut run = Run {
            key,
            model,
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
            && let Err(refusal) = self.queue_replay(id, &mut run)
        {
            // Nothing points at what the snapshot brought into the engine.
            self.models[model].engine.drop_run(key);
            return Err(refusal);
        }
        Ok(run)
    }

    /// Queues what was completed after the snapshot.
    fn queue_replay(&self, id: &ModelId, run: &mut Run) -> Result<(), Refusal> {
        let journal = self
            .runtime
            .block_on(self.store.journal(id, run.applied))
            .map_err(|error| lost(&error))?;
        let mut settled = true;
        for entry in journal {
            settled &= entry.state != JournalState::Pending;
            if settled {
                run.count(&entry);
            }
            let JournalState::Applied(digest) = entry.state else { continue };
            if !is_replayed(entry.kind) {
                continue;
            }
            let request =
                QueuedRequest::decode(entry.kind.name(), &entry.body).map_err(|error| {
                    let message = format!("could not read the journal: {error}");
                    Refusal::Failed(server_failure(message))
                })?;
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

    /// Makes sure that a sampler is in memory.
    pub(crate) fn ensure_sampler(
        &mut self,
        tenant: &TenantId,
        id: &SamplingSessionId,
    ) -> Result<Sampler, Failure> {
        let now = self.clock.monotonic();
        if let Some(sampler) = self.samplers.get_mut(id) {
            sampler.used_at = now;
            return Ok(*sampler);
        }
        let runtime = self.runtime.clone();
        let store = self.store.clone();
        let record = runtime
            .block_on(store.sampling_session(tenant, id))
            .map_err(|error| server_failure(error.to_string()))?;
        let model = self.model_of(&record.base_digest).ok_or_else(|| {
            user_failure(format!(
                "the sampler's base model {} (digest {}) is not served: start the server with the same weights",
                record.base_model, record.base_digest
            ))
        })?;
        let files = match &record.blob {
            Some(blob) => Some(plain(
                runtime
                    .block_on(store.blob(blob))
                    .map_err(|error| server_failure(error.to_string()))?
                    .1,
            )),
            None => None,
        };
        self.make_sampler_room();
        let key = SamplerKey(self.key());
        self.models[model]
            .engine
            .create_sampler(key, files.as_ref())
            .map_err(|error| engine_failure(&error))?;
        Ok(self.keep_sampler(id.clone(), key, model))
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

    /// Whether a sampler of that name was made before.
    pub(crate) fn knows_sampler(&mut self, tenant: &TenantId, id: &SamplingSessionId) -> bool {
        self.samplers.get_mut(id).is_some()
            || self.runtime.block_on(self.store.sampling_session(tenant, id)).is_ok()
    }

    /// Drops samplers that rest, until one more has room.
    pub(crate) fn make_sampler_room(&mut self) {
        while self.samplers.len() >= self.config.resident_samplers_max {
            let Some(evicted) = self.samplers.evict() else { break };
            self.models[evicted.model].engine.drop_sampler(evicted.key);
        }
    }

    /// Takes note of a sampler that an engine holds.
    pub(crate) fn keep_sampler(
        &mut self,
        id: SamplingSessionId,
        key: SamplerKey,
        model: usize,
    ) -> Sampler {
        let sampler = Sampler { key, model, in_flight: 0, used_at: self.clock.monotonic() };
        self.samplers.insert(id, sampler);
        sampler
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
            if self.runs.get(&id).is_some_and(is_savable)
                && let Err(failure) = self.snapshot_now(&id)
            {
                let error = failure.message;
                tracing::warn!(run.id = %id, error, "spilled without a snapshot, to be replayed");
            }
            self.forget(&id);
        }
    }

    /// Takes a run out of memory; its snapshot and journal bring it back.
    pub(crate) fn forget(&mut self, id: &ModelId) {
        if let Some(run) = self.runs.remove(id) {
            self.models[run.model].engine.drop_run(run.key);
        }
    }

    /// Marks a run that its journal does not lead back to; it is never silently continued.
    pub(crate) fn corrupt(&mut self, id: &ModelId, reason: String) {
        let Some(run) = self.runs.get_mut(id) else { return };
        if run.record.corrupted.is_some() {
            return;
        }
        tracing::error!(run.id = %id, reason, "a run is corrupted");
        self.stats.corrupted_runs += 1;
        run.record.corrupted = Some(reason.clone());
        let tenant = run.record.tenant.clone();
        let marked = self.store.mark_run(&tenant, id, Some(reason), None);
        if let Err(error) = self.runtime.block_on(marked) {
            tracing::error!(run.id = %id, %error, "could not mark a run as corrupted");
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

/// A store that has failed for good leaves the request as it is.
fn lost(error: &tinsmith_store::Error) -> Refusal {
    if matches!(error, tinsmith_store::Error::Fatal) {
        return Refusal::Pending;
    }
    Refusal::Failed(server_failure(error.to_string()))
}

fn run_file(files: &BTreeMap<String, Bytes>) -> Result<RunFile, String> {
    let Some(bytes) = files.get(RUN_FILE) else { return Ok(RunFile::default()) };
    serde_json::from_slice(bytes).map_err(|error| format!("could not read {RUN_FILE}: {error}"))
}

fn plain(files: BTreeMap<String, Bytes>) -> Files {
    files.into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect()
}
