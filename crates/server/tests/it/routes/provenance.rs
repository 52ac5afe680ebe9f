//! `stable_reinforce`: where tokens come from, and what is written down with the request.

use std::time::Duration;

use insta::assert_snapshot;
use prost::Message;
use serde_json::json;
use tinsmith_store::{Completion, Effect, Outcome, RecordedSample, SampleUsage, Target};
use tinsmith_types::{
    proto::{self, Tensor, pack, provenance_span::Span},
    queued::QueuedRequest,
};

use crate::harness::{Reply, Server};

const PROMPT: [u32; 3] = [5, 6, 7];
const DRAWN: [u32; 2] = [8, 9];
const LOGPROBS: [f32; 2] = [-0.5, -0.25];

fn span(sampled: bool, sequence: &str, offset: i64, length: i64) -> proto::ProvenanceSpan {
    let sequence_id = sequence.to_owned();
    proto::ProvenanceSpan {
        span: Some(if sampled {
            Span::SampledTokens(proto::SampledProvenanceSpan { sequence_id, offset, length })
        } else {
            Span::PromptTokens(proto::PromptProvenanceSpan { sequence_id, offset, length })
        }),
    }
}

/// The prompt and what was drawn, shifted.
fn datum(sequence: &str) -> proto::Datum {
    let chunk = proto::EncodedTextChunk { tokens: pack::pack_i32(&[5, 6, 7, 8]) };
    let inputs = [
        ("target_tokens", Tensor::dense_i64(&[6, 7, 8, 9], vec![4])),
        ("advantages", Tensor::dense_f32(&[0.0, 0.0, 1.0, 1.0], vec![4])),
    ];
    proto::Datum {
        model_input: vec![proto::Chunk { chunk: Some(proto::chunk::Chunk::EncodedText(chunk)) }],
        loss_fn_inputs: inputs.map(|(name, tensor)| (name.to_owned(), tensor)).into(),
        model_input_spans: vec![span(false, sequence, 0, 3), span(true, sequence, 0, 1)],
        loss_fn_input_spans: vec![
            span(false, sequence, 1, 2),
            span(true, "", 0, 0),
            span(true, sequence, 0, 1),
            span(true, sequence, 1, 1),
        ],
    }
}

/// A server with a sampled sequence, its session and its run.
struct World {
    server: Server,
    model: String,
    sequence: String,
    seq_id: i32,
}

impl World {
    async fn new() -> Self {
        let server = Server::without_worker();
        let (session, model) = server.run().await;
        let body =
            json!({"session_id": session, "sampling_session_seq_id": 0, "base_model": "nano"});
        let sampler =
            server.post("create_sampling_session", body).await.text("sampling_session_id");
        let body = json!({
            "sampling_session_id": sampler, "seq_id": 0, "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
            "sampling_params": {"max_tokens": 2}, "record_stability_info": true,
        });
        let sample = server.post("asample", body).await;
        let sequence = sample.json()["sample_sequence_ids"][0].as_str().unwrap().to_owned();
        let world = Self { server, model, sequence, seq_id: 0 };
        for claimed in world.claim().await {
            let effect = match claimed.target {
                Target::Sampler(sampler, _) => {
                    let sequences = vec![(DRAWN.to_vec(), LOGPROBS.to_vec())];
                    let drawn = RecordedSample { sampler, prompt: PROMPT.to_vec(), sequences };
                    Effect::Sampled(SampleUsage::default(), Some(Box::new(drawn)))
                }
                Target::Run(..) => Effect::RunReady,
            };
            let outcome = Outcome::Done("{}".into());
            let request_id = claimed.request_id;
            let completion = Completion { request_id, outcome, digest: None, effect };
            world.server.store.complete(vec![completion]).await.remove(0).unwrap();
        }
        world
    }

    async fn claim(&self) -> Vec<tinsmith_store::Claimed> {
        self.server.store.claim(10, Duration::ZERO).await.unwrap()
    }

    async fn send(&self, data: Vec<proto::Datum>) -> Reply {
        let request = proto::ForwardBackwardRequest {
            model_id: self.model.clone(),
            seq_id: self.seq_id,
            data,
            loss_fn: "stable_reinforce".to_owned(),
            loss_fn_config: [("kl_coeff".to_owned(), 0.1)].into(),
            ..Default::default()
        };
        let headers = [("content-type", "application/x-protobuf")];
        self.server.post_bytes("forward_backward", &headers, request.encode_to_vec()).await
    }

    /// What a changed datum's future says.
    async fn fault(&mut self, change: impl FnOnce(&mut proto::Datum)) -> String {
        self.seq_id += 1;
        let mut changed = datum(&self.sequence);
        change(&mut changed);
        let id = self.send(vec![datum(&self.sequence), changed]).await.text("request_id");
        let reply = self.server.result(&id, "application/json").await;
        assert_eq!(reply.json()["category"], "user", "{}", reply.line());
        reply.text("error").replace(&self.sequence, "SEQUENCE")
    }
}

#[tokio::test]
async fn recorded_logprobs_are_written_down_with_the_request() {
    let mut world = World::new().await;
    world.seq_id = 1;
    // What the client says of them is no matter.
    let mut sent = datum(&world.sequence);
    sent.loss_fn_inputs.insert("logprobs".to_owned(), Tensor::dense_f32(&[9.0; 4], vec![4]));
    let first = world.send(vec![sent.clone()]).await;
    let note = first.headers["x-deprecation-note"].to_str().unwrap();
    assert!(note.starts_with("stable_reinforce: the formula is this server's own"), "{note}");
    assert_ne!(first.headers["x-deprecation-level"], "error");
    let claimed = world.claim().await.remove(0);
    let request = QueuedRequest::decode("forward_backward", &claimed.body).unwrap();
    let QueuedRequest::ForwardBackward(request) = request else { panic!("{request:?}") };
    let floats =
        |name: &str| pack::unpack_f32(request.data[0].loss_fn_inputs[name].stored()).unwrap();
    assert_eq!(floats("logprobs"), [0.0, 0.0, -0.5, -0.25]);
    assert_eq!(floats("sampled"), [0.0, 0.0, 1.0, 1.0]);
    assert_eq!(floats("advantages"), [0.0, 0.0, 1.0, 1.0]);
    // A retry repeats what was sent.
    let retry = world.send(vec![sent]).await;
    assert_eq!(retry.text("request_id"), first.text("request_id"));
    let other = world.send(vec![datum(&world.sequence)]).await;
    assert_eq!(other.status, 422, "{}", other.line());
}

#[tokio::test]
async fn spans_that_do_not_fit_fail_their_future() {
    let mut world = World::new().await;
    let sequence = world.sequence.clone();
    assert_snapshot!(world.fault(|datum| {
        datum.model_input_spans.clear();
        datum.loss_fn_input_spans.clear();
    }).await, @"data[1] says nothing of where its tokens come from; stable_reinforce needs model_input_spans and loss_fn_input_spans (Datum.with_provenance)");
    assert_snapshot!(world.fault(|datum| datum.model_input_spans.clear()).await, @"data[1].model_input_spans cover 0 tokens, and there are 4");
    assert_snapshot!(world.fault(|datum| datum.loss_fn_input_spans.clear()).await, @"data[1].loss_fn_input_spans cover 0 tokens, and there are 4");
    assert_snapshot!(world.fault(|datum| drop(datum.loss_fn_input_spans.pop())).await, @"data[1].loss_fn_input_spans cover 3 tokens, and there are 4");
    assert_snapshot!(world.fault(|datum| {
        datum.loss_fn_input_spans[3] = span(true, "smp-unknown:0", 1, 1);
    }).await, @r#"data[1].loss_fn_input_spans[3]: nothing is recorded of the sequence "smp-unknown:0": sample with record_stability_info, and train before the sampler's session ends and before newer samples take the room"#);
    assert_snapshot!(world.fault(|datum| {
        datum.loss_fn_input_spans[3] = span(true, &sequence, 2, 1);
    }).await, @r#"data[1].loss_fn_input_spans[3] goes from 2 on over 1 of the sampled tokens of "SEQUENCE", which has 2"#);
    assert_snapshot!(world.fault(|datum| {
        datum.loss_fn_input_spans[3] = span(false, &sequence, i64::MAX, 1);
    }).await, @r#"data[1].loss_fn_input_spans[3] goes from 9223372036854775807 on over 1 of the prompt tokens of "SEQUENCE", which has 3"#);
    assert_snapshot!(world.fault(|datum| {
        datum.loss_fn_input_spans[3] = span(true, &sequence, 0, 1);
    }).await, @"data[1].loss_fn_inputs.target_tokens[3] is the token 9, and data[1].loss_fn_input_spans[3] says that it is 8");
    assert_snapshot!(world.fault(|datum| {
        datum.model_input_spans[1] = span(true, &sequence, -1, 1);
    }).await, @"data[1].model_input_spans[1].offset is -1; it must be at least 0");
    assert_snapshot!(world.fault(|datum| {
        datum.model_input_spans[1] = span(true, &sequence, 0, i64::MAX);
    }).await, @"data[1].model_input_spans cover 9223372036854775810 or more tokens, and there are 4");
    assert_snapshot!(world.fault(|datum| {
        datum.model_input_spans[0] = proto::ProvenanceSpan { span: None };
    }).await, @"data[1].model_input_spans[0] is of an unknown kind");
    assert_snapshot!(world.fault(|datum| drop(datum.loss_fn_inputs.remove("advantages"))).await, @"data[1].loss_fn_inputs.advantages is missing; stable_reinforce needs it");
}
