//! Saves a training checkpoint: weights and optimizer, without the pending gradient.

use tinsmith_engine::{Backend, Parts};
use tinsmith_store::CheckpointKind;
use tinsmith_types::{ids::ModelId, weights::SaveWeightsRequest};

use crate::{
    convert,
    finisher::{Finish, StagedEffect},
    run::{Item, Purpose},
    worker::Worker,
};

pub(crate) fn run<B: Backend>(
    worker: &mut Worker<B>,
    id: &ModelId,
    item: &Item,
    request: &SaveWeightsRequest,
) {
    let Purpose::Live(request_id) = &item.purpose else { return };
    let name = request.path.clone().unwrap_or_else(|| format!("seq-{}", item.seq_id));
    if !request.overwrite
        && let Some(failure) = worker.taken(id, CheckpointKind::Weights, &name)
    {
        return worker.settle(id, item, Err(failure));
    }
    let files = match worker.export(id, Parts { optimizer: true, gradient: false }) {
        Ok(files) => files,
        Err(failure) => return worker.settle(id, item, Err(failure)),
    };
    worker.note(id, item, true);
    let path = format!("tinker://{id}/weights/{name}");
    let new = convert::checkpoint(
        worker,
        id,
        CheckpointKind::Weights,
        name,
        request.ttl_seconds,
        request.user_metadata.as_ref(),
    );
    let new = tinsmith_store::NewCheckpoint { overwrite: request.overwrite, ..new };
    let body = serde_json::json!({ "path": path, "type": "save_weights" });
    worker.send(Finish::stage(files, request_id, &body, StagedEffect::Checkpoint(Box::new(new))));
}
