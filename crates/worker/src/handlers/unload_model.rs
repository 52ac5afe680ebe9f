//! Takes a run out of memory; the next request brings it back.

use tinsmith_engine::Backend;
use tinsmith_types::ids::ModelId;

use crate::{convert, run::Item, worker::Worker};

pub(crate) fn run<B: Backend>(worker: &mut Worker<B>, id: &ModelId, item: &Item) {
    let body = serde_json::json!({ "model_id": id, "type": "unload_model" });
    worker.settle(id, item, Ok((convert::json(&body), None)));
    // Requests behind this one may have been sent already: then the run stays.
    if worker.runs.get(id).is_some_and(crate::run::Run::is_idle) && worker.snapshot_now(id).is_ok()
    {
        worker.forget(id);
    }
}
