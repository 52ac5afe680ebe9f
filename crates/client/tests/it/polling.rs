//! How results are polled for: pauses, limits, failures by category, observers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tinsmith::{
    AdamParams, Category, Error, ErrorKind, PollOptions, QueueState, QueueStateChange, RequestRef,
    SampleOptions, SampleRetry, SamplingOptions, SamplingParams, ServiceClient, TrainingClient,
    testing::{Answer, MockServer, TestClock},
};

use crate::start::{pauses, start, start_clocked, train};

async fn polled() -> (MockServer, TrainingClient, TestClock, ServiceClient) {
    let (server, service, clock) = start_clocked().await;
    let training = train(&service).await;
    (server, training, clock, service)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test]
async fn pauses_double_from_one_second_to_thirty() {
    let (server, training, clock, _service) = polled().await;
    server.when("optim_step").result().times(7).answer(Answer::pending(QueueState::Active));
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(pauses(&clock), [1, 2, 4, 8, 16, 30, 30]);
}

#[tokio::test]
async fn the_servers_wish_for_a_pause_wins() {
    let (server, training, clock, _service) = polled().await;
    let asked = |s: u64| Answer::paused(QueueState::PausedCapacity, "full", Some(seconds(s)));
    server.when("optim_step").result().answers([
        asked(3),
        Answer::pending(QueueState::Active),
        asked(7),
    ]);
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(pauses(&clock), [3, 1, 7]);
}

#[tokio::test]
async fn every_form_of_not_yet_is_polled_again() {
    let (server, training, clock, _service) = polled().await;
    server.when("optim_step").result().answers([
        Answer::try_again(QueueState::Active, Some("soon")),
        Answer::json(json!({ "status": "pending", "request_id": "x" })),
        Answer::bytes(408, "text/plain", ""),
        Answer::status(429, "full"),
        Answer::status(503, "starting"),
        Answer::dropped(),
    ]);
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(pauses(&clock).len(), 6);
    let iterations = server
        .seen("retrieve_future")
        .into_iter()
        .filter(|seen| seen.header("x-tinker-request-type") == Some("OptimStep"));
    let iterations: Vec<_> = iterations
        .map(|seen| seen.header("x-tinker-request-iteration").unwrap().to_owned())
        .collect();
    assert_eq!(iterations, ["0", "1", "2", "3", "4", "5", "6"]);
}

#[tokio::test]
async fn a_users_mistake_is_not_polled_for_again() {
    let (server, training, clock, _service) = polled().await;
    let failed = Answer::failed(Category::User, "learning_rate is NaN");
    server.when("optim_step").result().always().answer(failed);
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    let Error::RequestFailed { request_id, category, message } = &error else { panic!("{error}") };
    assert_eq!((*category, message.as_str()), (Category::User, "learning_rate is NaN"));
    assert_eq!((error.kind(), error.request_id()), (ErrorKind::RequestFailed, Some(&**request_id)));
    assert!(error.is_user() && !error.is_retryable());
    assert_eq!(pauses(&clock), [0; 0]);
    let polls = server.asked("retrieve_future", "request_id");
    assert_eq!(polls.iter().filter(|id| **id == json!(request_id)).count(), 1);
}

#[tokio::test]
async fn others_mistakes_are_polled_for_again() {
    for category in [Category::Server, Category::Provider, Category::Unknown] {
        let (server, training, clock, _service) = polled().await;
        server.when("optim_step").result().answer(Answer::failed(category, "a worker died"));
        training.optim_step(AdamParams::default()).await.unwrap();
        assert_eq!(pauses(&clock), [1], "{category}");
    }
}

#[tokio::test]
async fn after_the_deadline_the_last_error_is_the_result() {
    let (server, training, clock, _service) = polled().await;
    let options = PollOptions { same_failures_max: 0, ..PollOptions::default() };
    let training = training.with_poll_options(options.timeout(seconds(60)));
    server.when("optim_step").result().always().answer(Answer::failed(Category::Server, "again"));
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    let Error::RequestFailed { category, message, .. } = &error else { panic!("{error}") };
    assert_eq!((*category, message.as_str()), (Category::Server, "again"));
    assert_eq!(clock.elapsed(), seconds(60));
    assert!(error.is_retryable());
}

#[tokio::test]
async fn the_poll_limit_ends_the_polling() {
    let (server, training, clock, _service) = polled().await;
    let training = training.with_poll_options(PollOptions::default().timeout(seconds(60)));
    server.when("optim_step").result().always().answer(Answer::pending(QueueState::Active));
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert_eq!((error.kind(), clock.elapsed()), (ErrorKind::ApiTimeout, seconds(60)));
    // The last pause is cut to what is left.
    assert_eq!(pauses(&clock), [1, 2, 4, 8, 16, 29]);
}

#[tokio::test]
async fn the_http_limit_ends_one_poll_and_the_next_follows() {
    let (server, training, _clock, _service) = polled().await;
    let options = PollOptions::default().http_timeout(Duration::from_millis(100));
    let training = training.with_poll_options(options);
    server.when("optim_step").result().answer(Answer::hanging());
    training.optim_step(AdamParams::default()).await.unwrap();
}

#[tokio::test]
async fn a_poll_may_end_where_the_server_cannot_be_reached() {
    let (server, training, clock, _service) = polled().await;
    let options = PollOptions { retry_connection: false, ..PollOptions::default() };
    let training = training.with_poll_options(options);
    server.when("optim_step").result().answer(Answer::dropped());
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert_eq!((error.kind(), pauses(&clock)), (ErrorKind::Connection, vec![]));
}

#[tokio::test]
async fn a_request_is_polled_for_by_its_id_or_its_answer() {
    let (server, service) = start().await;
    let training = train(&service).await;
    training.optim_step(AdamParams::default()).await.unwrap();
    let id = server.asked("retrieve_future", "request_id").pop().unwrap();
    let by_id = service.poll::<Value>(id.as_str().unwrap(), PollOptions::default());
    assert_eq!(by_id.await.unwrap()["metrics"]["grad_norm:mean"], 0.5);
    let answer = json!({ "request_id": id, "status": "pending" });
    let request = RequestRef::try_from(&answer).unwrap();
    assert!(service.poll::<Value>(request, PollOptions::default()).await.is_ok());
    assert!(RequestRef::try_from(&json!({ "status": "pending" })).is_err());
}

type Changes = Arc<Mutex<Vec<QueueStateChange>>>;

fn observer(changes: &Changes) -> impl Fn(&QueueStateChange) + Send + Sync + use<> {
    let changes = Arc::clone(changes);
    move |change: &QueueStateChange| changes.lock().unwrap().push(change.clone())
}

fn states(changes: &Changes) -> Vec<String> {
    changes.lock().unwrap().iter().map(|change| change.queue_state.to_string()).collect()
}

fn all_states() -> [Answer; 6] {
    [
        Answer::pending(QueueState::Active),
        Answer::paused(QueueState::PausedCapacity, "no device is free", None),
        Answer::pending(QueueState::PausedCapacity),
        Answer::try_again(QueueState::PausedRateLimit, None),
        Answer::pending(QueueState::Unknown("on_holiday".to_owned())),
        Answer::pending(QueueState::Active),
    ]
}

#[tokio::test]
async fn observers_hear_of_each_change_with_its_request_and_notes() {
    let (server, training, _clock, service) = polled().await;
    let (of_run, of_call, of_session) = <(Changes, Changes, Changes)>::default();
    let guard = service.on_queue_state_change(observer(&of_session));
    let options = PollOptions::default().metadata("experiment_id", "e-1").metadata("user_id", "7");
    let training = training.with_poll_options(options.observer(observer(&of_call)));
    let training = training.with_observer(observer(&of_run));
    server.when("optim_step").result().answers(all_states());
    training.optim_step(AdamParams::default()).await.unwrap();
    let expected = ["active", "paused_capacity", "paused_rate_limit", "on_holiday", "active"];
    for changes in [&of_run, &of_call, &of_session] {
        assert_eq!(states(changes), expected);
    }
    let change = of_run.lock().unwrap()[1].clone();
    assert!(change.queue_state.is_paused());
    assert_eq!(change.previous, Some(QueueState::Active));
    assert_eq!(change.reason.as_deref(), Some("no device is free"));
    assert!(change.request_id.ends_with(":train:0:1"));
    let notes = BTreeMap::from([("experiment_id", "e-1"), ("user_id", "7")]);
    assert_eq!(
        change.metadata.iter().map(|(k, v)| (&**k, &**v)).collect::<BTreeMap<_, _>>(),
        notes
    );
    // A detached one hears nothing more.
    drop(guard);
    server.when("optim_step").result().answers(all_states());
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!((states(&of_session).len(), states(&of_run).len()), (5, 10));
}

#[tokio::test]
async fn a_panicking_observer_does_not_stop_the_polling() {
    let (server, training, _clock, _service) = polled().await;
    let changes = Changes::default();
    let training = training
        .with_observer(|_: &QueueStateChange| panic!("an observer's mistake"))
        .with_observer(observer(&changes));
    server.when("optim_step").result().answers(all_states());
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(states(&changes).len(), 5);
}

#[tokio::test]
async fn an_answer_that_is_none_is_an_error_value() {
    let (server, training, _clock, _service) = polled().await;
    server.when("optim_step").result().answer(Answer::garbage());
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert!(matches!(error, Error::Response { .. }), "{error}");
    server.when("save_weights_for_sampler").answer(Answer::json(json!({ "nothing": "useful" })));
    let error = training.save_weights_for_sampler("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Validation);
    assert!(error.to_string().contains("useful"), "{error}");
}

#[tokio::test]
async fn a_result_may_come_at_once() {
    let (server, training, _clock, _service) = polled().await;
    let path = "tinker://run-1/sampler_weights/a";
    server.when("save_weights_for_sampler").answer(Answer::json(json!({ "path": path })));
    let saved = training.save_weights_for_sampler("a").await.unwrap();
    assert_eq!(saved.path.as_deref(), Some(path));
    assert!(
        server
            .seen("retrieve_future")
            .iter()
            .all(|poll| { poll.header("x-tinker-request-type") != Some("SaveWeightsForSampler") })
    );
}

#[tokio::test]
async fn a_size_that_is_announced_is_fetched() {
    let (server, training, _clock, _service) = polled().await;
    server.when("forward_backward").result().answer(Answer::complete_metadata(100));
    let data = vec![crate::start::datum()];
    training.forward_backward(data, "cross_entropy").await.unwrap();
    let polls = server.seen("retrieve_future");
    let allowed: Vec<_> = polls[polls.len() - 2..]
        .iter()
        .map(|poll| poll.body["allow_metadata_only"].clone())
        .collect();
    assert_eq!(allowed, [true, false]);
}

#[tokio::test]
async fn a_sample_has_an_observer_and_limits_of_its_own() {
    let (server, service, _clock) = start_clocked().await;
    let retry = SampleRetry { enabled: false, ..SampleRetry::default() };
    let source = SamplingOptions::new().base_model("m").retry(retry);
    let sampler = service.create_sampling_client(source).await.unwrap();
    let changes = Changes::default();
    server.when("asample").result().answer(Answer::pending(QueueState::PausedCapacity));
    let options = SampleOptions::new(1, SamplingParams::default()).observer(observer(&changes));
    sampler.sample_with([1], options.clone()).await.unwrap();
    assert_eq!(states(&changes), ["paused_capacity"]);
    server.when("asample").result().always().answer(Answer::pending(QueueState::Active));
    let limited = options.poll_timeout(seconds(60));
    let error = sampler.sample_with([1], limited).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiTimeout);
    let sample = sampler.sample([1], 1, SamplingParams::default());
    let error = sample.timeout(Duration::from_millis(30)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiTimeout);
}
