//! A whole server in this process: store, engines, worker and HTTP, started and stopped in order.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tinsmith_store::{Clock, Store, SystemClock};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    config::{self, Settings},
    host,
    memory::{Planned, Room},
    models::{self, Offer},
};

/// How often expired and unreferenced things are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How long a stop waits for the disk after the engine has stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Files that are open besides connections.
const OTHER_FILES: u64 = 256;

/// A server that answers.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) names: Vec<String>,
    pub(crate) room: Room,
    /// Of each model.
    pub(crate) plans: Vec<Planned>,
    store: Store,
    worker: Arc<tinsmith_worker::Handle>,
    stop: watch::Sender<bool>,
    http: JoinHandle<()>,
}

/// Starts everything; returns once requests are answered.
///
/// # Errors
///
/// What could not be opened, and how to mend it.
pub(crate) async fn start(settings: &Settings, offers: &[Offer]) -> Result<Running> {
    let address = address(settings).await?;
    let files = host::raise_file_limit();
    let connections_max = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address}: is another server running? give --port 0")
    })?;
    let address = listener.local_addr().context("read the port")?;

    let clock: Arc<dyn Clock> = SystemClock::new();
    let room = Room::of(settings);
    let models = models::open(settings, offers, &room)?;
    let store = Store::open(config::store(settings, room.requests()), Arc::clone(&clock)).map_err(
        |error| {
            // A refusal says which directory, and what is wrong with it.
            let says_all = matches!(error, tinsmith_store::Error::Refused { .. });
            let error = anyhow::Error::new(error);
            let place = settings.data_dir.display();
            if says_all { error } else { error.context(format!("open the data directory {place}")) }
        },
    )?;
    let plans = models.iter().map(|model| model.planned.clone()).collect();
    let mut loaded = models::load(settings, models)?;
    if settings.kv_spill_bytes > 0 {
        for model in &mut loaded.models {
            let file = store.scratch_file().context("make a file for spilled keys and values")?;
            model.engine.spill_to(Box::new(file));
        }
    }
    let names = loaded.catalog.models.iter().map(|model| model.name.clone()).collect();
    let worker = tinsmith_worker::start(
        config::worker(settings, room.requests()),
        store.clone(),
        Arc::clone(&clock),
        loaded.models,
    )
    .context("start the engine's thread")?;
    let worker = Arc::new(worker);

    let recorder = recorder()?;
    let counted = Arc::clone(&worker);
    let metrics = Arc::new(move || {
        record(&counted.stats());
        recorder.render()
    });
    let mut limits = config::server(settings, connections_max.clamp(64, 65_536), room.requests());
    limits.loopback_only = address.ip().is_loopback();
    let router =
        tinsmith_server::router(limits.clone(), store.clone(), loaded.catalog, clock, metrics);
    let (stop, mut stopped) = watch::channel(false);
    let shutdown = async move {
        // An error means that the sender is gone, which is a stop too.
        drop(stopped.wait_for(|stop| *stop).await);
    };
    let http = tokio::spawn(async move {
        tinsmith_server::serve(listener, router, &limits, shutdown).await;
    });
    tokio::spawn(sweep(store.clone()));
    Ok(Running { address, names, room, plans, store, worker, stop, http })
}

impl Running {
    /// Where the API is.
    pub(crate) fn url(&self) -> String {
        let ip = self.address.ip();
        if ip.is_unspecified() {
            return format!("http://127.0.0.1:{}", self.address.port());
        }
        format!("http://{}", self.address)
    }

    /// Waits until the engine's thread has ended by itself.
    pub(crate) async fn failed(&self) {
        self.worker.ended().await;
    }

    /// Answers what is open, finishes or leaves what runs, saves every run, and closes the store.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        self.http.await.context("end the HTTP server")?;
        let stopped = tokio::time::timeout(STOP_TIMEOUT, self.worker.stop()).await;
        self.store.close();
        stopped.context("save every run: the disk did not take it in time; the journal has it all")
    }
}

async fn address(settings: &Settings) -> Result<SocketAddr> {
    let (host, port) = (settings.host.as_str(), settings.port);
    let mut found = tokio::net::lookup_host((host, port))
        .await
        .with_context(|| format!("find the address of host = {host:?}"))?;
    let address = found.next().with_context(|| format!("find the address of host = {host:?}"))?;
    if !address.ip().is_loopback() && !settings.insecure_no_auth {
        bail!(
            "listen on {address}: without keys only this machine may connect; \
             use --host 127.0.0.1, or --insecure-no-auth if everybody who reaches it may train and sample"
        );
    }
    Ok(address)
}

async fn sweep(store: Store) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        if let Err(error) = store.sweep().await {
            tracing::warn!(%error, "could not sweep the store");
        }
        if !store.ready() {
            return;
        }
    }
}

/// The process's metrics; made once.
fn recorder() -> Result<PrometheusHandle> {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = RECORDER.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new().install_recorder().context("start the metrics")?;
    Ok(RECORDER.get_or_init(|| handle).clone())
}

#[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
fn record(stats: &tinsmith_worker::Stats) {
    metrics::gauge!("tinsmith_resident_runs").set(stats.resident_runs as f64);
    metrics::gauge!("tinsmith_resident_samplers").set(stats.resident_samplers as f64);
    metrics::counter!("tinsmith_replayed_requests_total").absolute(stats.replayed_requests);
    metrics::counter!("tinsmith_cancelled_samples_total").absolute(stats.cancelled_samples);
    metrics::counter!("tinsmith_corrupted_runs_total").absolute(stats.corrupted_runs);
    for (index, engine) in stats.engines.iter().enumerate() {
        let model = index.to_string();
        let counters = [
            ("tinsmith_engine_steps_total", engine.steps),
            ("tinsmith_engine_train_tokens_total", engine.train_tokens),
            ("tinsmith_engine_prefill_tokens_total", engine.prefill_tokens),
            ("tinsmith_engine_decode_tokens_total", engine.decode_tokens),
            ("tinsmith_engine_tried_tokens_total", engine.tried_tokens),
            ("tinsmith_engine_tried_tokens_kept_total", engine.tried_tokens_kept),
            ("tinsmith_engine_preemptions_total", engine.preemptions),
            ("tinsmith_engine_prefix_hit_tokens_total", engine.prefix_hit_tokens),
            ("tinsmith_engine_prefix_evictions_total", engine.prefix_evictions),
            ("tinsmith_engine_kv_blocks_spilled_total", engine.kv_blocks_spilled),
            ("tinsmith_engine_kv_blocks_reloaded_total", engine.kv_blocks_reloaded),
            ("tinsmith_engine_kv_spill_faults_total", engine.kv_spill_faults),
        ];
        for (name, value) in counters {
            metrics::counter!(name, "model" => model.clone()).absolute(value);
        }
        let gauges = [
            ("tinsmith_engine_sequences_running", engine.running),
            ("tinsmith_engine_sequences_waiting", engine.waiting),
            ("tinsmith_engine_training_queue", engine.training_queue),
            ("tinsmith_engine_kv_blocks_used", engine.kv_blocks_used),
            ("tinsmith_engine_kv_blocks_cached", engine.kv_blocks_cached),
            ("tinsmith_engine_kv_blocks", engine.kv_blocks),
            ("tinsmith_engine_kv_spill_blocks", engine.kv_spill_blocks),
        ];
        for (name, value) in gauges {
            metrics::gauge!(name, "model" => model.clone()).set(value as f64);
        }
    }
}
