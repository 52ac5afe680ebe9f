//! A worker that computes nothing: results have the right shapes and made-up numbers.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost::Message;
use serde_json::json;
use tinsmith_store::{
    BlobId, CheckpointKind, Claimed, Completion, Effect, LoraRecord, Manifest, NewCheckpoint,
    NewSamplingSession, Outcome, SampleUsage, Store, Target,
};
use tinsmith_types::{
    ids::{ModelId, SamplingSessionId, SeqId},
    path,
    proto::{self, pack},
    queued::QueuedRequest,
    weights::SamplerKind,
};

/// Works on everything until it is aborted.
pub(crate) async fn run(store: Store) {
    loop {
        let claimed = store.claim(16, Duration::from_secs(1)).await.expect("the store is open");
        let mut completions = Vec::new();
        for claimed in claimed {
            completions.push(complete(&store, claimed).await);
        }
        for result in store.complete(completions).await {
            result.expect("completions are sound");
        }
    }
}

async fn complete(store: &Store, claimed: Claimed) -> Completion {
    let kind = serde_json::to_value(claimed.kind).expect("a name");
    let kind = kind.as_str().expect("a name").to_owned();
    let request = QueuedRequest::decode(&kind, &claimed.body).expect("what was encoded");
    let (outcome, effect) = match (request, &claimed.target) {
        (QueuedRequest::Sample(request), _) => {
            let sampled = 2 * u64::from(request.num_samples);
            let used = SampleUsage { prefill: 3, prefill_cached: 1, sampled };
            (sample(request.num_samples), Effect::Sampled(used, None))
        }
        (QueuedRequest::CreateModel(_), Target::Run(model, _)) => (
            json!({"type": "create_model", "model_id": model}).to_string().into(),
            Effect::RunReady,
        ),
        (QueuedRequest::LoadWeights(request), Target::Run(model, seq_id)) => {
            let effect = if *seq_id == SeqId(0) { Effect::RunReady } else { Effect::None };
            (
                json!({"type": "load_weights", "path": request.path, "model_id": model})
                    .to_string()
                    .into(),
                effect,
            )
        }
        (QueuedRequest::Forward(request) | QueuedRequest::ForwardBackward(request), _) => {
            (forward_backward(&request), Effect::Trained(1000))
        }
        (QueuedRequest::OptimStep(_), _) => {
            (json!({"type": "optim_step", "metrics": {}}).to_string().into(), Effect::None)
        }
        (QueuedRequest::UnloadModel(request), _) => {
            let body = json!({"type": "unload_model", "model_id": request.model_id});
            (body.to_string().into(), Effect::None)
        }
        (QueuedRequest::SaveWeights(request), Target::Run(model, seq_id)) => {
            let name = request.path.expect("the server makes a name up");
            let notes = request.user_metadata.unwrap_or_default();
            let notes = notes.into_iter().map(|(k, v)| (k, v.as_str().unwrap().to_owned()));
            save(store, model, *seq_id, CheckpointKind::Weights, (name, notes.collect())).await
        }
        (QueuedRequest::SaveWeightsForSampler(request), Target::Run(model, seq_id)) => {
            let follows = request.kind == SamplerKind::Inflight;
            match (request.path, request.sampling_session_seq_id) {
                (Some(name), _) => {
                    let kind = CheckpointKind::SamplerWeights;
                    save(store, model, *seq_id, kind, (name, BTreeMap::new())).await
                }
                (None, Some(number)) => sampler(store, &claimed, *seq_id, number, follows).await,
                (None, None) => panic!("refused at the door"),
            }
        }
        (QueuedRequest::SaveWeightsExternal(request), Target::Run(model, seq_id)) => {
            let name = request.path.expect("the server makes a name up");
            let kind = CheckpointKind::ExternalWeights;
            save(store, model, *seq_id, kind, (name, BTreeMap::new())).await
        }
        (request, Target::Sampler(..)) => panic!("{request:?} is no sample"),
    };
    let request_id = claimed.request_id;
    Completion { request_id, outcome: Outcome::Done(outcome), digest: None, effect }
}

fn sample(num_samples: u32) -> Bytes {
    let sequence = proto::SampledSequence {
        stop_reason: proto::StopReason::Length.into(),
        tokens: pack::pack_i32(&[7, 8]),
        logprobs: Some(pack::pack_f32(&[-0.5, -0.25])),
        topk_sampled_logprobs: None,
    };
    let sequences = (0..num_samples).map(|_| sequence.clone()).collect();
    proto::SampleResponse { sequences, ..Default::default() }.encode_to_vec().into()
}

fn forward_backward(request: &proto::ForwardBackwardRequest) -> Bytes {
    let shapes = request.data.iter().map(|datum| &datum.loss_fn_inputs["target_tokens"].shape);
    let cells = |shape: &Vec<i64>| usize::try_from(shape.iter().product::<i64>()).unwrap();
    let logprobs: Vec<_> = shapes.clone().map(|shape| vec![-0.5_f32; cells(shape)]).collect();
    let arrays = logprobs.iter().map(Vec::as_slice).zip(shapes.map(|shape| &shape[1..]));
    let output = proto::ForwardBackwardOutput {
        loss_fn_output_type: "ArrayRecord".to_owned(),
        loss_fn_outputs: proto::ArrayRecord::of_f32("logprobs", arrays),
        metrics: BTreeMap::from([("loss:sum".to_owned(), 1.5)]),
    };
    output.encode_to_vec().into()
}

async fn stage(store: &Store, model: &ModelId, seq_id: SeqId) -> (BlobId, u64) {
    let manifest = Manifest {
        format: 1,
        base_model: "nano".to_owned(),
        base_digest: "d1".to_owned(),
        lora: LoraRecord {
            rank: 8,
            seed: 7,
            train_attn: true,
            train_mlp: true,
            train_unembed: true,
        },
        alpha: 32,
        kernel_set: "f32.1".to_owned(),
        model_id: model.clone(),
        applied_seq: seq_id,
        optimizer: true,
        optimizer_config: json!({"type": "adamw"}),
        files: BTreeMap::new(),
    };
    let files = vec![("adapter_model.safetensors".to_owned(), Bytes::from_static(b"weights"))];
    store.stage(manifest, files).await.expect("a temporary directory")
}

async fn save(
    store: &Store,
    model: &ModelId,
    seq_id: SeqId,
    kind: CheckpointKind,
    (name, user_metadata): (String, BTreeMap<String, String>),
) -> (Bytes, Effect) {
    let (blob, size_bytes) = stage(store, model, seq_id).await;
    let wire_kind = match kind {
        CheckpointKind::Weights => path::CheckpointKind::Weights,
        CheckpointKind::SamplerWeights => path::CheckpointKind::SamplerWeights,
        CheckpointKind::ExternalWeights => path::CheckpointKind::ExternalWeights,
    };
    let path = path::CheckpointPath { run: model.clone(), kind: wire_kind, name: name.clone() };
    let new = NewCheckpoint {
        model_id: model.clone(),
        kind,
        name,
        blob,
        size_bytes,
        expires_at: None,
        user_metadata,
        overwrite: false,
    };
    let kind = match kind {
        CheckpointKind::Weights => "save_weights",
        CheckpointKind::SamplerWeights => "save_weights_for_sampler",
        CheckpointKind::ExternalWeights => "save_weights_external",
    };
    (json!({"type": kind, "path": path}).to_string().into(), Effect::Checkpoint(new))
}

async fn sampler(
    store: &Store,
    claimed: &Claimed,
    seq_id: SeqId,
    number: i64,
    follows: bool,
) -> (Bytes, Effect) {
    let Target::Run(model, _) = &claimed.target else { panic!("{claimed:?} has no run") };
    let run = store.run(&claimed.tenant, model).await.expect("its run");
    let (blob, _) = stage(store, model, seq_id).await;
    let new = NewSamplingSession {
        id: SamplingSessionId::of(&run.session_id, number),
        session_id: run.session_id,
        base_model: run.base_model,
        base_digest: run.base_digest,
        model_path: None,
        blob: Some(blob),
        follows: follows.then(|| model.clone()),
        digest: [0; 32],
    };
    let result = json!({"type": "save_weights_for_sampler", "sampling_session_id": new.id});
    (result.to_string().into(), Effect::SamplingSession(new))
}
