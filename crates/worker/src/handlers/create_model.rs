//! Creates a run with a fresh adapter.

use tinsmith_engine::Backend;
use tinsmith_store::{Completion, Effect, Outcome};
use tinsmith_types::ids::ModelId;

use crate::{
    convert,
    finisher::Finish,
    residency::lora_spec,
    run::{Item, Purpose},
    worker::{Worker, engine_failure},
};

pub(crate) fn run<B: Backend>(worker: &mut Worker<B>, id: &ModelId, item: &Item) {
    let Some(run) = worker.runs.get(id) else { return };
    let (key, spec, model) = (run.key, lora_spec(&run.record.lora), run.model);
    if let Err(error) = worker.models[model].engine.create_run(key, spec) {
        return worker.settle(id, item, Err(engine_failure(&error)));
    }
    worker.note(id, item, true);
    let Purpose::Live(request_id) = &item.purpose else {
        worker.stats.replayed_requests += 1;
        return;
    };
    let body = serde_json::json!({ "model_id": id, "type": "create_model" });
    worker.send(Finish::Complete(Completion {
        request_id: request_id.clone(),
        outcome: Outcome::Done(convert::json(&body)),
        digest: None,
        effect: Effect::RunReady,
    }));
}
