//! Clients are made beside each other, with what was asked for, and fail as values: the tests of the founding
//! documents for asynchronous creation.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use tinsmith::{
    AdamParams, ApiFuture, Error, ErrorKind, FromStateOptions, LoraOptions, SamplingClient,
    SamplingOptions, SamplingParams, ServiceClient, TrainingClient, await_many,
    testing::{Answer, MockServer},
    try_await_many,
};

use crate::start::{datum, start, start_with, train};

const CHECKPOINT: &str = "tinker://run-123/weights/ckpt-001";

#[tokio::test]
async fn creation_returns_before_the_server_answers() {
    let (server, service) = start().await;
    server.when("create_model").answer(Answer::hanging());
    server.when("load_weights").answer(Answer::hanging());
    server.when("create_sampling_session").answer(Answer::hanging());
    let lora: ApiFuture<TrainingClient> = service.create_lora_training_client_async("test-model");
    let state: ApiFuture<TrainingClient> =
        service.create_training_client_from_state_async(CHECKPOINT);
    let sampler: ApiFuture<SamplingClient> = service.create_sampling_client_async("model-a");
    // Nobody has polled the futures, and the requests are on their way.
    for endpoint in ["create_model", "load_weights", "create_sampling_session"] {
        assert!(server.wait_for(endpoint, 1, Duration::from_secs(10)), "{endpoint}");
    }
    assert!(!lora.is_finished() && !state.is_finished() && !sampler.is_finished());
}

#[tokio::test]
async fn a_created_client_can_be_used() {
    let (_server, service) = start().await;
    let training = service.create_lora_training_client("test-model").await.unwrap();
    assert_eq!(training.base_model(), "test-model");
    assert!(training.model_id().starts_with(training.session_id().as_str()));
    training.optim_step(AdamParams::default()).await.unwrap();
    assert!(service.is_alive());
}

#[tokio::test]
async fn a_model_that_is_not_there_is_an_error_value() {
    let (_server, service) = start().await;
    let error = service.create_lora_training_client("invalid-model").await.unwrap_err();
    assert_eq!((error.status(), error.is_user(), error.is_retryable()), (Some(400), true, false));
    assert!(error.to_string().contains("invalid-model"), "{error}");
    let error = service.create_sampling_client("invalid-model").await.unwrap_err();
    assert_eq!(error.status(), Some(400));
    assert!(service.is_alive());
}

#[tokio::test]
async fn options_reach_the_server_as_they_are() {
    let (server, service) = start().await;
    let metadata = BTreeMap::from([("run".to_owned(), json!("a"))]);
    let options = LoraOptions::new("test-model").rank(16).seed(42);
    let options = options.train_mlp(true).train_attn(false).train_unembed(false);
    let training =
        service.create_lora_training_client(options.user_metadata(metadata)).await.unwrap();
    let asked = &server.seen("create_model")[0].body;
    let lora = json!({ "rank": 16, "seed": 42, "train_mlp": true, "train_attn": false,
        "train_unembed": false });
    assert_eq!((&asked["lora_config"], &asked["user_metadata"]), (&lora, &json!({ "run": "a" })));
    assert_eq!(training.info().model_data.lora_rank, Some(16));
    assert_eq!(training.get_info().await.unwrap().lora_rank, Some(16));
}

#[tokio::test]
async fn the_rank_is_32_unless_another_is_asked_for() {
    let (server, service) = start().await;
    train(&service).await;
    assert_eq!(server.seen("create_model")[0].body["lora_config"]["rank"], 32);
}

#[tokio::test]
async fn an_empty_model_name_does_not_leave_the_client() {
    let (server, service) = start().await;
    let error = service.create_lora_training_client("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Validation);
    assert!(server.seen("create_model").is_empty());
}

#[tokio::test]
async fn clients_of_three_ranks_are_made_in_parallel() {
    let (_server, service) = start().await;
    let futures = [("model-a", 8), ("model-b", 16), ("model-c", 32)].map(|(model, rank)| {
        service.create_lora_training_client_async(LoraOptions::new(model).rank(rank))
    });
    let clients = try_await_many(futures.into(), Some(Duration::from_secs(10))).await.unwrap();
    let of = |client: &TrainingClient| {
        (client.model_id().to_owned(), client.base_model().to_owned(), client.info().lora_rank)
    };
    let clients: Vec<_> = clients.iter().map(of).collect();
    let described: Vec<_> =
        clients.iter().map(|(_, model, rank)| (model.as_str(), rank.unwrap())).collect();
    assert_eq!(described, [("model-a", 8), ("model-b", 16), ("model-c", 32)]);
    let ids: std::collections::BTreeSet<_> = clients.iter().map(|(id, _, _)| id).collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn a_checkpoint_becomes_a_client() {
    let (server, service) = start().await;
    server.add_checkpoint(CHECKPOINT);
    let restored = service.create_training_client_from_state_async(CHECKPOINT).await.unwrap();
    restored.forward_backward(vec![datum()], "cross_entropy").await.unwrap();
    let asked = &server.seen("load_weights")[0].body;
    assert_eq!((&asked["path"], &asked["optimizer"]), (&json!(CHECKPOINT), &json!(false)));
}

#[tokio::test]
async fn a_path_that_is_none_is_an_error_value_and_not_sent() {
    let (server, service) = start().await;
    let path = "tinker://invalid/path";
    let error = service.create_training_client_from_state_async(path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Validation);
    assert!(error.to_string().contains(path), "{error}");
    assert!(server.seen("load_weights").is_empty());
    // One that could be, and is not there.
    let path = "tinker://run-1/weights/invalid-name";
    let error = service.create_training_client_from_state_async(path).await.unwrap_err();
    assert_eq!(error.status(), Some(404));
}

#[tokio::test]
async fn the_optimizer_is_loaded_where_asked() {
    let (server, service) = start().await;
    let options = FromStateOptions::new().load_optimizer(true);
    service.create_training_client_from_state_with(CHECKPOINT, options).await.unwrap();
    service.create_training_client_from_state_with_optimizer_async(CHECKPOINT).await.unwrap();
    assert_eq!(server.asked("load_weights", "optimizer"), [true, true]);
}

#[tokio::test]
async fn three_checkpoints_are_loaded_in_parallel() {
    let (server, service) = start().await;
    let paths = [1, 2, 3].map(|run| format!("tinker://run-{run}/weights/ckpt-001"));
    paths.iter().for_each(|path| server.add_checkpoint(path));
    let futures = paths.map(|path| service.create_training_client_from_state_async(path));
    let results = await_many(futures.into(), None).await;
    assert!(results.len() == 3 && results.iter().all(Result::is_ok), "{results:?}");
}

#[tokio::test]
async fn different_operations_are_awaited_together() {
    let (_server, service) = start().await;
    let (capabilities, sampler, training, restored) = tokio::join!(
        service.get_server_capabilities_async(),
        service.create_sampling_client_async("model-a"),
        service.create_lora_training_client_async(LoraOptions::new("model-b").rank(16)),
        service.create_training_client_from_state_async(CHECKPOINT),
    );
    assert_eq!(capabilities.unwrap().supported_models.len(), 2);
    assert_eq!(sampler.unwrap().get_base_model().await.unwrap(), "model-a");
    assert_eq!(training.unwrap().base_model(), "model-b");
    assert_eq!(restored.unwrap().info().is_lora, Some(true));
}

/// Different results in one list.
#[derive(Debug)]
enum Made {
    Training(TrainingClient),
    Sampling(SamplingClient),
}

#[tokio::test]
async fn one_failure_leaves_the_others_alone() {
    let (_server, service) = start().await;
    let futures = vec![
        service.create_lora_training_client("valid-model").map(Made::Training),
        service.create_training_client_from_state("tinker://invalid/path").map(Made::Training),
        service.create_sampling_client("valid-model").map(Made::Sampling),
    ];
    let results = await_many(futures, Some(Duration::from_secs(10))).await;
    let [Ok(Made::Training(training)), Err(Error::Validation { .. }), Ok(Made::Sampling(sampler))] =
        &results[..]
    else {
        panic!("{results:?}")
    };
    assert_eq!(training.base_model(), "valid-model");
    assert!(sampler.sampling_session_id().contains(":sample:"));
}

#[tokio::test]
async fn either_a_model_or_a_path_makes_a_sampler() {
    let (server, service) = start().await;
    let both = SamplingOptions::new().base_model("m").model_path("tinker://r/weights/a");
    for options in [both, SamplingOptions::new()] {
        let error = service.create_sampling_client(options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Validation);
    }
    // Both kinds of paths can be sampled from.
    for path in ["tinker://run-1/weights/0010", "tinker://run-1/sampler_weights/0010"] {
        service.create_sampling_client(path).await.unwrap();
    }
    let asked = server.asked("create_sampling_session", "model_path");
    assert_eq!(asked, ["tinker://run-1/weights/0010", "tinker://run-1/sampler_weights/0010"]);
    SamplingClient::create(&service, "model-a").await.unwrap();
}

#[tokio::test]
async fn what_was_saved_is_restored_with_its_shape() {
    let (_server, service) = start().await;
    let options = LoraOptions::new("test-model").rank(16);
    let training = service.create_lora_training_client(options).await.unwrap();
    let saved = training.save_state("test-checkpoint").await.unwrap();
    let restored = service.create_training_client_from_state_async(saved.path).await.unwrap();
    let info = restored.get_info().await.unwrap();
    assert_eq!(info.model_data.lora_rank, Some(16));
    assert_ne!(restored.model_id(), training.model_id());
}

#[tokio::test]
async fn a_workflow_of_four_phases() {
    let (server, service) = start().await;
    let (capabilities, sampler, training) = tokio::try_join!(
        service.get_server_capabilities(),
        service.create_sampling_client("test-model"),
        service.create_lora_training_client("test-model"),
    )
    .unwrap();
    assert!(!capabilities.supported_models.is_empty());

    let forward_backward = training.forward_backward(vec![datum()], "cross_entropy");
    let step = training.optim_step(AdamParams::default());
    let sample = sampler.sample([1, 2], 1, SamplingParams::default());
    let (step, sample, loss) = (step.await.unwrap(), sample.await, forward_backward.await);
    assert!(step.metrics.is_some() && sample.is_ok() && loss.unwrap().loss().is_some());
    assert_eq!(server.asked("forward_backward", "seq_id"), [1]);
    assert_eq!(server.asked("optim_step", "seq_id"), [2]);

    let saved = training.save_state("phase-3").await.unwrap();
    service.create_training_client_from_state(saved.path).await.unwrap();
}

#[tokio::test]
async fn a_clone_of_a_sampler_numbers_its_samples_apart() {
    let server = MockServer::start().unwrap();
    server.set_client_config(json!({ "sample_join_sampling_session": true }));
    let service = ServiceClient::connect(server.config()).await.unwrap();
    let sampler = service.create_sampling_client("m").await.unwrap();
    let handle = sampler.get_sampler_handle();
    let sample = |sampler: &SamplingClient| sampler.sample([1], 1, SamplingParams::default());
    sample(&sampler).await.unwrap();
    for clone in [1, 2] {
        let cloned = SamplingClient::from_sampler_handle(&handle, &server.config()).unwrap();
        sample(&cloned).await.unwrap();
        let number = server.asked("asample", "seq_id").pop().unwrap();
        assert_eq!(number, clone * 1_000_000_000_i64);
    }
    assert_eq!(server.seen("join_sampling_session").len(), 2);
    assert_eq!(server.seen("create_sampling_session").len(), 1);
}

#[tokio::test]
async fn one_service_serves_many_tasks() {
    fn is_shareable<T: Send + Sync + Clone + 'static>() {}
    is_shareable::<ServiceClient>();
    let (server, service) = start().await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move { service.create_lora_training_client("m").await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let mut numbers: Vec<_> = server
        .asked("create_model", "model_seq_id")
        .iter()
        .map(|number| number.as_i64().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn no_runtime_is_needed() {
    let server = MockServer::start().unwrap();
    let service = ServiceClient::connect_blocking(server.config()).unwrap();
    let ranks = [8, 16].map(|rank| {
        let service = service.clone();
        let make = move || {
            let options = LoraOptions::new("test-model").rank(rank);
            service.create_lora_training_client(options).wait().unwrap().info().lora_rank
        };
        std::thread::Builder::new().name(format!("rank {rank}")).spawn(make).unwrap()
    });
    assert_eq!(ranks.map(|thread| thread.join().unwrap()), [Some(8), Some(16)]);
    service.close().wait().unwrap();
    assert!(!service.is_alive());
}

#[tokio::test]
async fn any_key_is_sent_as_it_is() {
    let (server, _service) = start_with(|config| config.api_key("test-key")).await;
    assert_eq!(server.seen("create_session")[0].header("x-api-key"), Some("test-key"));
}
