//! One step of a run's optimizer.

use std::collections::BTreeMap;

use bytes::Bytes;
use tinsmith_engine::{AdamParams, Backend, Work};
use tinsmith_store::{Digest, Failure};
use tinsmith_types::{ids::ModelId, training::OptimStepRequest};

use crate::{
    convert,
    worker::{Worker, server_failure, user_failure},
};

/// Requests that failed since the last step, and contributed nothing to this one.
const FAILED_METRIC: &str = "failed_requests:sum";

pub(crate) fn work<B: Backend>(
    worker: &Worker<B>,
    id: &ModelId,
    request: &OptimStepRequest,
) -> Result<Work, Failure> {
    let run = worker.runs.get(id).ok_or_else(|| server_failure("the run is gone".to_owned()))?;
    let Some(adam) = &request.adam_params else {
        return Err(user_failure(
            "adam_params: is missing, the run's optimizer is adamw".to_owned(),
        ));
    };
    let params = AdamParams {
        learning_rate: adam.learning_rate,
        beta1: adam.beta1,
        beta2: adam.beta2,
        eps: adam.eps,
        weight_decay: adam.weight_decay,
        grad_clip_norm: adam.grad_clip_norm,
    };
    Ok(Work::OptimStep { run: run.key, params })
}

/// `{"type": "optim_step", "metrics": …}`. What others did to the run's door is no part of the digest.
pub(crate) fn result(mut metrics: BTreeMap<String, f64>, failed: u64) -> (Bytes, Option<Digest>) {
    let digest = convert::digest(&convert::json(&serde_json::json!({ "metrics": metrics })));
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    metrics.insert(FAILED_METRIC.to_owned(), failed as f64);
    let result = serde_json::json!({ "type": "optim_step", "metrics": metrics });
    (convert::json(&result), Some(digest))
}
