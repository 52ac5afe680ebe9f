//! What `tracing` is told of a queue, beside the observers.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use tinsmith::{
    AdamParams, PollOptions, QueueState, QueueStateChange, ServiceClient,
    testing::{Answer, MockServer},
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

type Fields = BTreeMap<String, String>;

/// Keeps the events of the queue and of operations.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Fields>>>);

struct Reader(Fields);

impl Visit for Reader {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        ["tinsmith::queue", "tinsmith::operation"].contains(&metadata.target())
    }

    fn event(&self, event: &Event<'_>) {
        let mut reader = Reader(Fields::new());
        event.record(&mut reader);
        reader.0.insert("name".to_owned(), event.metadata().name().to_owned());
        reader.0.insert("target".to_owned(), event.metadata().target().to_owned());
        self.0.lock().unwrap().push(reader.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn each_change_of_a_queue_is_an_event_with_its_request_and_notes() {
    let kept = Kept::default();
    tracing::subscriber::set_global_default(kept.clone()).unwrap();
    let server = MockServer::start().unwrap();
    let service = ServiceClient::connect_blocking(server.config()).unwrap();
    let training = service.create_lora_training_client("m").wait().unwrap();
    let observed = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&observed);
    let options = PollOptions::default()
        .metadata("user_id", "7")
        .observer(move |_: &QueueStateChange| *counter.lock().unwrap() += 1);
    let training = training.with_poll_options(options);
    let wait = Some(std::time::Duration::from_millis(1));
    let paused = |state| Answer::paused(state, "full", wait);
    server.when("optim_step").result().answers([
        paused(QueueState::PausedCapacity),
        paused(QueueState::PausedCapacity),
        paused(QueueState::PausedRateLimit),
    ]);
    training.optim_step(AdamParams::default()).wait().unwrap();
    let events = kept.0.lock().unwrap().clone();
    let is_of = |event: &&Fields, target: &str| event["target"] == target;
    let of_queue = events.iter().filter(|event| is_of(event, "tinsmith::queue"));
    let of_run: Vec<_> =
        of_queue.filter(|event| event["request_id"].contains(":train:0:1")).collect();
    let states: Vec<_> = of_run.iter().map(|event| event["queue_state"].as_str()).collect();
    assert_eq!(states, ["paused_capacity", "paused_rate_limit"]);
    assert!(of_run.iter().all(|event| event["name"] == "state_change"));
    assert!(of_run.iter().all(|event| event["metadata"].contains("user_id")));
    assert_eq!(*observed.lock().unwrap(), 2);
    // The operation's own events: numbered with its run, then followed by its request.
    let of_step: Vec<_> = events
        .iter()
        .filter(|event| is_of(event, "tinsmith::operation"))
        .filter(|event| {
            let request = event.get("request_id").is_some_and(|id| id.ends_with(":train:0:1"));
            request || event.get("seq_id").is_some_and(|id| id == "1")
        })
        .collect();
    let phases: Vec<_> = of_step.iter().map(|event| event["phase"].as_str()).collect();
    assert_eq!(phases, ["sending", "submitted", "completed"]);
    assert_eq!(of_step[0]["model_id"], training.model_id());
    assert!(of_step[2]["metadata"].contains("user_id"));
}
