//! Loads a checkpoint: into a run, or as the beginning of a new one.

use tinsmith_engine::Backend;
use tinsmith_store::{CheckpointKind, Failure};
use tinsmith_types::{
    ids::{ModelId, SeqId},
    path::{self, CheckpointPath},
    weights::LoadWeightsRequest,
};

use crate::{
    finisher::{Finish, StagedEffect},
    run::{Item, Purpose},
    worker::{Worker, engine_failure, server_failure, user_failure},
};

pub(crate) fn run<B: Backend>(
    worker: &mut Worker<B>,
    id: &ModelId,
    item: &Item,
    request: &LoadWeightsRequest,
) {
    let Purpose::Live(request_id) = &item.purpose else { return };
    if let Err(failure) = load(worker, id, item, request) {
        return worker.settle(id, item, Err(failure));
    }
    worker.note(id, item, true);
    let files = match worker.state(id) {
        Ok(files) => files,
        Err(failure) => {
            // The engine holds what the disk does not: the load runs again at the next start.
            let reason = format!("loaded weights could not be saved: {}", failure.message);
            return worker.give_up(id, reason);
        }
    };
    let body = serde_json::json!({ "path": request.path, "model_id": id, "type": "load_weights" });
    worker.send(Finish::stage(files, request_id, &body, StagedEffect::Loaded(item.seq_id)));
    worker.saved(id);
}

fn load<B: Backend>(
    worker: &mut Worker<B>,
    id: &ModelId,
    item: &Item,
    request: &LoadWeightsRequest,
) -> Result<(), Failure> {
    let run = worker.runs.get(id).ok_or_else(|| server_failure("the run is gone".to_owned()))?;
    let (key, model, tenant) = (run.key, run.model, run.record.tenant.clone());
    let path: CheckpointPath =
        request.path.parse().map_err(|error| user_failure(format!("path: {error}")))?;
    let kind = match path.kind {
        path::CheckpointKind::Weights => CheckpointKind::Weights,
        path::CheckpointKind::SamplerWeights => CheckpointKind::SamplerWeights,
        path::CheckpointKind::ExternalWeights => CheckpointKind::ExternalWeights,
    };
    let reader = request.read_as.as_ref().unwrap_or(&tenant);
    // The save may stand right before it, on its way to the disk.
    worker.flush();
    let found = worker.store.checkpoint(reader, &path.run, kind, &path.name);
    let checkpoint = worker
        .runtime
        .block_on(found)
        .map_err(|error| user_failure(format!("{}: {error}", request.path)))?;
    let (manifest, files) = worker.blob(&checkpoint.blob)?;
    let place = (&path.run, kind, path.name.as_str());
    let noted = worker.store.audit_read((&checkpoint.tenant, &tenant), place, "load");
    if let Err(error) = worker.runtime.block_on(noted) {
        tracing::warn!(run.id = %id, checkpoint = %path, %error, "a read is not in the audit log");
    }
    if request.optimizer && !manifest.optimizer {
        let message = format!(
            "{} holds no optimizer state: it is sampler weights, or was imported",
            request.path
        );
        return Err(user_failure(message));
    }
    let engine = &mut worker.models[model].engine;
    let parts = tinsmith_engine::Parts { optimizer: request.optimizer, gradient: false };
    let loaded = if item.seq_id == SeqId(0) {
        engine.restore_run(key, &files, parts)
    } else {
        engine.load_run(key, &files, request.optimizer)
    };
    loaded.map_err(|error| engine_failure(&error))
}
