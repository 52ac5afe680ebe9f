//! A run that is lost goes on from one of its checkpoints.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use tinsmith_types::{
    checkpoints::{Checkpoint, CheckpointType, ListCheckpointsResponse},
    runs::TrainingRun,
};

use crate::{
    ApiFuture, Backoff, Error, FromStateOptions, Result, ServiceClient, TrainingClient,
    future::AbortOnDrop, http::Http,
};

/// Which checkpoint a run goes on from.
#[derive(Clone, Debug, PartialEq)]
pub enum RecoveryStrategy {
    /// The newest.
    Latest,
    /// This one.
    Specific(String),
    /// The one whose `user_metadata` has the best number under this name.
    Best {
        /// Such as `eval_loss`.
        metric: String,
        /// Whether less is better.
        lower_is_better: bool,
    },
}

/// Somebody who wants to know.
type Told<T> = Arc<dyn Fn(&T) + Send + Sync>;

/// How a run is recovered.
#[derive(Clone)]
pub struct RecoveryPolicy {
    /// Which checkpoint (default: the newest).
    pub strategy: RecoveryStrategy,
    /// Attempts (default 3).
    pub max_attempts: u32,
    /// Between two attempts (default 5 s, doubling to 60 s).
    pub backoff: Backoff,
    /// Between two looks at a run that is watched (default 30 s).
    pub poll_interval: Duration,
    /// Load the optimizer's state too (default: yes).
    pub restore_optimizer: bool,
    on_recovery: Option<Told<Recovered>>,
    on_failure: Option<Told<Error>>,
}

impl Default for RecoveryPolicy {
    fn default() -> Self {
        Self {
            strategy: RecoveryStrategy::Latest,
            max_attempts: 3,
            backoff: Backoff { initial: Duration::from_secs(5), max: Duration::from_secs(60) },
            poll_interval: Duration::from_secs(30),
            restore_optimizer: true,
            on_recovery: None,
            on_failure: None,
        }
    }
}

impl RecoveryPolicy {
    /// Go on from this checkpoint.
    #[must_use]
    pub fn strategy(mut self, strategy: RecoveryStrategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Told of every recovery.
    #[must_use]
    pub fn on_recovery(mut self, told: impl Fn(&Recovered) + Send + Sync + 'static) -> Self {
        self.on_recovery = Some(Arc::new(told));
        self
    }

    /// Told when all attempts have failed.
    #[must_use]
    pub fn on_failure(mut self, told: impl Fn(&Error) + Send + Sync + 'static) -> Self {
        self.on_failure = Some(Arc::new(told));
        self
    }
}

impl fmt::Debug for RecoveryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoveryPolicy")
            .field("strategy", &self.strategy)
            .field("max_attempts", &self.max_attempts)
            .field("backoff", &self.backoff)
            .field("poll_interval", &self.poll_interval)
            .field("restore_optimizer", &self.restore_optimizer)
            .finish_non_exhaustive()
    }
}

/// A run that goes on.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The new run.
    pub client: TrainingClient,
    /// The checkpoint that it goes on from.
    pub checkpoint: String,
    /// The run that was lost.
    pub lost_run: String,
    /// Attempts that it took.
    pub attempts: u32,
}

/// Watches a run until it is dropped.
#[must_use = "the run is watched until this is dropped"]
#[derive(Debug)]
pub struct RecoveryMonitor {
    _task: AbortOnDrop,
}

impl ServiceClient {
    /// A new run from a checkpoint of `training_run_id`, chosen as `policy` says.
    ///
    /// # Errors
    ///
    /// The run has no such checkpoint; none of the attempts worked.
    pub fn recover(
        &self,
        training_run_id: impl Into<String>,
        policy: RecoveryPolicy,
    ) -> ApiFuture<Recovered> {
        let (service, run) = (self.clone(), training_run_id.into());
        self.session().http.start(async move { recover(&service, &run, &policy).await })
    }

    /// Looks at a run from time to time, and recovers it when the server calls it corrupted; `policy`'s
    /// callbacks are told. It watches until the first recovery, the last failed attempt, or the drop of what
    /// is returned.
    pub fn monitor(
        &self,
        training_run_id: impl Into<String>,
        policy: RecoveryPolicy,
    ) -> RecoveryMonitor {
        let (service, run) = (self.clone(), training_run_id.into());
        let task = self.session().http.spawn(async move { watch(&service, &run, &policy).await });
        RecoveryMonitor { _task: AbortOnDrop(task) }
    }
}

async fn watch(service: &ServiceClient, run: &str, policy: &RecoveryPolicy) {
    let http = &service.session().http;
    loop {
        http.clock().sleep(policy.poll_interval).await;
        match http.get::<TrainingRun>(&format!("training_runs/{run}"), &[]).await {
            Ok(found) if found.corrupted => {
                tracing::warn!(target: "tinsmith::recovery", run, "the run is corrupted");
                // Both outcomes were told.
                drop(recover(service, run, policy).await);
                return;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(target: "tinsmith::recovery", run, %error, "the run cannot be looked at");
            }
        }
    }
}

async fn recover(service: &ServiceClient, run: &str, policy: &RecoveryPolicy) -> Result<Recovered> {
    let mut attempt = 1;
    loop {
        tracing::info!(target: "tinsmith::recovery", run, attempt, "recovering");
        let error = match recover_once(service, run, policy).await {
            Ok((checkpoint, client)) => {
                let lost_run = run.to_owned();
                let recovered = Recovered { client, checkpoint, lost_run, attempts: attempt };
                let checkpoint = &recovered.checkpoint;
                tracing::info!(target: "tinsmith::recovery", run, checkpoint, "recovered");
                if let Some(told) = &policy.on_recovery {
                    told(&recovered);
                }
                return Ok(recovered);
            }
            Err(error) => error,
        };
        if attempt >= policy.max_attempts.max(1) || error.is_user() {
            tracing::error!(target: "tinsmith::recovery", run, %error, "the run stays lost");
            if let Some(told) = &policy.on_failure {
                told(&error);
            }
            return Err(error);
        }
        service.session().http.clock().sleep(policy.backoff.delay(attempt - 1)).await;
        attempt += 1;
    }
}

async fn recover_once(
    service: &ServiceClient,
    run: &str,
    policy: &RecoveryPolicy,
) -> Result<(String, TrainingClient)> {
    let path = match &policy.strategy {
        RecoveryStrategy::Specific(path) => path.clone(),
        strategy @ (RecoveryStrategy::Latest | RecoveryStrategy::Best { .. }) => {
            choose(checkpoints(&service.session().http, run).await?, strategy, run)?
        }
    };
    let options = FromStateOptions::new().load_optimizer(policy.restore_optimizer);
    let client = service.create_training_client_from_state_with(&path, options).await?;
    Ok((path, client))
}

async fn checkpoints(http: &Http, run: &str) -> Result<Vec<Checkpoint>> {
    let path = format!("training_runs/{run}/checkpoints");
    let listed: ListCheckpointsResponse = http.get(&path, &[]).await?;
    let is_training =
        |checkpoint: &Checkpoint| checkpoint.checkpoint_type == CheckpointType::Training;
    Ok(listed.checkpoints.into_iter().filter(is_training).collect())
}

fn choose(checkpoints: Vec<Checkpoint>, strategy: &RecoveryStrategy, run: &str) -> Result<String> {
    if checkpoints.is_empty() {
        return Err(Error::validation(format!("run {run} has no checkpoint to go on from")));
    }
    let newest = |checkpoints: Vec<Checkpoint>| {
        // RFC 3339 in one zone: the order of the texts is that of the times.
        checkpoints.into_iter().max_by(|a, b| a.time.cmp(&b.time))
    };
    let chosen = match strategy {
        RecoveryStrategy::Latest | RecoveryStrategy::Specific(_) => newest(checkpoints),
        RecoveryStrategy::Best { metric, lower_is_better } => {
            let sign = if *lower_is_better { -1.0 } else { 1.0 };
            let score = |checkpoint: &Checkpoint| {
                let notes: &BTreeMap<_, _> = checkpoint.user_metadata.as_ref()?;
                let value = notes.get(metric)?;
                let number = value.as_f64().or_else(|| value.as_str()?.parse().ok())?;
                (!number.is_nan()).then_some(sign * number)
            };
            let best = checkpoints.iter().filter_map(score).max_by(f64::total_cmp);
            // Of equal ones, the newest.
            newest(
                checkpoints
                    .into_iter()
                    .filter(|one| best.is_some() && score(one) == best)
                    .collect(),
            )
        }
    };
    chosen.map(|checkpoint| checkpoint.tinker_path).ok_or_else(|| {
        Error::validation(format!(
            "no checkpoint of run {run} has the number that {strategy:?} goes by"
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checkpoint(name: &str, time: &str, loss: Option<f64>) -> Checkpoint {
        serde_json::from_value(json!({
            "checkpoint_id": format!("weights/{name}"),
            "checkpoint_type": "training",
            "time": time,
            "tinker_path": format!("tinker://r/weights/{name}"),
            "public": false,
            "user_metadata": loss.map(|loss| json!({ "eval_loss": loss })),
        }))
        .unwrap()
    }

    #[test]
    fn the_newest_or_the_best_is_chosen() {
        let all = || {
            vec![
                checkpoint("a", "2026-01-01T00:00:00Z", Some(0.5)),
                checkpoint("b", "2026-01-02T00:00:00Z", Some(0.5)),
                checkpoint("c", "2026-01-03T00:00:00Z", None),
                checkpoint("d", "2026-01-02T12:00:00Z", Some(0.7)),
            ]
        };
        let best = |lower_is_better| RecoveryStrategy::Best {
            metric: "eval_loss".to_owned(),
            lower_is_better,
        };
        assert_eq!(choose(all(), &RecoveryStrategy::Latest, "r").unwrap(), "tinker://r/weights/c");
        assert_eq!(choose(all(), &best(true), "r").unwrap(), "tinker://r/weights/b");
        assert_eq!(choose(all(), &best(false), "r").unwrap(), "tinker://r/weights/d");
        let none = vec![checkpoint("c", "2026-01-03T00:00:00Z", None)];
        assert!(choose(none, &best(true), "r").is_err());
        assert!(choose(Vec::new(), &RecoveryStrategy::Latest, "r").is_err());
    }
}
