//! What is sent again, what is not, and in which order the next call follows.

use std::time::Duration;

use tinsmith::{
    AdamParams, Datum, Error, ErrorKind, RetryPolicy, SamplingParams, ServiceClient, TensorData,
    testing::{Answer, MockServer},
};

use crate::start::{datum, pauses, start, start_clocked, train};

#[tokio::test]
async fn a_busy_server_is_asked_again_with_the_same_number() {
    let (server, service, _clock) = start_clocked().await;
    let training = train(&service).await;
    server.when("optim_step").answers([
        Answer::status(429, "full"),
        Answer::status(503, "starting"),
        Answer::dropped(),
        Answer::cut_off(),
    ]);
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(server.asked("optim_step", "seq_id"), [1, 1, 1, 1, 1]);
}

#[tokio::test]
async fn the_servers_wish_counts_for_submissions_too() {
    let (server, service, clock) = start_clocked().await;
    let training = train(&service).await;
    server.when("optim_step").answers([
        Answer::status(429, "full").header("retry-after", "17"),
        Answer::status(503, "full").header("retry-after-ms", "4000"),
    ]);
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(pauses(&clock), [17, 4]);
}

#[tokio::test]
async fn a_refused_call_does_not_hold_up_the_next() {
    let (server, service) = start().await;
    let training = train(&service).await;
    server.when("optim_step").answer(Answer::status(400, "no such thing"));
    let refused = training.optim_step(AdamParams::default());
    let next = training.optim_step(AdamParams::default());
    let error = refused.await.unwrap_err();
    assert_eq!((error.status(), error.kind()), (Some(400), ErrorKind::ApiStatus));
    assert!(error.to_string().contains("no such thing"), "{error}");
    next.await.unwrap();
    // The number of the refused call is not used again.
    assert_eq!(server.asked("optim_step", "seq_id"), [1, 2]);
}

#[tokio::test]
async fn what_cannot_be_sent_takes_no_number() {
    let (server, service) = start().await;
    let training = train(&service).await;
    let misfit = datum().with_input("weights", TensorData::from_f32([1.0, 1.0, 1.0, 1.0, 1.0]));
    let error = training.forward_backward(vec![misfit], "cross_entropy").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Validation);
    assert!(error.to_string().contains("weights"), "{error}");
    let error = training.forward_backward(vec![], "cross_entropy").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Validation);
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(server.asked("optim_step", "seq_id"), [1]);
    assert!(server.seen("forward_backward").is_empty());
}

#[tokio::test]
async fn a_call_that_was_never_sent_ends_the_client() {
    let (_server, service) = start().await;
    let training = train(&service).await;
    let datum = Datum::completion(&[u32::MAX], &[2]).unwrap();
    let error = training.forward_backward(vec![datum], "cross_entropy").await.unwrap_err();
    assert!(matches!(error, Error::Validation { .. }), "{error}");
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert!(matches!(error, Error::Broken), "{error}");
}

#[tokio::test]
async fn a_forgotten_sample_is_submitted_anew() {
    let (server, service, _clock) = start_clocked().await;
    let sampler = service.create_sampling_client("m").await.unwrap();
    server.when("asample").result().answer(Answer::status(410, "gone"));
    let response = sampler.sample([1, 2], 1, SamplingParams::default()).await.unwrap();
    assert_eq!(response.sequences[0].tokens[..2], [10, 11]);
    assert_eq!(server.asked("asample", "seq_id"), [0, 1]);
}

#[tokio::test]
async fn a_forgotten_step_is_an_error() {
    let (server, service) = start().await;
    let training = train(&service).await;
    server.when("optim_step").result().answer(Answer::status(410, "gone"));
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert!(matches!(error, Error::Expired { .. }), "{error}");
}

#[tokio::test]
async fn a_full_sampler_is_asked_again_with_the_same_number() {
    let (server, service, clock) = start_clocked().await;
    let sampler = service.create_sampling_client("m").await.unwrap();
    server.when("asample").times(3).answer(Answer::status(429, "full"));
    sampler.sample([1, 2], 1, SamplingParams::default()).await.unwrap();
    assert_eq!(server.asked("asample", "seq_id"), [0, 0, 0, 0]);
    assert_eq!(pauses(&clock), [1, 1, 1]);
}

#[tokio::test]
async fn nobody_there_is_a_connection_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let config = tinsmith::Config::builder().base_url(url).retry(RetryPolicy::none());
    let error = ServiceClient::connect(config.build().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_slow_answer_is_read_to_its_end() {
    let (server, service) = start().await;
    let slow = Answer::usual().slowly(7, Duration::from_millis(1));
    server.when("get_server_capabilities").answer(slow);
    assert_eq!(service.get_server_capabilities().await.unwrap().supported_models.len(), 2);
}

#[test]
fn a_server_that_goes_away_ends_the_calls() {
    let server = MockServer::start().unwrap();
    let config = server.config().to_builder().retry(RetryPolicy::none()).build().unwrap();
    let service = ServiceClient::connect_blocking(config).unwrap();
    drop(server);
    let error = service.get_server_capabilities().wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
}
