//! `checkpoints`, those of a run, and `copy_weights`.

use std::fmt;

use serde_json::Value;
use tinsmith_types::{
    checkpoints::{
        Checkpoint, ExternalWeightsUrlsResponse, ListCheckpointsResponse, SetTtlRequest,
    },
    weights::{CopyWeightsRequest, CopyWeightsResponse},
};

use super::{
    ListOptions, Pages, RestClient, TinkerPath, address, pages::Page, place, place_of, segment,
};
use crate::{ApiFuture, CopyOptions, Error, Result, http::Call};

/// Entries of a page, unless the caller says otherwise: as the API documents it.
const LIMIT: u32 = 100;
/// The API's shortest and longest times to live, in seconds: an hour and ten years.
const TTL_SECONDS: std::ops::RangeInclusive<u64> = 3600..=315_360_000;

impl RestClient {
    /// The checkpoints of a run, of all kinds.
    pub fn list_checkpoints(&self, training_run_id: &str) -> ApiFuture<ListCheckpointsResponse> {
        let path = segment("training run id", training_run_id);
        self.get_checked(path.map(|id| format!("training_runs/{id}/checkpoints")), Vec::new())
    }

    /// A page of the caller's checkpoints, newest first: 100 from the first on, unless `options` says otherwise.
    pub fn list_user_checkpoints(
        &self,
        options: ListOptions,
    ) -> ApiFuture<ListCheckpointsResponse> {
        self.get("checkpoints".to_owned(), options.query(LIMIT))
    }

    /// All of the caller's checkpoints from `options.offset` on, newest first, fetched as they are read.
    pub fn user_checkpoints(&self, options: ListOptions) -> Pages<Checkpoint> {
        let client = self.clone();
        Pages::new(options, move |options| {
            client.list_user_checkpoints(options).map(|page| Page {
                items: page.checkpoints,
                total: page.cursor.map(|cursor| cursor.total_count),
            })
        })
    }

    /// One checkpoint, as its run lists it.
    pub fn get_checkpoint_by_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<Checkpoint> {
        let path = address(tinker_path);
        let client = self.clone();
        self.http.start(async move {
            let path = path?;
            let id = path.checkpoint_id();
            let listed = client.list_checkpoints(path.run.as_str()).await?.checkpoints;
            listed.into_iter().find(|checkpoint| checkpoint.checkpoint_id == id).ok_or_else(|| {
                Error::validation(format!(
                    "there is no checkpoint {path}: list_checkpoints({:?}) says which there are",
                    path.run.as_str()
                ))
            })
        })
    }

    /// Deletes the checkpoint `checkpoint_id`, `<kind>/<name>`, of a run.
    pub fn delete_checkpoint(&self, training_run_id: &str, checkpoint_id: &str) -> ApiFuture<()> {
        self.delete(place_of(training_run_id, checkpoint_id))
    }

    /// Deletes a checkpoint.
    pub fn delete_checkpoint_from_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<()> {
        self.delete(address(tinker_path).and_then(|path| place(&path)))
    }

    /// [`RestClient::delete_checkpoint_from_tinker_path`] by its other name.
    pub fn delete_checkpoint_by_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<()> {
        self.delete_checkpoint_from_tinker_path(tinker_path)
    }

    /// Lets anybody read a checkpoint.
    pub fn publish_checkpoint_from_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<()> {
        let path = address(tinker_path).and_then(|path| Ok(format!("{}/publish", place(&path)?)));
        let http = self.http.clone();
        self.http.start(async move { http.send(&Call::post_empty(&path?)).await.map(drop) })
    }

    /// [`RestClient::publish_checkpoint_from_tinker_path`] by its other name.
    pub fn publish_checkpoint(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<()> {
        self.publish_checkpoint_from_tinker_path(tinker_path)
    }

    /// Takes the publishing of a checkpoint back.
    pub fn unpublish_checkpoint_from_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<()> {
        self.delete(address(tinker_path).and_then(|path| Ok(format!("{}/publish", place(&path)?))))
    }

    /// [`RestClient::unpublish_checkpoint_from_tinker_path`] by its other name.
    pub fn unpublish_checkpoint(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<()> {
        self.unpublish_checkpoint_from_tinker_path(tinker_path)
    }

    /// Sets the seconds, from now on, until a checkpoint goes away; `None` keeps it.
    pub fn set_checkpoint_ttl_from_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
        ttl_seconds: Option<u64>,
    ) -> ApiFuture<()> {
        let path = address(tinker_path).and_then(|path| Ok(format!("{}/ttl", place(&path)?)));
        let http = self.http.clone();
        self.http.start(async move {
            let request = SetTtlRequest { ttl_seconds: ttl(ttl_seconds)? };
            http.put::<Value>(&path?, &request).await.map(drop)
        })
    }

    /// A URL for each file of an external checkpoint; no key is asked for there, and all expire.
    pub fn get_external_weights_urls(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<ExternalWeightsUrlsResponse> {
        let path = address(tinker_path);
        let path = path.and_then(|path| Ok(format!("{}/external_weights_urls", place(&path)?)));
        self.get_checked(path, Vec::new())
    }

    /// Copies a checkpoint into a new run of the caller's: the copy's path. The run cannot be trained.
    pub fn copy_weights(
        &self,
        path: impl TryInto<TinkerPath, Error: fmt::Display>,
        options: CopyOptions,
    ) -> ApiFuture<String> {
        let path = address(path);
        let http = self.http.clone();
        self.http.start(async move {
            let request = CopyWeightsRequest {
                session_id: None,
                model_seq_id: None,
                destination_project_id: options.destination_project_id,
                source_path: path?.to_string(),
                ttl_seconds: options.ttl_seconds,
                weights_access_token: None,
            };
            let mut call = Call::post("copy_weights", &request)?;
            if let Some(token) = options.weights_access_token {
                call = call.header("X-Tinker-Weights-Access-Token", token.0);
            }
            let copied: CopyWeightsResponse = http.send_json(&call).await?;
            Ok(copied.tinker_path)
        })
    }

    fn delete(&self, path: Result<String>) -> ApiFuture<()> {
        let http = self.http.clone();
        self.http.start(async move { http.delete(&path?).await })
    }
}

/// A time to live that a server may take.
fn ttl(seconds: Option<u64>) -> Result<Option<i64>> {
    let Some(seconds) = seconds else { return Ok(None) };
    if !TTL_SECONDS.contains(&seconds) {
        return Err(Error::validation(format!(
            "a time to live of {seconds} s is none: it goes from {} s (an hour) to {} s (ten years)",
            TTL_SECONDS.start(),
            TTL_SECONDS.end()
        )));
    }
    Ok(i64::try_from(seconds).ok())
}
