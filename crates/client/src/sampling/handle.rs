//! A sampler that is passed on to another process.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinsmith_types::{
    ids::{SamplingSessionId, SessionId},
    sampling::{JoinSamplingSessionRequest, JoinSamplingSessionResponse},
};
use tokio::sync::OnceCell;

use super::{Inner, SamplingClient, SamplingOptions, dispatch::Dispatch};
use crate::{
    Config, Error, Result,
    http::{Call, Http, Pool},
    session::Session,
};

/// Numbers of clones where the server does not give them.
const CLONES: u128 = 1_000_000_000;

/// As the official SDK writes it.
#[derive(Debug, Deserialize, Serialize)]
struct Handle {
    session_id: SessionId,
    sampling_session_id: SamplingSessionId,
    holder: Holder,
    #[serde(default)]
    base_model: Option<String>,
    #[serde(default)]
    record_stability_info: bool,
}

#[derive(Debug, Deserialize, Serialize)]
struct Holder {
    base_url: String,
    #[serde(default)]
    default_headers_overrides: Value,
    #[serde(default)]
    client_config: Value,
    #[serde(default)]
    client_dynamic_config: Value,
    #[serde(default)]
    api_key: Option<String>,
}

impl SamplingClient {
    /// A text with which another process samples from the same weights, without the key. It is the official
    /// SDK's too.
    pub fn get_sampler_handle(&self) -> String {
        let inner = &self.inner;
        let handle = Handle {
            session_id: inner.session.id.clone(),
            sampling_session_id: inner.id.clone(),
            holder: Holder {
                base_url: self.http().config.base_url().to_owned(),
                default_headers_overrides: json!({}),
                client_config: json!({}),
                client_dynamic_config: json!({}),
                api_key: None,
            },
            base_model: inner.base_model.get().cloned(),
            record_stability_info: inner.options.record_stability_info,
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&handle).unwrap_or_default())
    }

    /// The sampler that a handle names. The address is the handle's, everything else the configuration's.
    ///
    /// # Errors
    ///
    /// A text that is no handle.
    pub fn from_sampler_handle(handle: &str, config: &Config) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            Error::validation(format!("this is no sampler handle: {error}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(handle.trim().trim_end_matches('='));
        let bytes = bytes.map_err(|error| wrong(&error))?;
        let handle: Handle = serde_json::from_slice(&bytes).map_err(|error| wrong(&error))?;
        let config = config.to_builder().base_url(handle.holder.base_url).build()?;
        let http = Http::new(config)?;
        let options = SamplingOptions::new().record_stability_info(handle.record_stability_info);
        let session = Session::of(http, handle.session_id);
        let inner = Inner {
            dispatch: Dispatch::new(&session.http, &options),
            session,
            id: handle.sampling_session_id,
            base_model: OnceCell::new_with(handle.base_model),
            tokenizer_id: OnceCell::new(),
            options,
            next: 0.into(),
            clone_id: OnceCell::new(),
            feed: OnceCell::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The number of this client among those of its sampler: from the server where it gives them.
    pub(super) async fn join(&self) -> Result<i64> {
        let http = self.http();
        if http.server().await?.config.sample_join_sampling_session != Some(true) {
            let random = uuid::Uuid::new_v4().as_u128() % CLONES;
            return Ok(i64::try_from(random).unwrap_or(0) + 1);
        }
        let sampling_session_id = self.inner.id.clone();
        let request = JoinSamplingSessionRequest { sampling_session_id };
        let call = Call::post("join_sampling_session", &request)?.pool(Pool::Sampling);
        let joined: JoinSamplingSessionResponse = http.send_json(&call).await?;
        Ok(joined.client_counter)
    }
}
