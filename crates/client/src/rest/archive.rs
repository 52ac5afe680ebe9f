//! All files of a checkpoint as one: what SDKs up to 0.35 download.

use std::{fmt, time::Duration};

use tinsmith_types::checkpoints::CheckpointArchiveUrlResponse;

use super::{RestClient, TinkerPath, address, place, place_of};
use crate::{
    ApiFuture, Error, Result,
    http::{Call, Http, parse, refused},
};

/// Between two looks at an archive that is being made.
const ARCHIVE_POLL: Duration = Duration::from_secs(30);
/// Looks at an archive that is being made.
const ARCHIVE_POLLS_MAX: u32 = 6;

impl RestClient {
    /// A URL of a tar with all files of the checkpoint `checkpoint_id`, `<kind>/<name>`, of a run. No key is asked
    /// for there, and it expires.
    pub fn get_checkpoint_archive_url(
        &self,
        training_run_id: &str,
        checkpoint_id: &str,
    ) -> ApiFuture<CheckpointArchiveUrlResponse> {
        self.archive_url(place_of(training_run_id, checkpoint_id))
    }

    /// The same by the checkpoint's path.
    pub fn get_checkpoint_archive_url_by_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<CheckpointArchiveUrlResponse> {
        self.archive_url(address(tinker_path).and_then(|path| place(&path)))
    }

    /// [`RestClient::get_checkpoint_archive_url_by_tinker_path`] by its other name.
    pub fn get_checkpoint_archive_url_from_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<CheckpointArchiveUrlResponse> {
        self.get_checkpoint_archive_url_by_tinker_path(tinker_path)
    }

    fn archive_url(&self, place: Result<String>) -> ApiFuture<CheckpointArchiveUrlResponse> {
        let http = self.http.clone();
        self.http.start(async move {
            let path = format!("{}/archive", place?);
            let mut looks = 0;
            loop {
                looks += 1;
                match look(&http, &path).await {
                    // It is being made, or the answer was lost.
                    Err(Error::Api { status: 429 | 503, .. } | Error::Connection { .. })
                        if looks < ARCHIVE_POLLS_MAX =>
                    {
                        http.clock().sleep(ARCHIVE_POLL).await;
                    }
                    answer => return answer,
                }
            }
        })
    }
}

/// Servers answer with the URL in JSON, or redirect to it, which is not followed: the URL is the answer.
async fn look(http: &Http, path: &str) -> Result<CheckpointArchiveUrlResponse> {
    http.server().await?;
    let call = Call::get(path);
    let reply = http.exchange_bytes(http.request(&call)).await?;
    let text = |name: &str| reply.headers.get(name).and_then(|value| value.to_str().ok());
    match (reply.status.as_u16(), text("location")) {
        (200..=299, _) => parse(&reply.bytes),
        (301..=399, Some(url)) => Ok(CheckpointArchiveUrlResponse {
            url: url.to_owned(),
            expires: text("expires").unwrap_or_default().to_owned(),
        }),
        _ => Err(refused(&reply)),
    }
}
