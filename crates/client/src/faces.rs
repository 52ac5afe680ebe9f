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
        get_tokenizer, get_tokenizer_async() -> Arc<Tokenizer>;
    }
}

/// Nothing.
type Unit = ();
