//! Where this client differs from the official SDK on purpose, and why. A line that nothing needs fails the test.

use super::compare::Difference;

/// A difference that is meant.
#[derive(Debug)]
pub(super) struct Different {
    /// An operation, or the beginning of some with a `*` behind it.
    operation: &'static str,
    /// As [`Difference::at`], or its beginning with a `*` behind it.
    at: &'static str,
    #[expect(dead_code, reason = "for readers, and in the message of a line that is not needed")]
    why: &'static str,
}

impl Different {
    pub(super) fn is_about(&self, operation: &str, difference: &Difference) -> bool {
        let is_like = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
            Some(begin) => text.starts_with(begin),
            None => text == pattern,
        };
        is_like(self.operation, operation) && is_like(self.at, &difference.at)
    }

    pub(super) fn at_and_operation(&self) -> (&'static str, &'static str) {
        (self.at, self.operation)
    }
}

const fn all(at: &'static str, why: &'static str) -> Different {
    Different { operation: "*", at, why }
}

const fn one(operation: &'static str, at: &'static str, why: &'static str) -> Different {
    Different { operation, at, why }
}

pub(super) const DIFFERENT: &[Different] = &[
    all("client/config body.sdk_version", "each client names its own version"),
    all("client/dynamic_config body.sdk_version", "each client names its own version"),
    all("create_session body.sdk_version", "each client names its own version"),
    all("retrieve_future header accept", "JSON is taken too, from servers without protobuf"),
    all("retrieve_future header x-idempotency-key", "a poll changes nothing"),
    all(
        "retrieve_future body.allow_metadata_only",
        "only results that may be large are announced with their size",
    ),
    one(
        "behaviour.chunk.zstd",
        "forward_backward header content-encoding",
        "small bodies are not worth it",
    ),
    one(
        "behaviour.future.failed_*",
        "polls",
        "failures that are not the user's are polled for again",
    ),
    one("behaviour.future.json_for_fwdbwd", "outcome", "servers without protobuf answer so"),
    one("behaviour.sample.json_payload", "outcome", "servers without protobuf answer so"),
    one("behaviour.sample.no_sequence_ids", "outcome", "older servers give no ids of sequences"),
    one("behaviour.misc.client_config_404", "requests", "older servers have no settings"),
    one("behaviour.misc.client_config_404", "outcome", "older servers have no settings"),
    one("behaviour.retry.409_post_same_idem", "requests", "the recording is of one request"),
    one("cli.model_list_stored_credential", "requests", "the recording is of one request"),
    one("cli.run_list_all", "outcome", "the recorded answer is cut off"),
    one("behaviour.status.402", "requests", "an unpaid bill is waited for"),
    one("behaviour.status.402", "outcome", "an unpaid bill is waited for"),
    one("behaviour.status.302", "requests", "a key is not carried to where a redirect leads"),
    one("behaviour.status.302", "outcome", "a key is not carried to where a redirect leads"),
    one(
        "forward_backward.stable_reinforce",
        "forward_backward body.loss_fn_config_v2.mode",
        "made up",
    ),
    all("training_runs/run-1/checkpoints/*", "no body, no type of one"),
];

/// Recorded operations that are not sent by this test, and why.
pub(super) const NOT_SENT: &[(&str, &str)] = &[
    ("behaviour.cancel.timeout", "futures::the_server_is_told_of_cancelled_samples"),
    ("behaviour.clone.join_sample", "creation::a_clone_of_a_sampler_numbers_its_samples_apart"),
    ("behaviour.clone.pickle_random_id", "the number is drawn"),
    (
        "behaviour.loss.create_custom_loss",
        "a traced Python function; custom_losses has one in Rust",
    ),
    (
        "behaviour.loss.forward_backward_custom",
        "a traced Python function; custom_losses has one in Rust",
    ),
    ("cli.auth_login", "keys are made by the official service's command line"),
    ("cli.auth_logout_generated", "keys are made by the official service's command line"),
    ("cli.checkpoint_download_external", "downloads.rs"),
    ("cli.checkpoint_download_training", "downloads.rs"),
    ("cli.session_export_trace", "downloads.rs"),
    ("telemetry", "what it tells differs; telemetry has tests of its own"),
];
