//! `training_runs` and `weights_info`.

use std::fmt;

use tinsmith_types::{
    runs::{ListTrainingRunsResponse, TrainingRun},
    weights::{WeightsInfoRequest, WeightsInfoResponse},
};

use super::{ListOptions, Pages, RestClient, TinkerPath, address, pages::Page, segment};
use crate::ApiFuture;

/// Entries of a page, unless the caller says otherwise: as the API documents it.
const LIMIT: u32 = 20;

impl RestClient {
    /// A training run.
    pub fn get_training_run(&self, training_run_id: &str) -> ApiFuture<TrainingRun> {
        let path = segment("training run id", training_run_id);
        self.get_checked(path.map(|id| format!("training_runs/{id}")), vec![self.scope()])
    }

    /// The training run that a checkpoint belongs to.
    pub fn get_training_run_by_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<TrainingRun> {
        let path =
            address(tinker_path).and_then(|path| segment("training run id", path.run.as_str()));
        self.get_checked(path.map(|id| format!("training_runs/{id}")), vec![self.scope()])
    }

    /// A page of training runs, newest first: 20 from the first on, unless `options` says otherwise.
    pub fn list_training_runs(&self, options: ListOptions) -> ApiFuture<ListTrainingRunsResponse> {
        let mut query = options.query(LIMIT);
        query.push(self.scope());
        self.get("training_runs".to_owned(), query)
    }

    /// All training runs from `options.offset` on, newest first, fetched page by page as they are read.
    pub fn training_runs(&self, options: ListOptions) -> Pages<TrainingRun> {
        let client = self.clone();
        Pages::new(options, move |options| {
            client.list_training_runs(options).map(|page| Page {
                items: page.training_runs,
                total: Some(page.cursor.total_count),
            })
        })
    }

    /// What a checkpoint belongs on: its base model, and its adapter's shape.
    pub fn get_weights_info_by_tinker_path(
        &self,
        tinker_path: impl TryInto<TinkerPath, Error: fmt::Display>,
    ) -> ApiFuture<WeightsInfoResponse> {
        let path = address(tinker_path);
        let http = self.http.clone();
        self.http.start(async move {
            let request =
                WeightsInfoRequest { tinker_path: path?.to_string(), weights_access_token: None };
            http.post("weights_info", &request).await
        })
    }
}
