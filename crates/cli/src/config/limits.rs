//! The defaults of every inner crate's limits, said once; the crates themselves have none.

use std::time::Duration;

use tinsmith_backend::ATTENTION_TILE;

use super::Settings;

/// Logprobs in one sample's result beside those of its own tokens: 64 MiB with their ids.
const LOGPROBS_MAX: usize = 8 << 20;

/// The most and the least memory for requests on their way: bodies, queues and results.
pub(crate) const REQUESTS_BYTES: (usize, usize) = (BODY_BYTES_MAX * 3, 1536 << 20);
/// Of a request, as it is after decompression.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A loss that a client sent, on one datum: matrices of all pairs of 2048 tokens fit, and about a second of work.
const CUSTOM_LOSS: tinsmith_graph::Limits = tinsmith_graph::Limits {
    nodes_max: 4096,
    arguments_max: 65_536,
    elements_max: 4 << 20,
    bytes_max: 256 << 20,
    steps_max: 500_000_000,
};

/// Limits of the store, which keeps results in half of the memory for requests.
pub(crate) fn store(settings: &Settings, requests_bytes: usize) -> tinsmith_store::Config {
    tinsmith_store::Config {
        data_dir: Some(settings.data_dir.clone()),
        inline_body_bytes_max: 64 << 10,
        spool_segment_bytes_max: 256 << 20,
        group_requests_max: 64,
        write_queue_max: 4096,
        samples_max: 20_000,
        sample_bytes_max: requests_bytes / 3,
        feed_page_max: 512,
        recorded_bytes_max: 1 << 30,
        cache_bytes_max: requests_bytes / 6,
        claim_bytes_max: 64 << 20,
        pending_requests_per_run_max: 10_000,
        gap_timeout: settings.gap_timeout,
        result_retention: settings.result_retention,
        sample_retention: Duration::from_secs(3600),
        session_expiry: settings.session_timeout,
        audit_retention: Duration::from_secs(400 * 86_400),
        audit_entries_max: 1_000_000,
        usage_retention: Duration::from_secs(400 * 86_400),
        sample_spans_max: 1_000_000,
        blob_grace: Duration::from_secs(3600),
        allow_network_fs: settings.allow_network_fs,
    }
}

/// Limits of the HTTP side.
pub(crate) fn server(
    settings: &Settings,
    connections_max: usize,
    requests_bytes: usize,
) -> tinsmith_server::Config {
    tinsmith_server::Config {
        body_bytes_max: 16 << 20,
        decompressed_bytes_max: BODY_BYTES_MAX,
        zstd_window_log_max: 24,
        body_bytes_in_flight_max: requests_bytes / 3,
        body_timeout: Duration::from_secs(60),
        head_timeout: Duration::from_secs(120),
        loopback_only: true,
        connections_max,
        poll_wait_max: Duration::from_secs(28),
        unannounced_bytes_max: 1 << 20,
        short_poll_wait_max: Duration::from_secs(1),
        sync_wait_max: Duration::from_secs(300),
        drain_max: Duration::from_secs(5),
        downloads_max: 32,
        link_life: Duration::from_secs(3600),
        behind_proxy: settings.behind_proxy,
        lora_rank_max: settings.lora_rank_max,
        datums_max: 100_000,
        datum_tokens_max: 4_000_000,
        datum_cells_max: 16 << 20,
        custom_loss_bytes_max: 1 << 20,
        custom_losses_per_session_max: 256,
        custom_loss_limits: CUSTOM_LOSS,
        chat_messages_max: 512,
        chat_rendered_bytes_max: 128 << 20,
        num_samples_max: 1024,
        stops_max: 64,
        topk_max: 1024,
        logprobs_max: LOGPROBS_MAX,
        page_entries_max: 1000,
        jwt_auth: settings.jwt_auth,
        token_life: Duration::from_secs(3600),
        trace_spans_max: 20_000,
        usage_rows_max: 100_000,
        audit_entries_max: 10_000,
        telemetry_events_max: 1000,
        telemetry_lines_max: 300,
        prices: settings.prices.clone(),
        metadata_bytes_max: 64 << 10,
    }
}

/// Limits of the worker.
pub(crate) fn worker(settings: &Settings, requests_bytes: usize) -> tinsmith_worker::Config {
    tinsmith_worker::Config {
        claim_max: 1024,
        claimed_bytes_max: requests_bytes / 6,
        in_flight_per_run_max: 8,
        training_turn: Duration::from_millis(25),
        resident_runs_max: settings.runs_max,
        resident_samplers_max: settings.samplers_max,
        snapshot_after_work: Duration::from_secs(60),
        snapshot_after_bytes: 256 << 20,
        snapshot_after_replay: Duration::from_secs(5),
        snapshot_after_rest: Duration::from_secs(5),
        custom_loss_limits: CUSTOM_LOSS,
        stop_timeout: Duration::from_secs(4),
    }
}

/// What one base model's engine gets of the memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shares {
    pub(crate) kv_blocks: usize,
    pub(crate) training_step_bytes: usize,
    pub(crate) runs_bytes: usize,
    pub(crate) samplers_bytes: usize,
}

/// Limits of one base model's engine, whose sequences have up to `context` tokens.
pub(crate) fn engine(
    settings: &Settings,
    context: usize,
    shares: &Shares,
) -> tinsmith_engine::Config {
    tinsmith_engine::Config {
        train_tokens_max: 512,
        train_context_max: context,
        activation_bytes_max: shares.training_step_bytes,
        training_queue_max: 1024,
        prefill_tokens_max: 512,
        max_num_seqs: settings.sequences_max,
        speculative_rows_max: settings.speculative_rows,
        kv_blocks: shares.kv_blocks,
        kv_spill_bytes: settings.kv_spill_bytes,
        kv_spill_flops_per_byte_min: 256,
        max_model_len: context.min(shares.kv_blocks * ATTENTION_TILE),
        waiting_sequences_max: 65_536,
        num_samples_max: 1024,
        stops_max: 64,
        logprobs_max: LOGPROBS_MAX,
        // One more of each than the worker keeps: it makes room after it has loaded the next.
        runs_max: settings.runs_max + 1,
        runs_bytes_max: shares.runs_bytes,
        samplers_max: settings.samplers_max + 1,
        samplers_bytes_max: shares.samplers_bytes,
        rank_max: settings.lora_rank_max as usize,
    }
}
