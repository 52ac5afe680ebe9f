//! What most tests begin with.

use std::{sync::Arc, time::Duration};

use tinsmith::{
    ConfigBuilder, Datum, ServiceClient, TrainingClient,
    testing::{MockServer, TestClock},
};

/// A server and a client of it.
pub(crate) async fn start() -> (MockServer, ServiceClient) {
    start_with(|config| config).await
}

/// The same with other settings.
pub(crate) async fn start_with(
    change: impl FnOnce(ConfigBuilder) -> ConfigBuilder,
) -> (MockServer, ServiceClient) {
    let server = MockServer::start().unwrap();
    let config = change(server.config().to_builder()).build().unwrap();
    let service = ServiceClient::connect(config).await.unwrap();
    (server, service)
}

/// The same on a clock that nobody waits for.
pub(crate) async fn start_clocked() -> (MockServer, ServiceClient, TestClock) {
    let clock = TestClock::new();
    let shared = Arc::new(clock.clone());
    let (server, service) =
        start_with(|config| config.clock(shared).heartbeat_interval(Duration::from_secs(86_400)))
            .await;
    (server, service, clock)
}

/// A run of `test-model`.
pub(crate) async fn train(service: &ServiceClient) -> TrainingClient {
    service.create_lora_training_client("test-model").await.unwrap()
}

/// One of two targets, for `cross_entropy`.
pub(crate) fn datum() -> Datum {
    Datum::completion(&[1, 2], &[3]).unwrap()
}

/// The sleeps of a clock, but for those of the background.
pub(crate) fn pauses(clock: &TestClock) -> Vec<u64> {
    let short = clock.sleeps().into_iter().filter(|pause| *pause < Duration::from_secs(3600));
    short.map(|pause| pause.as_secs()).collect()
}
