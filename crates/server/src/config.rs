//! The limits of the HTTP side. Defaults stand where the configuration is read, not here.

use std::time::Duration;

use crate::prices::Prices;

/// Every limit of the server, each with its unit.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of a request body as it travels, compressed or not. More is answered 413.
    pub body_bytes_max: usize,
    /// Bytes of a request body after decompression. More is answered 413.
    pub decompressed_bytes_max: usize,
    /// Base-2 logarithm of the largest zstd window that is accepted (24: 16 MiB).
    pub zstd_window_log_max: u32,
    /// Bytes of all bodies that are being read or decoded at one time. More is answered 429.
    pub body_bytes_in_flight_max: usize,
    /// How long a client may take to send a body. Later is answered 408.
    pub body_timeout: Duration,
    /// How long a client may take to send the head of its next request before its connection is closed.
    pub head_timeout: Duration,
    /// The server listens on loopback only: a request to a host of another name is answered 403.
    pub loopback_only: bool,
    /// Connections that are open at one time; more wait to be accepted.
    pub connections_max: usize,
    /// How long a poll is held. The SDK gives up after 45 s; 30 s is the longest that is wise.
    pub poll_wait_max: Duration,
    /// Bytes of a result that is sent at once; of larger ones, clients that can do with it are told the size first,
    /// so that they download few at a time.
    pub unannounced_bytes_max: usize,
    /// How long a poll of the Tinkerbell dialect is held; its clients ask every half second.
    pub short_poll_wait_max: Duration,
    /// How long a request of the Tinkerbell dialect is held that waits for its result. Later is answered 202.
    pub sync_wait_max: Duration,
    /// How long open requests may take to end after the stop signal.
    pub drain_max: Duration,
    /// Downloads of checkpoints at one time; more wait for as long as a poll, then they are answered 429.
    pub downloads_max: usize,
    /// How long a link to a file holds. The SDK asks for a new one when 5 minutes are left.
    pub link_life: Duration,
    /// A proxy stands in front: its `X-Forwarded-Proto` says whether clients reach it by https.
    pub behind_proxy: bool,
    /// Highest LoRA rank that a run may ask for.
    pub lora_rank_max: u32,
    /// Datums in one `forward` or `forward_backward` request.
    pub datums_max: usize,
    /// Tokens in all datums of one `forward` or `forward_backward` request.
    pub datum_tokens_max: usize,
    /// Values of `target_tokens` in all datums of one `forward` or `forward_backward` request; those that a
    /// sparse tensor does not list count too, as they take memory.
    pub datum_cells_max: usize,
    /// Bytes of a custom loss, as JSON.
    pub custom_loss_bytes_max: usize,
    /// Custom losses of one session.
    pub custom_losses_per_session_max: u64,
    /// What a custom loss may use up; of these, the sizes of its graph are looked at here.
    pub custom_loss_limits: tinsmith_graph::Limits,
    /// Messages of one chat that is trained on or answered.
    pub chat_messages_max: usize,
    /// Bytes of text that may be rendered to find out what is said in one chat.
    pub chat_rendered_bytes_max: usize,
    /// Continuations of one prompt.
    pub num_samples_max: u32,
    /// Stop strings or stop tokens of one sample.
    pub stops_max: usize,
    /// Tokens that a sample may have listed (top-k) or drawn beside (alternatives) at one position.
    pub topk_max: u32,
    /// Logprobs in one sample's result, beside those of the prompt's and the drawn tokens themselves.
    pub logprobs_max: usize,
    /// Entries of one page of a listing; a larger `limit` is cut to this.
    pub page_entries_max: u32,
    /// Clients exchange their keys for tokens.
    pub jwt_auth: bool,
    /// How long a token holds. The SDK renews it at half of it.
    pub token_life: Duration,
    /// Requests of runs, and samples, in the trace of one session.
    pub trace_spans_max: u32,
    /// Rows of usage in one answer; a window with more is answered 400.
    pub usage_rows_max: u32,
    /// Entries of the audit log in one answer; a day with more is answered with its newest.
    pub audit_entries_max: u32,
    /// Events in one telemetry report. More is answered 400.
    pub telemetry_events_max: usize,
    /// Lines of clients' telemetry that are logged in a minute; others are counted only.
    pub telemetry_lines_max: u32,
    /// What usage costs.
    pub prices: Prices,
    /// Bytes of a session's or run's `user_metadata`, as JSON.
    pub metadata_bytes_max: usize,
}
