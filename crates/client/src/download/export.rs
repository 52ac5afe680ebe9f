//! A training checkpoint as files that other programs read: exported for the download, and deleted after it.

use serde_json::json;

use crate::{
    FromStateOptions, RestClient, Result, SaveOptions, ServiceClient, TinkerPath, http::Http,
};

/// Seconds that an export is kept where the download dies: the shortest that servers take.
pub(super) const TTL_SECONDS: u64 = 3600;

/// An export, and the session that it was made in.
pub(super) struct Export {
    pub(super) path: TinkerPath,
    service: ServiceClient,
}

impl Export {
    /// Loads the checkpoint into a run of its own, and exports that.
    pub(super) async fn make(http: &Http, path: &TinkerPath) -> Result<Self> {
        let service = ServiceClient::connect(http.config.clone()).await?;
        match export(&service, path).await {
            Ok(path) => Ok(Self { path, service }),
            Err(error) => {
                close(&service).await;
                Err(error)
            }
        }
    }

    /// Deletes the export. Where that fails it goes away by itself.
    pub(super) async fn remove(self, client: &RestClient) {
        if let Err(error) = client.delete_checkpoint_from_tinker_path(&self.path).await {
            tracing::warn!(%error, path = %self.path, "an export stays until its time is over");
        }
        close(&self.service).await;
    }
}

async fn export(service: &ServiceClient, path: &TinkerPath) -> Result<TinkerPath> {
    let note = ("created_by".to_owned(), json!("tinsmith checkpoint download"));
    let options = FromStateOptions::new().user_metadata([note].into());
    let training =
        service.create_training_client_from_state_with(path.to_string(), options).await?;
    let options =
        SaveOptions::new("download").ttl_seconds(i64::try_from(TTL_SECONDS).unwrap_or(i64::MAX));
    let saved = training.save_weights_external(options).await?;
    Ok(saved.path.parse::<TinkerPath>()?)
}

async fn close(service: &ServiceClient) {
    if let Err(error) = service.close().await {
        tracing::debug!(%error, "the session of a download was not closed");
    }
}
