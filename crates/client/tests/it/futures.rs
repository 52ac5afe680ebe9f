//! What a call that has started can be asked for: waited for, awaited, given up, cancelled, combined.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use serde_json::json;
use tinsmith::{
    AdamParams, Error, ErrorKind, SamplingParams, ServiceClient, await_many,
    testing::{Answer, MockServer},
    try_await_many,
};

use crate::start::{start, train};

const SHORT: Duration = Duration::from_millis(30);
const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn waiting_inside_a_runtime_is_an_error_and_no_deadlock() {
    let (_server, service) = start().await;
    let error = service.get_server_capabilities().wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Validation);
    assert!(error.to_string().contains("await"), "{error}");
    let error = service.get_server_capabilities().wait_timeout(SHORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Validation);
}

#[test]
fn waits_end_at_their_limit_and_stop_the_polling() {
    let server = MockServer::start().unwrap();
    let service = ServiceClient::connect_blocking(server.config()).unwrap();
    let training = service.create_lora_training_client("m").wait().unwrap();
    server.when("optim_step").result().always().answer(Answer::hanging());
    let error = training.optim_step(AdamParams::default()).wait_timeout(SHORT).unwrap_err();
    let Error::Timeout { request_id, exit_reason } = &error else { panic!("{error}") };
    assert!(request_id.ends_with(":train:0:1"), "{request_id}");
    assert!(exit_reason.contains("30ms"), "{exit_reason}");
    assert_eq!(
        (error.kind(), error.data()["request_id"].as_str()),
        (ErrorKind::ApiTimeout, Some(&**request_id))
    );
}

#[tokio::test]
async fn awaits_end_at_their_limit() {
    let (server, service) = start().await;
    server.when("get_server_capabilities").answer(Answer::hanging());
    let error = service.get_server_capabilities().timeout(SHORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiTimeout);
    assert!(service.get_server_capabilities().timeout(LONG).await.is_ok());
}

#[tokio::test]
async fn a_look_at_a_future_does_not_give_it_up() {
    let (server, service) = start().await;
    server.when("get_server_capabilities").answer(Answer::usual().after(SHORT * 4));
    let mut future = service.get_server_capabilities();
    assert!(future.poll_for(SHORT).await.is_none());
    assert!(future.poll_for(LONG).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_cancelled_call_ends_as_a_timeout() {
    let (server, service) = start().await;
    server.when("get_server_capabilities").answer(Answer::hanging());
    let mut future = service.get_server_capabilities();
    assert!(future.poll_for(SHORT).await.is_none());
    future.cancel();
    assert_eq!(future.await.unwrap_err().kind(), ErrorKind::ApiTimeout);
}

#[tokio::test]
async fn aborting_gives_nothing_a_result_or_an_error() {
    let (server, service) = start().await;
    server.when("create_model").answer(Answer::hanging());
    let hanging = service.create_lora_training_client("test-model");
    assert!(server.wait_for("create_model", 1, LONG));
    assert!(hanging.abort().is_none());
    // A call that had ended keeps its result.
    let finished = service.create_lora_training_client("invalid-model");
    while !finished.is_finished() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(finished.abort(), Some(Err(_))));
}

#[tokio::test]
async fn the_server_is_told_of_cancelled_samples() {
    let server = MockServer::start().unwrap();
    server.set_dynamic_config(json!({ "sample_cancel_enabled": true }));
    server.when("asample").result().always().answer(Answer::hanging());
    let service = ServiceClient::connect(server.config()).await.unwrap();
    let sampler = service.create_sampling_client("m").await.unwrap();
    let sample = sampler.sample([1], 1, SamplingParams::default());
    assert!(server.wait_for("retrieve_future", 1, LONG));
    sample.cancel();
    assert!(server.wait_for("cancel_future", 1, LONG));
    let id = server.asked("retrieve_future", "request_id");
    assert_eq!(server.asked("cancel_future", "request_id"), id);
}

#[tokio::test]
async fn a_dropped_call_goes_on() {
    let (server, service) = start().await;
    let training = train(&service).await;
    drop(training.optim_step(AdamParams::default()));
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(server.asked("optim_step", "seq_id"), [1, 2]);
}

#[tokio::test]
async fn many_are_awaited_in_order_and_without_short_circuit() {
    let (server, service) = start().await;
    let training = train(&service).await;
    let refused = Answer::failed(tinsmith::Category::User, "no");
    let is_second = |seen: &tinsmith::testing::Seen| {
        seen.body["request_id"].as_str().is_some_and(|id| id.ends_with(":2"))
    };
    server.when("optim_step").result().matching(is_second).answer(refused);
    // The first ends last.
    let is_first = |seen: &tinsmith::testing::Seen| {
        seen.body["request_id"].as_str().is_some_and(|id| id.ends_with(":1"))
    };
    let slow = Answer::usual().after(SHORT);
    server.when("optim_step").result().matching(is_first).answer(slow);
    let steps =
        |count: usize| (0..count).map(|_| training.optim_step(AdamParams::default())).collect();
    let results = await_many(steps(3), Some(LONG)).await;
    let [Ok(_), Err(Error::RequestFailed { message, .. }), Ok(_)] = &results[..] else {
        panic!("{results:?}")
    };
    assert_eq!(message, "no");
    assert_eq!(try_await_many(steps(4), None).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_limit_of_many_counts_for_each() {
    let (server, service) = start().await;
    server.when("get_server_capabilities").nth(2).answer(Answer::hanging());
    let calls = (0..3).map(|_| service.get_server_capabilities()).collect();
    let results = await_many(calls, Some(SHORT * 10)).await;
    let late = results.iter().filter(|result| result.is_err()).count();
    assert_eq!((results.len(), late), (3, 1));
}

#[tokio::test]
async fn results_are_mapped_and_chained() {
    let (_server, service) = start().await;
    let models =
        service.get_server_capabilities().map(|capabilities| capabilities.supported_models.len());
    assert_eq!(models.await.unwrap(), 2);
    let step = service
        .create_lora_training_client("m")
        .and_then(|training| training.optim_step(AdamParams::default()));
    assert!(step.await.unwrap().metrics.is_some());
}

#[tokio::test]
async fn a_panic_in_a_call_is_an_error() {
    let (_server, service) = start().await;
    let panicking = service.get_server_capabilities().map(|_| -> usize { panic!("oh no") });
    let error = panicking.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RequestFailed);
    assert!(error.to_string().contains("oh no"), "{error}");
}

/// The smallest executor: nothing of tokio.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn any_executor_will_do() {
    let server = MockServer::start().unwrap();
    block_on(async {
        let service = ServiceClient::connect(server.config()).await.unwrap();
        let mut future = service.get_server_capabilities();
        assert!(future.poll_for(LONG).await.unwrap().is_ok());
        assert!(service.get_server_capabilities().timeout(LONG).await.is_ok());
    });
}
