//! A server in this process: router, store in a temporary directory, and a worker that makes results up.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tinsmith_server::{Catalog, Config, ModelEntry, Priced, Prices};
use tinsmith_store::{Store, SystemClock, clock::Clock};
use tinsmith_tokenizer::Tokenizer;
use tower::ServiceExt;

pub(crate) struct Server {
    pub(crate) router: Router,
    pub(crate) store: Store,
    worker: Option<tokio::task::JoinHandle<()>>,
}

/// A reply, read to its end.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| {
            Value::String(format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
        })
    }

    /// Status and JSON body, for snapshots.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.status.as_u16(), self.json())
    }

    pub(crate) fn text(&self, field: &str) -> String {
        self.json()[field]
            .as_str()
            .unwrap_or_else(|| panic!("{field} in {}", self.line()))
            .to_owned()
    }
}

pub(crate) fn config() -> Config {
    Config {
        body_bytes_max: 1 << 20,
        decompressed_bytes_max: 4 << 20,
        zstd_window_log_max: 24,
        body_bytes_in_flight_max: 16 << 20,
        body_timeout: Duration::from_secs(10),
        head_timeout: Duration::from_secs(10),
        loopback_only: true,
        connections_max: 100,
        poll_wait_max: Duration::from_millis(50),
        unannounced_bytes_max: usize::MAX,
        short_poll_wait_max: Duration::from_millis(50),
        sync_wait_max: Duration::from_secs(10),
        drain_max: Duration::from_secs(10),
        downloads_max: 4,
        link_life: Duration::from_secs(3600),
        behind_proxy: false,
        lora_rank_max: 64,
        datums_max: 1024,
        datum_tokens_max: 100_000,
        datum_cells_max: 1000,
        custom_loss_bytes_max: 20_000,
        custom_losses_per_session_max: 3,
        custom_loss_limits: tinsmith_graph::Limits {
            nodes_max: 50,
            arguments_max: 500,
            elements_max: 1000,
            bytes_max: 1 << 20,
            steps_max: 10_000,
        },
        chat_messages_max: 8,
        chat_rendered_bytes_max: 1 << 20,
        num_samples_max: 64,
        stops_max: 16,
        topk_max: 20,
        logprobs_max: 1000,
        page_entries_max: 1000,
        jwt_auth: false,
        token_life: Duration::from_secs(3600),
        trace_spans_max: 100,
        usage_rows_max: 100,
        audit_entries_max: 20,
        telemetry_events_max: 10,
        telemetry_lines_max: 5,
        prices: Prices {
            general: BTreeMap::from([(Priced::Training, 2.0)]),
            of_model: BTreeMap::new(),
        },
        metadata_bytes_max: 1000,
    }
}

pub(crate) fn catalog() -> Catalog {
    let entry = |name: &str| ModelEntry {
        name: name.to_owned(),
        base_digest: "d1".to_owned(),
        architecture: "qwen3".to_owned(),
        tokenizer_id: "/models/nano".to_owned(),
        vocab_size: 1000,
        context: 64,
        training_context: 80,
        kernel_set: "f32.1".to_owned(),
        trainable: true,
        sampleable: true,
        tokenizer: Some(tokenizer()),
    };
    Catalog { models: vec![entry("nano"), entry("Qwen/Qwen3-8B")] }
}

/// That of the model that ships, read once.
fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let open = || {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
        Arc::new(Tokenizer::open(&dir).expect("it ships"))
    };
    Arc::clone(TOKENIZER.get_or_init(open))
}

fn store_config() -> tinsmith_store::Config {
    tinsmith_store::Config {
        data_dir: None,
        inline_body_bytes_max: 65_536,
        spool_segment_bytes_max: 1 << 24,
        group_requests_max: 64,
        write_queue_max: 1000,
        samples_max: 100,
        sample_bytes_max: 1 << 24,
        feed_page_max: 16,
        recorded_bytes_max: 1 << 20,
        cache_bytes_max: 1 << 24,
        claim_bytes_max: 1 << 24,
        pending_requests_per_run_max: 100,
        gap_timeout: Duration::from_secs(600),
        result_retention: Duration::from_secs(3600),
        sample_retention: Duration::from_secs(3600),
        session_expiry: Duration::from_secs(3600),
        audit_retention: Duration::from_secs(86_400),
        audit_entries_max: 1000,
        usage_retention: Duration::from_secs(86_400),
        sample_spans_max: 1000,
        blob_grace: Duration::from_secs(3600),
        allow_network_fs: true,
    }
}

impl Server {
    /// A server whose worker runs.
    pub(crate) fn start() -> Self {
        Self::start_with(config())
    }

    /// The same within other limits.
    pub(crate) fn start_with(config: Config) -> Self {
        Self::with(config).with_worker()
    }

    /// The same server with its worker.
    pub(crate) fn with_worker(mut self) -> Self {
        self.work();
        self
    }

    /// Lets the worker run.
    pub(crate) fn work(&mut self) {
        self.worker = Some(tokio::spawn(crate::worker::run(self.store.clone())));
    }

    /// A server whose queues are never worked on.
    pub(crate) fn without_worker() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        Self::open(config, None)
    }

    /// A server on a data directory that may have been used before.
    pub(crate) fn open(config: Config, data_dir: Option<PathBuf>) -> Self {
        let clock: Arc<dyn Clock> = SystemClock::new();
        let store_config = tinsmith_store::Config { data_dir, ..store_config() };
        let store = Store::open(store_config, Arc::clone(&clock)).expect("a temporary directory");
        let metrics = Arc::new(|| "tinsmith_up 1\n".to_owned());
        let router = tinsmith_server::router(config, store.clone(), catalog(), clock, metrics);
        Self { router, store, worker: None }
    }

    /// Lets go of the data directory.
    pub(crate) async fn stop(mut self) {
        if let Some(worker) = self.worker.take() {
            worker.abort();
            drop(worker.await);
        }
        self.store.close();
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.expect("handlers are infallible");
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("bodies are in memory");
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.send_json("POST", path, body).await
    }

    pub(crate) async fn send_json(&self, method: &str, path: &str, body: Value) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        self.send(request).await
    }

    pub(crate) async fn post_bytes(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        let mut request = Request::post(format!("/api/v1/{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    /// Posts JSON to a whole path.
    pub(crate) async fn post_to(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Reply {
        let mut request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// Polls until there is a result.
    pub(crate) async fn result(&self, request_id: &str, accept: &str) -> Reply {
        for _ in 0..200 {
            let body = json!({"request_id": request_id, "allow_metadata_only": true}).to_string();
            let headers = [("content-type", "application/json"), ("accept", accept)];
            let reply = self.post_bytes("retrieve_future", &headers, body).await;
            if reply.status != StatusCode::REQUEST_TIMEOUT {
                return reply;
            }
        }
        panic!("{request_id} never finished");
    }

    /// Submits and waits for the JSON result.
    pub(crate) async fn done(&self, path: &str, body: Value) -> Reply {
        let submitted = self.post(path, body).await;
        assert_eq!(submitted.status, StatusCode::OK, "{}", submitted.line());
        self.result(&submitted.text("request_id"), "application/json").await
    }

    pub(crate) async fn session(&self) -> String {
        let body = json!({"tags": [], "user_metadata": {}, "sdk_version": "0.38.0", "type": "create_session"});
        self.post("create_session", body).await.text("session_id")
    }

    /// A session and a run of rank 8 in it.
    pub(crate) async fn run(&self) -> (String, String) {
        let session = self.session().await;
        let body = json!({
            "session_id": session, "model_seq_id": 0, "base_model": "nano",
            "lora_config": {"rank": 8, "seed": 7}, "type": "create_model",
        });
        let model = self.post("create_model", body).await.text("model_id");
        (session, model)
    }

    /// A session and a sampler of the base model in it.
    pub(crate) async fn sampler(&self) -> (String, String) {
        let session = self.session().await;
        let body =
            json!({"session_id": session, "sampling_session_seq_id": 0, "base_model": "nano"});
        let sampler = self.post("create_sampling_session", body).await.text("sampling_session_id");
        (session, sampler)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.abort();
        }
    }
}

/// A datum of three tokens for `cross_entropy`.
pub(crate) fn datum() -> Value {
    json!({
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": [2, 3, 4], "dtype": "int64", "shape": [3]},
            "weights": {"data": [0.0, 1.0, 1.0], "dtype": "float32", "shape": [3]},
        },
    })
}

/// A JSON body of `forward_backward` with `cross_entropy`.
pub(crate) fn forward_backward(model: &str, seq_id: i64, data: &[Value]) -> Value {
    let input = json!({"data": data, "loss_fn": "cross_entropy"});
    json!({"forward_backward_input": input, "model_id": model, "seq_id": seq_id})
}
