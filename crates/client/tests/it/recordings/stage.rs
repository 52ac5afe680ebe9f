//! What came before a recording.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tinsmith::{
    AdamParams, ConfigBuilder, ModelInput, RetryPolicy, SamplingClient, SamplingParams,
    ServiceClient, TrainingClient,
    testing::{MockServer, Recording, TestClock},
};

/// A server and clients, as they were when a recording began.
pub(super) struct Stage {
    pub(super) server: MockServer,
    /// Samples so far.
    pub(super) samples: usize,
    clock: TestClock,
    heartbeat: Duration,
    retries: bool,
    key: String,
    service: Option<ServiceClient>,
    training: Option<TrainingClient>,
    sampler: Option<SamplingClient>,
}

impl Stage {
    /// Brings the counters of sessions, runs, steps, samplers and samples to where the recording begins.
    pub(super) fn before(operation: &str, recording: &Recording) -> Self {
        let server = MockServer::start().unwrap();
        set_up(&server, operation);
        let clock = TestClock::new();
        let beats = operation.contains("heartbeat");
        let heartbeat = Duration::from_secs(if beats { 10 } else { 86_400 });
        let mut this = Self {
            server,
            samples: 0,
            clock,
            heartbeat,
            // Recorded without repeats.
            retries: !operation.starts_with("behaviour.status."),
            key: key(recording),
            service: None,
            training: None,
            sampler: None,
        };
        let requests = || recording.exchanges.iter().map(|exchange| &exchange.request);
        if requests().next().is_none_or(|first| first.endpoint() == "client/config") {
            return this;
        }
        let least = |field: &str| requests().filter_map(|one| one.says()[field].as_i64()).min();
        let first = |field: &str| requests().find_map(|one| one.says()[field].as_str());
        let ids = ["session_id", "model_id", "sampling_session_id"];
        let session = ids.iter().find_map(|field| first(field)).map_or(1, number_of_session);
        let service = last(session - 1, || this.connect());
        if let Some(runs) = least("model_seq_id") {
            (0..runs).for_each(|_| drop(create(&service)));
        }
        if let Some(model) = first("model_id")
            && requests().all(|one| one.says()["model_seq_id"].is_null())
        {
            let training = last(last_number(model), || create(&service));
            for _ in 1..least("seq_id").unwrap_or(1) {
                training.optim_step(AdamParams::default()).wait().unwrap();
            }
            this.training = Some(training);
        }
        if let Some(samplers) = least("sampling_session_seq_id") {
            (0..samplers).for_each(|_| drop(sampler(&service)));
        }
        if let Some(id) = first("sampling_session_id") {
            let sampler = last(last_number(id), || sampler(&service));
            for _ in 0..least("seq_id").unwrap_or(0).min(1000) {
                let prompt = ModelInput::from_ints([1_u32]);
                sampler.sample(prompt, 1, SamplingParams::default()).wait().unwrap();
                this.samples += 1;
            }
            this.sampler = Some(sampler);
        }
        this.service = Some(service);
        this
    }

    /// With the key of the recordings, on a clock that nobody waits for.
    pub(super) fn config(&self) -> ConfigBuilder {
        let config = self.server.config().to_builder().api_key(&self.key);
        let config = config.clock(Arc::new(self.clock.clone())).heartbeat_interval(self.heartbeat);
        if self.retries { config } else { config.retry(RetryPolicy::none()) }
    }

    fn connect(&self) -> ServiceClient {
        ServiceClient::connect_blocking(self.config().build().unwrap()).unwrap()
    }

    pub(super) fn service(&self) -> &ServiceClient {
        self.service.as_ref().unwrap()
    }

    pub(super) fn training(&self) -> &TrainingClient {
        self.training.as_ref().unwrap()
    }

    pub(super) fn sampler(&self) -> &SamplingClient {
        self.sampler.as_ref().unwrap()
    }
}

/// What the recording's client called itself by, before it got a token.
fn key(recording: &Recording) -> String {
    let keys =
        recording.exchanges.iter().filter_map(|exchange| exchange.request.headers.get("x-api-key"));
    keys.filter(|key| *key != "<jwt>").min().map_or("tml-test-key", String::as_str).to_owned()
}

/// The settings that the server gave to the recording's client.
fn set_up(server: &MockServer, operation: &str) {
    let config = match operation.strip_prefix("behaviour.").unwrap_or(operation) {
        "chunk.bytes_100" => json!({ "fwdbwd_max_chunk_bytes_count": 100 }),
        "chunk.serial_5datums_len2" => {
            json!({ "fwdbwd_max_chunk_len": 2, "parallel_fwdbwd_chunks": false })
        }
        "chunk.zstd" => json!({ "proto_compress_fwdbwd": true }),
        chunked if chunked.starts_with("chunk.") => json!({ "fwdbwd_max_chunk_len": 2 }),
        jwt if jwt.starts_with("jwt.") => json!({ "pjwt_auth_enabled": true }),
        _ => json!({}),
    };
    server.set_client_config(config);
}

/// One after `before` others.
fn last<T>(before: i64, make: impl Fn() -> T) -> T {
    (0..before).for_each(|_| drop(make()));
    make()
}

fn create(service: &ServiceClient) -> TrainingClient {
    service.create_lora_training_client("Qwen/Qwen3-8B").wait().unwrap()
}

fn sampler(service: &ServiceClient) -> SamplingClient {
    service.create_sampling_client("Qwen/Qwen3-8B").wait().unwrap()
}

/// Of `00000000-0000-4000-8000-000000000003:train:0`: 3.
fn number_of_session(id: &str) -> i64 {
    let session = id.split(':').next().unwrap();
    session.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(1)
}

/// Of `…:train:2`: 2.
fn last_number(id: &str) -> i64 {
    id.rsplit(':').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
