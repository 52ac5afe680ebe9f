//! Longer ways through the API, as the founding documents walk them; the first against a live server where
//! `TINKER_BASE_URL` names one, with the model that `TINKEX_TEST_MODEL` names.

use std::time::Duration;

use serde_json::json;
use tinsmith::{
    AdamParams, Config, ErrorKind, FromStateOptions, LoraOptions, SampleRetry, SamplingOptions,
    SamplingParams, ServiceClient, TinkerPath, blocking,
    testing::{Answer, MockServer},
};

use crate::start::{datum, start, train};

const CHECKPOINT: &str = "tinker://run-123/weights/ckpt-001";
const LIMIT: Duration = Duration::from_secs(120);

#[expect(clippy::disallowed_methods, reason = "where a live server is, the environment says")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[test]
fn live_or_not_a_saved_run_is_restored_and_sampled_from() {
    let model = variable("TINKEX_TEST_MODEL").unwrap_or_else(|| "Qwen/Qwen2.5-0.5B".to_owned());
    let mock = variable("TINKER_BASE_URL").is_none().then(|| MockServer::start().unwrap());
    let config = mock.as_ref().map_or_else(Config::from_env, |mock| Ok(mock.config())).unwrap();
    let service = ServiceClient::connect_blocking(config).unwrap();
    let capabilities = service.get_server_capabilities();
    let training = service.create_lora_training_client(LoraOptions::new(&model).rank(16));
    let sampler = service.create_sampling_client(model);
    assert!(!capabilities.wait_timeout(LIMIT).unwrap().supported_models.is_empty());
    sampler.wait_timeout(LIMIT).unwrap();
    let training = training.wait_timeout(LIMIT).unwrap();
    let loss = training.forward_backward(vec![datum()], "cross_entropy");
    let step = training.optim_step(AdamParams::default());
    assert!(loss.wait_timeout(LIMIT).unwrap().loss().is_some());
    step.wait_timeout(LIMIT).unwrap();
    let saved = training.save_state("test-checkpoint").wait_timeout(LIMIT).unwrap();
    let restored =
        service.create_training_client_from_state(saved.path).wait_timeout(LIMIT).unwrap();
    assert_eq!(restored.get_info().wait_timeout(LIMIT).unwrap().lora_rank, Some(16));
    let sampler = restored.save_weights_and_get_sampling_client().wait_timeout(LIMIT).unwrap();
    let params = SamplingParams { max_tokens: Some(64), ..SamplingParams::default() };
    let sample = sampler.sample([1, 2], 1, params).wait_timeout(LIMIT).unwrap();
    assert!(!sample.sequences[0].tokens.is_empty());
    service.close().wait_timeout(LIMIT).unwrap();
}

#[tokio::test]
async fn a_checkpoint_is_loaded_step_by_step_where_the_server_is_older() {
    let (server, service) = start().await;
    let refused = Answer::status(422, "`model_id` must be a text");
    server.when("load_weights").answer(refused);
    let metadata = [("note".to_owned(), json!("again"))].into();
    let options = FromStateOptions::new().load_optimizer(true).user_metadata(metadata);
    let restored =
        service.create_training_client_from_state_with(CHECKPOINT, options).await.unwrap();
    assert_eq!(restored.info().lora_rank, Some(32));
    let steps = ["weights_info", "create_model", "load_weights"];
    let numbers = steps.map(|endpoint| server.seen(endpoint).last().unwrap().number);
    assert!(numbers.is_sorted());
    assert_eq!(server.asked("create_model", "user_metadata"), [json!({ "note": "again" })]);
    let load = &server.seen("load_weights")[1].body;
    assert_eq!((&load["seq_id"], &load["optimizer"]), (&json!(1), &json!(true)));
}

#[tokio::test]
async fn a_run_whose_weights_cannot_be_loaded_is_unloaded() {
    let (server, service) = start().await;
    server.when("load_weights").times(2).answer(Answer::status(422, "no"));
    let error = service.create_training_client_from_state(CHECKPOINT).await.unwrap_err();
    assert_eq!(error.status(), Some(422));
    let made = format!("{}:train:0", service.session_id());
    assert_eq!(server.asked("unload_model", "model_id"), [made]);
}

#[tokio::test]
async fn the_manual_way_from_a_checkpoint_to_a_run() {
    let (server, service) = start().await;
    let before = server.request_count();
    let rest = service.create_rest_client();
    assert_eq!(server.request_count(), before, "making it asks nothing");
    let path: TinkerPath = CHECKPOINT.parse().unwrap();
    let info = rest.get_weights_info_by_tinker_path(path).await.unwrap();
    let options = LoraOptions::new(info.base_model).rank(info.lora_rank.unwrap());
    let training = service.create_lora_training_client(options).await.unwrap();
    training.load_state(CHECKPOINT).await.unwrap();
    assert_eq!(server.asked("load_weights", "model_id"), [training.model_id()]);
}

#[tokio::test]
async fn samplers_are_named_or_not_and_retry_as_they_are_told() {
    let (server, service) = start().await;
    let training = train(&service).await;
    let retry = SampleRetry { enabled: false, ..SampleRetry::default() };
    let unnamed = SamplingOptions::new().retry(retry);
    let sampler = training.save_weights_and_get_sampling_client_with(unnamed).await.unwrap();
    training.save_weights_for_sampler("named").await.unwrap();
    let asked = server.seen("save_weights_for_sampler");
    assert_eq!(
        (&asked[0].body["path"], &asked[0].body["sampling_session_seq_id"]),
        (&json!(null), &json!(0))
    );
    assert_eq!(
        (&asked[1].body["path"], &asked[1].body["sampling_session_seq_id"]),
        (&json!("named"), &json!(null))
    );
    // A sample that is forgotten stays so.
    server.when("asample").result().answer(Answer::status(410, "gone"));
    let error = sampler.sample([1], 1, SamplingParams::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
}

#[tokio::test]
async fn a_client_knows_its_place_without_asking() {
    let (server, service) = start().await;
    train(&service).await;
    let training = train(&service).await;
    let before = server.request_count();
    assert_eq!(training.session_id(), service.session_id());
    assert_eq!(training.model_id(), format!("{}:train:1", service.session_id()));
    assert_eq!((training.model_seq_id(), training.info().lora_rank), (1, Some(32)));
    assert_eq!(service.config().base_url(), server.url());
    assert_eq!(server.request_count(), before);
}

#[test]
fn the_blocking_clients_wait() {
    let server = MockServer::start().unwrap();
    let service = blocking::ServiceClient::connect(server.config()).unwrap();
    let training = service.create_lora_training_client("test-model").unwrap();
    training.optim_step(AdamParams::default()).unwrap();
    let sampler = training.save_weights_and_get_sampling_client().unwrap();
    assert_eq!(sampler.sample([1], 2, SamplingParams::default()).unwrap().sequences.len(), 2);
    server.when("save_weights_for_sampler").result().always().answer(Answer::hanging());
    let late = training.inner().save_weights_and_get_sampling_client();
    let error = late.wait_timeout(Duration::from_millis(30)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiTimeout);
    assert!(error.data()["exit_reason"].is_string());
}
