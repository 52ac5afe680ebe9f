//! Saves weights to sample from: under a name, or as a new sampling session that is ready at once. One in flight
//! moves all the others of its run.

use tinsmith_engine::{Backend, Parts};
use tinsmith_store::{BlobId, CheckpointKind, NewSamplingSession};
use tinsmith_types::{
    ids::{ModelId, RequestId, SamplingSessionId},
    weights::{SamplerKind, SaveWeightsForSamplerRequest},
};

use crate::{
    convert,
    finisher::{Finish, StagedEffect},
    run::{Item, Purpose},
    worker::{Worker, user_failure},
};

pub(crate) fn run<B: Backend>(
    worker: &mut Worker<B>,
    id: &ModelId,
    item: &Item,
    request: &SaveWeightsForSamplerRequest,
) {
    let Purpose::Live(request_id) = &item.purpose else { return };
    if let Some(name) = &request.path
        && let Some(failure) = worker.taken(id, CheckpointKind::SamplerWeights, name)
    {
        return worker.settle(id, item, Err(failure));
    }
    let files = match worker.export(id, Parts { optimizer: false, gradient: false }) {
        Ok(files) => files,
        Err(failure) => return worker.settle(id, item, Err(failure)),
    };
    let (body, effect) = match &request.path {
        Some(name) => named(worker, id, request, name),
        None => match unnamed(worker, id, item, request, request_id) {
            Ok(made) => made,
            Err(failure) => return worker.settle(id, item, Err(failure)),
        },
    };
    worker.note(id, item, true);
    worker.send(Finish::stage(files, request_id, &body, effect));
}

fn named<B: Backend>(
    worker: &Worker<B>,
    id: &ModelId,
    request: &SaveWeightsForSamplerRequest,
    name: &str,
) -> (serde_json::Value, StagedEffect) {
    let path = format!("tinker://{id}/sampler_weights/{name}");
    let new = convert::checkpoint(
        worker,
        id,
        CheckpointKind::SamplerWeights,
        name.to_owned(),
        request.ttl_seconds,
        request.user_metadata.as_ref(),
    );
    let body = serde_json::json!({ "path": path, "type": "save_weights_for_sampler" });
    (body, StagedEffect::Checkpoint(Box::new(new)))
}

/// The engine copies the adapter in memory, so that the first token does not wait for the disk twice.
fn unnamed<B: Backend>(
    worker: &mut Worker<B>,
    id: &ModelId,
    item: &Item,
    request: &SaveWeightsForSamplerRequest,
    request_id: &RequestId,
) -> Result<(serde_json::Value, StagedEffect), tinsmith_store::Failure> {
    let Some(run) = worker.runs.get(id) else {
        return Err(crate::worker::server_failure("the run is gone".to_owned()));
    };
    let record = run.record.clone();
    let (model, run_key) = (run.model, run.key);
    let number = request
        .sampling_session_seq_id
        .map_or_else(|| format!("{}-{}", id.as_str(), item.seq_id), |number| number.to_string());
    let session = &record.session_id;
    let sampler = SamplingSessionId(format!("{session}:sample:{number}"));
    if worker.knows_sampler(&record.tenant, &sampler) {
        let message = format!("sampling session {sampler} exists already with another content");
        return Err(user_failure(message));
    }
    worker.make_sampler_room();
    let scope = record.tenant.as_str();
    let key = worker.make_sampler(|worker, key| {
        worker.models[model].engine.snapshot_sampler(key, scope, run_key)
    })?;
    let follows = (request.kind == SamplerKind::Inflight).then(|| id.clone());
    let kept = worker.keep_sampler(sampler.clone(), key, (model, follows.clone()));
    if follows.is_some() {
        worker.move_followers(id, &kept)?;
    }
    let body = serde_json::json!({
        "sampling_session_id": sampler,
        "type": "save_weights_for_sampler",
    });
    let new = NewSamplingSession {
        id: sampler,
        session_id: record.session_id,
        base_model: record.base_model,
        base_digest: record.base_digest,
        model_path: None,
        blob: None::<BlobId>,
        follows,
        digest: convert::digest(request_id.as_str().as_bytes()),
    };
    Ok((body, StagedEffect::SamplingSession(Box::new(new))))
}
