//! Saving and loading.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use tinsmith_types::weights::{
    LoadWeightsRequest, LoadWeightsResponse, SamplerKind, SaveWeightsExternalRequest,
    SaveWeightsExternalResponse, SaveWeightsForSamplerRequest, SaveWeightsForSamplerResponse,
    SaveWeightsRequest, SaveWeightsResponse, Secret,
};

use super::TrainingClient;
use crate::{ApiFuture, Error, Result, SamplingClient, SamplingOptions, sampling::Source};

/// Characters of an answer that a message about it has.
const EXCERPT_MAX: usize = 200;

/// How a checkpoint is saved. A name alone will do: `save_state("step-10")`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SaveOptions {
    name: String,
    ttl_seconds: Option<i64>,
    overwrite: bool,
    user_metadata: Option<BTreeMap<String, Value>>,
    recipients: Vec<String>,
}

impl SaveOptions {
    /// Under a name that is new in the run.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Seconds after which it is deleted: an hour to ten years.
    #[must_use]
    pub fn ttl_seconds(mut self, seconds: i64) -> Self {
        self.ttl_seconds = Some(seconds);
        self
    }

    /// Take the place of a checkpoint of that name (`save_state` only).
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Notes on it.
    #[must_use]
    pub fn user_metadata(mut self, metadata: BTreeMap<String, Value>) -> Self {
        self.user_metadata = Some(metadata);
        self
    }

    /// Encrypt for an age or SSH public key (`save_weights_external` only).
    #[must_use]
    pub fn recipient(mut self, public_key: impl Into<String>) -> Self {
        self.recipients.push(public_key.into());
        self
    }

    fn check(&self) -> Result<()> {
        if self.name.is_empty() || self.name.contains('/') {
            let message =
                format!("a checkpoint's name is one word without slashes, not `{}`", self.name);
            return Err(Error::validation(message));
        }
        Ok(())
    }
}

impl From<&str> for SaveOptions {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for SaveOptions {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl TrainingClient {
    /// Saves weights and optimizer to resume from; gives the checkpoint's `tinker://` path.
    ///
    /// # Errors
    ///
    /// The name is taken, and it was not said to overwrite.
    pub fn save_state(&self, options: impl Into<SaveOptions>) -> ApiFuture<SaveWeightsResponse> {
        let (model_id, options) = (self.inner.model_id.clone(), options.into());
        if let Err(error) = options.check() {
            return self.http().start(async { Err(error) });
        }
        self.call("save_weights", "SaveWeights", false, move |seq_id| SaveWeightsRequest {
            model_id,
            seq_id: Some(seq_id),
            path: Some(options.name),
            ttl_seconds: options.ttl_seconds,
            overwrite: options.overwrite,
            user_metadata: options.user_metadata,
        })
    }

    /// Loads weights into this run; its optimizer starts afresh.
    ///
    /// # Errors
    ///
    /// There is no such checkpoint, or it fits another model.
    pub fn load_state(&self, path: impl Into<String>) -> ApiFuture<LoadWeightsResponse> {
        self.load(path.into(), false, None)
    }

    /// Loads weights and optimizer into this run.
    ///
    /// # Errors
    ///
    /// As [`Self::load_state`].
    pub fn load_state_with_optimizer(
        &self,
        path: impl Into<String>,
    ) -> ApiFuture<LoadWeightsResponse> {
        self.load(path.into(), true, None)
    }

    /// Loads another account's checkpoint into this run, with a token that allows it.
    ///
    /// # Errors
    ///
    /// As [`Self::load_state`]; the token does not allow it.
    pub fn load_state_with_token(
        &self,
        path: impl Into<String>,
        load_optimizer: bool,
        weights_access_token: impl Into<String>,
    ) -> ApiFuture<LoadWeightsResponse> {
        self.load(path.into(), load_optimizer, Some(Secret(weights_access_token.into())))
    }

    fn load(
        &self,
        path: String,
        optimizer: bool,
        weights_access_token: Option<Secret>,
    ) -> ApiFuture<LoadWeightsResponse> {
        let model_id = self.inner.model_id.clone();
        if let Err(error) = check_path(&path) {
            return self.http().start(async { Err(error) });
        }
        self.call("load_weights", "LoadWeights", true, move |seq_id| LoadWeightsRequest {
            session_id: None,
            model_seq_id: None,
            model_id: Some(model_id),
            seq_id: Some(seq_id),
            base_model: None,
            user_metadata: None,
            path,
            optimizer,
            optimizer_config: None,
            weights_access_token,
            read_as: None,
        })
    }

    /// Saves weights to sample from under a name; gives their `tinker://` path.
    ///
    /// # Errors
    ///
    /// The name is taken.
    pub fn save_weights_for_sampler(
        &self,
        options: impl Into<SaveOptions>,
    ) -> ApiFuture<SaveWeightsForSamplerResponse> {
        let (model_id, options) = (self.inner.model_id.clone(), options.into());
        if let Err(error) = options.check() {
            return self.http().start(async { Err(error) });
        }
        let path = "save_weights_for_sampler";
        let saved: ApiFuture<Value> =
            self.call(path, "SaveWeightsForSampler", false, move |seq_id| {
                SaveWeightsForSamplerRequest {
                    model_id,
                    seq_id: Some(seq_id),
                    path: Some(options.name),
                    sampling_session_seq_id: None,
                    kind: SamplerKind::Snapshot,
                    ttl_seconds: options.ttl_seconds,
                    user_metadata: options.user_metadata,
                }
            });
        self.http().start(async move {
            let saved = saved.await?;
            let excerpt: String = saved.to_string().chars().take(EXCERPT_MAX).collect();
            let read = serde_json::from_value::<SaveWeightsForSamplerResponse>(saved).ok();
            read.filter(|saved| saved.path.is_some()).ok_or_else(|| {
                Error::response(format!("`{path}` was answered without a path: {excerpt}"))
            })
        })
    }

    /// Saves an adapter as other programs read it (PEFT's layout); gives its `tinker://` path.
    ///
    /// # Errors
    ///
    /// The name is taken, or a recipient is no public key.
    pub fn save_weights_external(
        &self,
        options: impl Into<SaveOptions>,
    ) -> ApiFuture<SaveWeightsExternalResponse> {
        let (model_id, options) = (self.inner.model_id.clone(), options.into());
        if let Err(error) = options.check() {
            return self.http().start(async { Err(error) });
        }
        let recipients = Some(options.recipients).filter(|recipients| !recipients.is_empty());
        self.call("save_weights_external", "SaveWeightsExternal", false, move |seq_id| {
            SaveWeightsExternalRequest {
                model_id,
                seq_id: Some(seq_id),
                path: Some(options.name),
                ttl_seconds: options.ttl_seconds,
                age_encryption_recipients: recipients,
            }
        })
    }

    /// A sampler of the weights as they are after everything called before.
    pub fn save_weights_and_get_sampling_client(&self) -> ApiFuture<SamplingClient> {
        self.save_weights_and_get_sampling_client_with(SamplingOptions::default())
    }

    /// [`Self::save_weights_and_get_sampling_client`] with a name (then the weights stay as a checkpoint), the
    /// kind `inflight` (then all such samplers move on together), or other options.
    pub fn save_weights_and_get_sampling_client_with(
        &self,
        options: SamplingOptions,
    ) -> ApiFuture<SamplingClient> {
        let session = Arc::clone(self.session());
        let base_model = self.base_model().to_owned();
        if let Some(name) = options.name.clone() {
            let saved = self.save_weights_for_sampler(name);
            return self.http().start(async move {
                let path = saved.await?.path.ok_or_else(|| {
                    Error::response("no path for weights that were saved under a name")
                })?;
                SamplingClient::create_in(session, Source::Path(path), options).await
            });
        }
        let (model_id, sampler) = (self.inner.model_id.clone(), session.next_sampler());
        let kind = options.kind.unwrap_or(SamplerKind::Snapshot);
        let saved: ApiFuture<SaveWeightsForSamplerResponse> =
            self.call("save_weights_for_sampler", "SaveWeightsForSampler", false, move |seq_id| {
                SaveWeightsForSamplerRequest {
                    model_id,
                    seq_id: Some(seq_id),
                    path: None,
                    sampling_session_seq_id: Some(sampler),
                    kind,
                    ttl_seconds: None,
                    user_metadata: None,
                }
            });
        self.http().start(async move {
            let id = saved.await?.sampling_session_id.ok_or_else(|| {
                Error::response("no sampling_session_id for weights that were saved without a name")
            })?;
            Ok(SamplingClient::new(session, id, Some(base_model), options))
        })
    }

    /// A sampler of a checkpoint of this run or another.
    ///
    /// # Errors
    ///
    /// There is no such checkpoint.
    pub fn create_sampling_client(
        &self,
        model_path: impl Into<String>,
    ) -> ApiFuture<SamplingClient> {
        let (session, path) = (Arc::clone(self.session()), model_path.into());
        self.http().start(async move {
            let options = SamplingOptions::default();
            SamplingClient::create_in(session, Source::Path(path), options).await
        })
    }
}

/// Paths of checkpoints are `tinker://<run>/<kind>/<name>`.
pub(crate) fn check_path(path: &str) -> Result<()> {
    let parsed = path.parse::<tinsmith_types::path::CheckpointPath>();
    parsed.map(drop).map_err(|error| Error::validation(error.to_string()))
}
