//! One file a request type: what it does to a run, and what its result looks like.

use bytes::Bytes;
use tinsmith_engine::{Backend, Output};
use tinsmith_store::{Digest, Effect};
use tinsmith_types::{ids::ModelId, queued::QueuedRequest};

use crate::{
    run::{Item, Purpose},
    worker::{Worker, server_failure},
};

pub(crate) mod create_model;
pub(crate) mod forward_backward;
pub(crate) mod load_weights;
pub(crate) mod optim_step;
pub(crate) mod sample;
pub(crate) mod save_weights;
pub(crate) mod save_weights_external;
pub(crate) mod save_weights_for_sampler;
pub(crate) mod unload_model;

/// Starts one of a run's requests; false if there is no room and it went back to its queue. Those that do
/// not run inside the engine are done at once: nothing of their run is inside it then.
pub(crate) fn start<B: Backend>(worker: &mut Worker<B>, id: &ModelId, item: Item) -> bool {
    let work = match &item.request {
        QueuedRequest::Forward(request) => forward_backward::work(worker, id, request, true),
        QueuedRequest::ForwardBackward(request) => {
            forward_backward::work(worker, id, request, request.forward_only)
        }
        QueuedRequest::OptimStep(request) => optim_step::work(worker, id, request),
        QueuedRequest::SaveWeightsForSampler(request)
            if request.path.is_none() && !worker.has_sampler_room(None) =>
        {
            worker.put_back(id, item);
            return false;
        }
        QueuedRequest::CreateModel(_)
        | QueuedRequest::LoadWeights(_)
        | QueuedRequest::SaveWeights(_)
        | QueuedRequest::SaveWeightsForSampler(_)
        | QueuedRequest::SaveWeightsExternal(_)
        | QueuedRequest::UnloadModel(_)
        | QueuedRequest::Sample(_) => {
            act(worker, id, &item);
            return true;
        }
    };
    match work {
        Ok(work) => worker.submit(id, item, work),
        Err(failure) => worker.refuse(id, item, failure),
    }
}

/// What a request counts for in the ledger once it is done.
pub(crate) fn usage(request: &QueuedRequest) -> Effect {
    if let QueuedRequest::Forward(request) | QueuedRequest::ForwardBackward(request) = request {
        return Effect::Trained(forward_backward::tokens(request));
    }
    Effect::None
}

fn act<B: Backend>(worker: &mut Worker<B>, id: &ModelId, item: &Item) {
    if let Purpose::Live(request_id) = &item.purpose {
        worker.store.started(request_id);
    }
    match &item.request {
        QueuedRequest::CreateModel(_) => create_model::run(worker, id, item),
        QueuedRequest::LoadWeights(request) => load_weights::run(worker, id, item, request),
        QueuedRequest::SaveWeights(request) => save_weights::run(worker, id, item, request),
        QueuedRequest::SaveWeightsForSampler(request) => {
            save_weights_for_sampler::run(worker, id, item, request);
        }
        QueuedRequest::SaveWeightsExternal(request) => {
            save_weights_external::run(worker, id, item, request);
        }
        QueuedRequest::UnloadModel(_) => unload_model::run(worker, id, item),
        QueuedRequest::Forward(_)
        | QueuedRequest::ForwardBackward(_)
        | QueuedRequest::OptimStep(_)
        | QueuedRequest::Sample(_) => {
            let failure = server_failure(format!("{} does not act on a run", item.kind.name()));
            worker.settle(id, item, Err(failure));
        }
    }
}

/// The result of what ran inside the engine, with the digest that a replay has to meet.
pub(crate) fn result<B: Backend>(
    worker: &Worker<B>,
    id: &ModelId,
    request: &QueuedRequest,
    output: Output,
) -> (Bytes, Option<Digest>) {
    match (output, request) {
        (
            Output::ForwardBackward { logprobs, metrics },
            QueuedRequest::Forward(request) | QueuedRequest::ForwardBackward(request),
        ) => forward_backward::result(request, &logprobs, metrics),
        (Output::OptimStep { metrics }, _) => {
            optim_step::result(metrics, worker.runs.get(id).map_or(0, |run| run.failed))
        }
        (output @ (Output::Sample(_) | Output::ForwardBackward { .. }), _) => {
            sample::result(output)
        }
    }
}
