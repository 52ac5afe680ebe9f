//! Every method's other faces: the `_async` alias, and the one of `blocking` that waits. One line a method.

use std::sync::Arc;

/// Makes `method_async` on the client, and `method` on its blocking twin.
macro_rules! faces {
    ($($client:ident { $(
        $name:ident, $alias:ident($($arg:ident: $kind:ty),*) -> $result:ident$(<$($of:ty),*>)?;
    )* })*) => {
        mod aliases {
            use crate::{*, wire::*};
            use super::{Arc, Unit};
            $(impl $client {$(
                #[doc = concat!("[`Self::", stringify!($name), "`] under the name that other SDKs give it.")]
                pub fn $alias(&self $(, $arg: $kind)*) -> ApiFuture<$result$(<$($of),*>)?> {
                    self.$name($($arg),*)
                }
            )*})*
        }

        /// What waits in the place of a client.
        pub(crate) mod twins {
            use super::{Arc, Unit};
            use crate::wire::*;
            use crate::*;
            $(
                #[doc = concat!("[`crate::", stringify!($client), "`] whose methods wait for their results.")]
                #[derive(Clone, Debug)]
                pub struct $client {
                    pub(crate) inner: crate::$client,
                }

                impl From<crate::$client> for $client {
                    fn from(inner: crate::$client) -> Self {
                        Self { inner }
                    }
                }

                impl $client {
                    /// The client whose methods do not wait.
                    pub fn inner(&self) -> &crate::$client {
                        &self.inner
                    }

                    $(
                        #[doc = concat!("[`crate::", stringify!($client), "::", stringify!($name), "`], to its end.")]
                        ///
                        /// # Errors
                        ///
                        /// Those of the call; one that says so inside an async runtime.
                        pub fn $name(&self $(, $arg: $kind)*) -> Result<$result$(<$($of),*>)?> {
                            self.inner.$name($($arg),*).wait().map(Into::into)
                        }
                    )*
                }
            )*
        }
    };
}

faces! {
    ServiceClient {
        get_server_capabilities, get_server_capabilities_async() -> Capabilities;
        create_lora_training_client, create_lora_training_client_async(options: impl Into<LoraOptions>) -> TrainingClient;
        create_training_client_from_state, create_training_client_from_state_async(path: impl Into<String>) -> TrainingClient;
        create_training_client_from_state_with_optimizer, create_training_client_from_state_with_optimizer_async(path: impl Into<String>) -> TrainingClient;
        create_training_client_from_state_with, create_training_client_from_state_with_async(path: impl Into<String>, options: FromStateOptions) -> TrainingClient;
        create_sampling_client, create_sampling_client_async(options: impl Into<SamplingOptions>) -> SamplingClient;
        create_custom_loss, create_custom_loss_async(loss: Expression) -> LossHandle;
        copy_weights, copy_weights_async(path: impl Into<String>, options: CopyOptions) -> String;
        close, close_async() -> Unit;
        close_with, close_with_async(reason: FinishReason, detail: Option<String>) -> Unit;
    }
    TrainingClient {
        forward, forward_async(data: Vec<Datum>, loss: impl Into<Loss>) -> ForwardBackwardOutput;
        forward_backward, forward_backward_async(data: Vec<Datum>, loss: impl Into<Loss>) -> ForwardBackwardOutput;
        forward_backward_custom, forward_backward_custom_async(data: Vec<Datum>, loss: impl CustomLoss + 'static) -> ForwardBackwardOutput;
        forward_backward_regularized, forward_backward_regularized_async(data: Vec<Datum>, loss: Regularized) -> RegularizedOutput;
        optim_step, optim_step_async(params: impl Into<OptimParams>) -> OptimStepResponse;
        save_state, save_state_async(options: impl Into<SaveOptions>) -> SaveWeightsResponse;
        load_state, load_state_async(path: impl Into<String>) -> LoadWeightsResponse;
        load_state_with_optimizer, load_state_with_optimizer_async(path: impl Into<String>) -> LoadWeightsResponse;
        load_state_with_token, load_state_with_token_async(path: impl Into<String>, load_optimizer: bool, weights_access_token: impl Into<String>) -> LoadWeightsResponse;
        save_weights_for_sampler, save_weights_for_sampler_async(options: impl Into<SaveOptions>) -> SaveWeightsForSamplerResponse;
        save_weights_external, save_weights_external_async(options: impl Into<SaveOptions>) -> SaveWeightsExternalResponse;
        save_weights_and_get_sampling_client, save_weights_and_get_sampling_client_async() -> SamplingClient;
        save_weights_and_get_sampling_client_with, save_weights_and_get_sampling_client_with_async(options: SamplingOptions) -> SamplingClient;
        create_sampling_client, create_sampling_client_async(model_path: impl Into<String>) -> SamplingClient;
        get_info, get_info_async() -> GetInfoResponse;
        get_tokenizer, get_tokenizer_async() -> Arc<Tokenizer>;
        encode, encode_async(text: impl Into<String>) -> Vec<u32>;
        decode, decode_async(tokens: impl Into<Vec<u32>>) -> String;
        unload_model, unload_model_async() -> UnloadModelResponse;
    }
    SamplingClient {
        sample, sample_async(prompt: impl Into<ModelInput>, num_samples: u32, params: SamplingParams) -> SampleResponse;
        sample_with, sample_with_async(prompt: impl Into<ModelInput>, options: SampleOptions) -> SampleResponse;
        compute_logprobs, compute_logprobs_async(prompt: impl Into<ModelInput>) -> Vec<Option<f32>>;
        compute_logprobs_with, compute_logprobs_with_async(prompt: impl Into<ModelInput>, last_n: Option<u32>) -> Vec<Option<f32>>;
        get_base_model, get_base_model_async() -> String;
        get_tokenizer_id, get_tokenizer_id_async() -> String;
        get_tokenizer, get_tokenizer_async() -> Arc<Tokenizer>;
    }
    RestClient {
        get_server_capabilities, get_server_capabilities_async() -> Capabilities;
        health_check, health_check_async() -> Health;
        whoami, whoami_async() -> Whoami;
        get_training_run, get_training_run_async(training_run_id: &str) -> TrainingRun;
        get_training_run_by_tinker_path, get_training_run_by_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> TrainingRun;
        list_training_runs, list_training_runs_async(options: ListOptions) -> ListTrainingRunsResponse;
        get_weights_info_by_tinker_path, get_weights_info_by_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> WeightsInfoResponse;
        list_checkpoints, list_checkpoints_async(training_run_id: &str) -> ListCheckpointsResponse;
        list_user_checkpoints, list_user_checkpoints_async(options: ListOptions) -> ListCheckpointsResponse;
        get_checkpoint_by_tinker_path, get_checkpoint_by_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> Checkpoint;
        delete_checkpoint, delete_checkpoint_async(training_run_id: &str, checkpoint_id: &str) -> Unit;
        delete_checkpoint_from_tinker_path, delete_checkpoint_from_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> Unit;
        delete_checkpoint_by_tinker_path, delete_checkpoint_by_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> Unit;
        publish_checkpoint, publish_checkpoint_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> Unit;
        publish_checkpoint_from_tinker_path, publish_checkpoint_from_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> Unit;
        unpublish_checkpoint, unpublish_checkpoint_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> Unit;
        unpublish_checkpoint_from_tinker_path, unpublish_checkpoint_from_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> Unit;
        set_checkpoint_ttl_from_tinker_path, set_checkpoint_ttl_from_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>, ttl_seconds: Option<u64>) -> Unit;
        get_external_weights_urls, get_external_weights_urls_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> ExternalWeightsUrlsResponse;
        get_checkpoint_archive_url, get_checkpoint_archive_url_async(training_run_id: &str, checkpoint_id: &str) -> CheckpointArchiveUrlResponse;
        get_checkpoint_archive_url_by_tinker_path, get_checkpoint_archive_url_by_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> CheckpointArchiveUrlResponse;
        get_checkpoint_archive_url_from_tinker_path, get_checkpoint_archive_url_from_tinker_path_async(tinker_path: impl TryInto<TinkerPath, Error: std::fmt::Display>) -> CheckpointArchiveUrlResponse;
        copy_weights, copy_weights_async(path: impl TryInto<TinkerPath, Error: std::fmt::Display>, options: CopyOptions) -> String;
        download_checkpoint, download_checkpoint_async(path: impl TryInto<TinkerPath, Error: std::fmt::Display>, dir: impl Into<std::path::PathBuf>, options: DownloadOptions) -> Downloaded;
        get_session, get_session_async(session_id: &str) -> SessionInfo;
        list_sessions, list_sessions_async(options: ListOptions) -> ListSessionsResponse;
        search_sessions, search_sessions_async(request: SearchSessionsRequest) -> SearchSessionsResponse;
        assign_session_project, assign_session_project_async(session_id: &str, project_id: &str) -> Unit;
        export_session_trace, export_session_trace_async(session_id: &str) -> String;
        download_session_trace, download_session_trace_async(session_id: &str, file: impl Into<std::path::PathBuf>) -> u64;
        get_sampler, get_sampler_async(sampler_id: &str) -> SamplerInfo;
        get_audit_log, get_audit_log_async(event_type: AuditEventType, day: Option<&str>) -> AuditLogResponse;
        get_billing_usage, get_billing_usage_async(starting_on: &str, ending_before: &str) -> UsageResponse;
        get_current_checkpoint_storage_usage, get_current_checkpoint_storage_usage_async(project_id: Option<&str>) -> StorageResponse;
    }
    AdminClient {
        get_audit_log, get_audit_log_async(event_type: AuditEventType, day: Option<&str>) -> AuditLogResponse;
        get_billing_usage, get_billing_usage_async(starting_on: &str, ending_before: &str) -> UsageResponse;
        get_current_checkpoint_storage_usage, get_current_checkpoint_storage_usage_async(project_id: Option<&str>) -> StorageResponse;
    }
}

/// Nothing.
type Unit = ();
