//! Saves, loads and samples, as they are sent.

use proptest::prelude::*;
use serde_json::{Value, json};
use tinsmith::{
    Config, Error, PollOptions, SamplingParams, TinkerPath,
    api::Api,
    testing::{Answer, MockServer},
    wire::{
        LoadWeightsRequest, LoadWeightsResponse, SaveWeightsForSamplerResponse, SaveWeightsRequest,
        SaveWeightsResponse,
    },
};

use crate::start::{start, train};

const PATH: &str = "tinker://run-123/weights/checkpoint-001";

/// What was sent to an endpoint, without what later generations added and is off.
fn sent(server: &MockServer, endpoint: &str) -> Vec<Value> {
    let seen = server.seen(endpoint);
    let body = |seen: &tinsmith::testing::Seen| {
        let mut body = seen.body.clone();
        body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        body
    };
    seen.iter().map(body).collect()
}

#[tokio::test]
async fn a_save_and_two_loads_say_what_other_sdks_say() {
    let (server, service) = start().await;
    let training = train(&service).await;
    let run = training.model_id().to_owned();
    let saved = training.save_state("checkpoint-001").await.unwrap().path;
    assert_eq!(saved, format!("tinker://{run}/weights/checkpoint-001"));
    let save = &sent(&server, "save_weights")[0];
    assert_eq!(save["type"], "save_weights");
    assert_eq!(
        (&save["model_id"], &save["path"], &save["seq_id"]),
        (&json!(run), &json!("checkpoint-001"), &json!(1))
    );

    let loaded = training.load_state(saved.as_str()).await.unwrap();
    assert_eq!(loaded.path.as_ref(), Some(&saved));
    training.load_state_with_optimizer(saved.as_str()).await.unwrap();
    let loads = sent(&server, "load_weights");
    for (load, (optimizer, seq_id)) in loads.iter().zip([(false, 2), (true, 3)]) {
        let expected = json!({
            "model_id": run, "path": saved, "seq_id": seq_id, "optimizer": optimizer, "type": "load_weights",
        });
        assert_eq!(load, &expected, "and nothing of the name `load_optimizer_state`");
    }
}

#[tokio::test]
async fn a_save_for_sampling_is_another_thing_than_one_to_train_on_from() {
    let (server, service) = start().await;
    let training = train(&service).await;
    let run = training.model_id().to_owned();
    let named = training.save_weights_for_sampler("step-1").await.unwrap();
    assert_eq!(named.path, Some(format!("tinker://{run}/sampler_weights/step-1")));
    let sampler = training.save_weights_and_get_sampling_client().await.unwrap();
    assert!(!sampler.sampling_session_id().is_empty());
    let saves = sent(&server, "save_weights_for_sampler");
    assert_eq!(saves[0]["path"], "step-1");
    assert_eq!(saves[0].get("sampling_session_seq_id"), None, "a checkpoint");
    assert_eq!(saves[1].get("path"), None, "a session");
    assert_eq!(saves[1]["sampling_session_seq_id"], 0);
    assert!(server.seen("save_weights").is_empty());
}

#[tokio::test]
async fn a_sample_is_of_as_many_tokens_as_were_asked_for() {
    let (server, service) = start().await;
    let sampler = service.create_sampling_client("test-model").await.unwrap();
    let params = SamplingParams { max_tokens: Some(64), ..SamplingParams::default() };
    let sample = sampler.sample([1, 2], 2, params).await.unwrap();
    assert_eq!(sample.sequences.len(), 2);
    for sequence in &sample.sequences {
        assert!((1..=64).contains(&sequence.tokens.len()), "{sequence:?}");
        assert_eq!(sequence.logprobs.len(), sequence.tokens.len());
    }
    assert_eq!(sent(&server, "asample")[0]["sampling_params"]["max_tokens"], 64);
}

#[test]
fn answers_may_leave_out_what_is_optional() {
    let saved: SaveWeightsResponse = serde_json::from_value(json!({ "path": PATH })).unwrap();
    assert_eq!(saved.path, PATH);
    let typed = json!({ "path": PATH, "type": "save_weights", "more": 1 });
    assert_eq!(serde_json::from_value::<SaveWeightsResponse>(typed).unwrap(), saved);
    assert!(serde_json::from_value::<SaveWeightsResponse>(json!({})).is_err(), "a path is needed");
    let loaded: LoadWeightsResponse = serde_json::from_value(json!({})).unwrap();
    assert_eq!(loaded, LoadWeightsResponse::default());
    let sampler: SaveWeightsForSamplerResponse =
        serde_json::from_value(json!({ "sampling_session_id": "s" })).unwrap();
    assert_eq!((sampler.path, sampler.sampling_session_id), (None, Some("s".into())));
}

#[tokio::test]
async fn names_that_are_none_are_not_sent() {
    let (server, service) = start().await;
    let training = train(&service).await;
    for name in ["", "a/b"] {
        let error = training.save_state(name).await.unwrap_err();
        assert!(matches!(error, Error::Validation { .. }), "{error}");
    }
    assert!(server.seen("save_weights").is_empty());
    // They took no number.
    training.save_state("good").await.unwrap();
    assert_eq!(server.asked("save_weights", "seq_id"), [1]);
}

#[tokio::test]
async fn the_requests_can_be_sent_by_hand() {
    let (server, service) = start().await;
    let training = train(&service).await;
    let api = Api::connect(Config::new(server.url())).unwrap();
    let request = SaveWeightsRequest {
        model_id: training.model_id().into(),
        seq_id: Some(tinsmith::wire::SeqId(1)),
        path: Some("by-hand".to_owned()),
        ttl_seconds: None,
        overwrite: false,
        user_metadata: None,
    };
    let queued = api.save_weights(&request).await.unwrap();
    assert!(queued.request_id().is_some());
    let saved = queued.wait("SaveWeights", &PollOptions::default()).await.unwrap();
    assert!(saved.path.ends_with("/weights/by-hand"), "{}", saved.path);
    let only_the_model: SaveWeightsRequest =
        serde_json::from_value(json!({ "model_id": "run-123" })).unwrap();
    assert_eq!((only_the_model.path, only_the_model.seq_id), (None, None));
    let wrong = json!({ "model_id": "r", "path": PATH, "load_optimizer_state": true });
    let read: LoadWeightsRequest = serde_json::from_value(wrong).unwrap();
    assert!(!read.optimizer, "another name is not taken for it");
}

#[test]
fn a_blocking_save_has_its_limit() {
    let server = MockServer::start().unwrap();
    let service = tinsmith::blocking::ServiceClient::connect(server.config()).unwrap();
    let training = service.create_lora_training_client("test-model").unwrap();
    let limit = std::time::Duration::from_secs(30);
    assert!(training.save_weights_and_get_sampling_client_sync(limit).is_ok());
    let state = tinsmith::QueueState::Active;
    server
        .when("save_weights_for_sampler")
        .result()
        .always()
        .answer(Answer::pending(state).after(std::time::Duration::from_secs(2)));
    let short = std::time::Duration::from_millis(50);
    let error = training.save_weights_and_get_sampling_client_sync(short).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

proptest! {
    #[test]
    fn paths_of_checkpoints_are_parts_and_text(
        run in "[A-Za-z0-9:_-]{1,30}",
        kind in prop::sample::select(vec!["weights", "sampler_weights", "external_weights"]),
        name in "[A-Za-z0-9._-]{1,30}",
    ) {
        let text = format!("tinker://{run}/{kind}/{name}");
        let path: TinkerPath = text.parse().unwrap();
        prop_assert_eq!(path.run.as_str(), run);
        prop_assert_eq!(path.kind.as_str(), kind);
        prop_assert_eq!(&path.name, &name);
        prop_assert_eq!(path.to_string(), text);
    }
}
