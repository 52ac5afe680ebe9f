//! What the client reports to the server, how lost runs go on, the feed of samples, and the breaker.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tinsmith::{AdamParams, RecoveryPolicy, SamplingParams, Severity, testing::Answer};

use crate::start::{start, start_clocked, start_with, train};

fn events(server: &tinsmith::testing::MockServer) -> Vec<Value> {
    let batches = server.seen("telemetry").into_iter();
    batches.flat_map(|seen| seen.body["events"].as_array().unwrap().clone()).collect()
}

#[tokio::test]
async fn nothing_is_reported_unless_it_is_asked_for() {
    let (server, service) = start().await;
    assert!(service.get_telemetry().is_none());
    service.close().await.unwrap();
    assert!(server.seen("telemetry").is_empty());
}

#[tokio::test]
async fn reports_begin_and_end_with_the_session_and_hide_secrets() {
    let (server, service) = start_with(|config| config.telemetry(true)).await;
    let telemetry = service.get_telemetry().unwrap().clone();
    telemetry.log("step", json!({ "api_key": "tml-secret", "loss": 0.5 }), Severity::Info);
    let failed = service.create_lora_training_client("invalid-model").await.unwrap_err();
    telemetry.log_error(&failed);
    let connection = tinsmith::Error::Connection { message: "to tml-secret".to_owned() };
    assert!(telemetry.capture(async { Err::<(), _>(connection) }).await.is_err());
    telemetry.flush().await.unwrap();
    service.close().await.unwrap();
    let kinds: Vec<_> = events(&server).iter().map(|event| event["event"].clone()).collect();
    let expected =
        ["SESSION_START", "GENERIC_EVENT", "GENERIC_EVENT", "UNHANDLED_EXCEPTION", "SESSION_END"];
    assert_eq!(kinds, expected);
    let indices: Vec<_> = events(&server)
        .iter()
        .map(|event| event["event_session_index"].as_i64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2, 3, 4]);
    for seen in server.seen("telemetry") {
        assert!(!String::from_utf8_lossy(&seen.raw).contains("tml-secret"));
    }
}

#[tokio::test]
async fn a_server_that_takes_no_reports_disturbs_nobody() {
    let (server, service) = start_with(|config| config.telemetry(true)).await;
    server.when("telemetry").always().answer(Answer::status(404, "unknown"));
    assert!(service.get_telemetry().unwrap().flush().await.is_err());
    train(&service).await.optim_step(AdamParams::default()).await.unwrap();
    service.close().await.unwrap();
}

fn corrupted(run: &str) -> Answer {
    Answer::json(json!({
        "training_run_id": run, "base_model": "test-model", "model_owner": "o", "is_lora": true,
        "corrupted": true, "last_request_time": "2026-01-01T00:00:00Z",
    }))
}

#[tokio::test]
async fn a_corrupted_run_goes_on_from_its_checkpoint() {
    let (server, service, _clock) = start_clocked().await;
    let run = "run-1";
    server.add_checkpoint("tinker://run-1/weights/step-1");
    let path = format!("training_runs/{run}");
    server.when(&path).nth(1).answer(corrupted(run));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let sender = Mutex::new(Some(sender));
    let policy = RecoveryPolicy::default().on_recovery(move |recovered| {
        let sender = sender.lock().unwrap().take().unwrap();
        assert!(sender.send(recovered.clone()).is_ok(), "somebody waits for it");
    });
    let monitor = service.monitor(run, policy);
    let recovered = receiver.await.unwrap();
    assert_eq!(recovered.checkpoint, "tinker://run-1/weights/step-1");
    assert_eq!((recovered.lost_run.as_str(), recovered.attempts), (run, 1));
    assert_eq!(server.asked("load_weights", "optimizer"), [true]);
    recovered.client.optim_step(AdamParams::default()).await.unwrap();
    drop(monitor);
}

#[tokio::test]
async fn a_recovery_that_fails_is_tried_again_and_then_told() {
    let (server, service, clock) = start_clocked().await;
    server.add_checkpoint("tinker://run-1/weights/step-1");
    let failed = Answer::failed(tinsmith::Category::Server, "no");
    server.when("load_weights").result().always().answer(failed);
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let policy = RecoveryPolicy::default()
        .on_failure(move |error| sink.lock().unwrap().push(error.to_string()));
    let error = service.recover("run-1", policy).await.unwrap_err();
    assert_eq!(*told.lock().unwrap(), [error.to_string()]);
    let pauses = clock.sleeps();
    assert!(pauses.contains(&Duration::from_secs(5)) && pauses.contains(&Duration::from_secs(10)));
    let none = service.recover("run-of-nobody", RecoveryPolicy::default()).await;
    assert!(none.is_err());
}

#[tokio::test]
async fn samples_are_waited_for_together_where_the_server_can() {
    let server = tinsmith::testing::MockServer::start().unwrap();
    server.set_client_config(json!({ "sample_use_retrieve_futures": true }));
    let service = tinsmith::ServiceClient::connect(server.config()).await.unwrap();
    let sampler = service.create_sampling_client("test-model").await.unwrap();
    let samples: Vec<_> =
        (0..20).map(|_| sampler.sample([1, 2], 1, SamplingParams::default())).collect();
    for sample in tinsmith::try_await_many(samples, Some(Duration::from_secs(60))).await.unwrap() {
        assert_eq!(sample.sequences.len(), 1);
    }
    let feeds = server.seen("retrieve_futures");
    assert!(!feeds.is_empty());
    assert_eq!(feeds[0].body["target"]["sampling_session_id"], sampler.sampling_session_id());
    assert_eq!(server.seen("retrieve_future").len(), 20, "one for each result");
}

#[tokio::test]
async fn a_server_without_the_feed_is_polled() {
    let server = tinsmith::testing::MockServer::start().unwrap();
    server.set_client_config(json!({ "sample_use_retrieve_futures": true }));
    server.when("retrieve_futures").always().answer(Answer::status(404, "no such endpoint"));
    let service = tinsmith::ServiceClient::connect(server.config()).await.unwrap();
    let sampler = service.create_sampling_client("test-model").await.unwrap();
    for _ in 0..3 {
        sampler.sample([1, 2], 1, SamplingParams::default()).await.unwrap();
    }
    assert_eq!(server.seen("retrieve_futures").len(), 1, "it is asked once");
}

#[tokio::test]
async fn a_breaker_stops_calls_that_fail_one_after_another() {
    let policy = tinsmith::BreakerPolicy { failures: 2, open: Duration::from_secs(600) };
    let (server, service) =
        start_with(|config| config.circuit_breaker(policy).retry(tinsmith::RetryPolicy::none()))
            .await;
    server.when("get_server_capabilities").always().answer(Answer::status(500, "broken"));
    for _ in 0..2 {
        let error = service.get_server_capabilities().await.unwrap_err();
        assert_eq!(error.status(), Some(500));
    }
    let error = service.get_server_capabilities().await.unwrap_err();
    assert!(matches!(error, tinsmith::Error::CircuitOpen { .. }), "{error}");
    assert_eq!(server.seen("get_server_capabilities").len(), 2);
    service.circuit_breaker().unwrap().reset();
    assert_eq!(service.get_server_capabilities().await.unwrap_err().status(), Some(500));
}
