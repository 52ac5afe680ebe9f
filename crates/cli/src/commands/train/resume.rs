//! Going on from a checkpoint: what a checkpoint says of its training, and whether that is this one.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinsmith::{ListOptions, ServiceClient, TinkerPath, TrainingClient};
use tinsmith_types::{
    checkpoints::{Checkpoint, CheckpointType},
    session::Metadata,
};

use super::Arguments;

/// Under which note a checkpoint has its mark.
const NOTE: &str = "tinsmith_train";
/// Checkpoints that are looked through for the newest of a training.
const LOOK_MAX: usize = 1000;

/// What the order of the rows depends on.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub(super) struct Mark {
    file: String,
    rows: usize,
    batch_size: usize,
    seed: u64,
}

#[derive(Deserialize, Serialize)]
struct At {
    step: usize,
    #[serde(flatten)]
    mark: Mark,
}

impl Mark {
    pub(super) fn of(arguments: &Arguments, rows: usize) -> Self {
        let name = arguments.file.file_name().map(|name| name.to_string_lossy().into_owned());
        let Arguments { batch_size, seed, .. } = arguments;
        Self { file: name.unwrap_or_default(), rows, batch_size: *batch_size, seed: *seed }
    }

    /// The notes of a checkpoint after `step` steps.
    pub(super) fn at(&self, step: usize) -> BTreeMap<String, Value> {
        let at = At { step, mark: self.clone() };
        // Notes are texts.
        let note = json!(at).to_string();
        [(NOTE.to_owned(), Value::String(note))].into()
    }

    /// The step of a checkpoint of this training.
    fn read(&self, path: &TinkerPath, notes: Option<&Metadata>) -> Result<usize> {
        let note = notes.and_then(|notes| notes.get(NOTE)).and_then(Value::as_str);
        let note =
            note.with_context(|| format!("go on from {path}: `tinsmith train` did not make it"))?;
        let At { step, mark } =
            serde_json::from_str(note).with_context(|| format!("read the notes of {path}"))?;
        let same = [
            ("the file", mark.file == self.file, &mark.file, &self.file),
            (
                "the number of rows",
                mark.rows == self.rows,
                &mark.rows.to_string(),
                &self.rows.to_string(),
            ),
            (
                "--batch-size",
                mark.batch_size == self.batch_size,
                &mark.batch_size.to_string(),
                &self.batch_size.to_string(),
            ),
            ("--seed", mark.seed == self.seed, &mark.seed.to_string(), &self.seed.to_string()),
        ];
        for (what, is_same, then, now) in same {
            ensure!(
                is_same,
                "go on from {path}: {what} was {then} and is {now} now: rows would come twice, or never"
            );
        }
        Ok(step)
    }
}

/// The run as it was, and the number of steps that it has done.
pub(super) fn resume(
    arguments: &Arguments,
    service: &ServiceClient,
    path: Option<&TinkerPath>,
    mark: &Mark,
) -> Result<(TrainingClient, usize)> {
    let remote = &arguments.remote;
    let rest = remote.rest()?;
    let (path, step) = match path {
        Some(path) => {
            let call = rest.get_checkpoint_by_tinker_path(path);
            let checkpoint = remote.wait("find the checkpoint", call)?;
            (path.clone(), mark.read(path, checkpoint.user_metadata.as_ref())?)
        }
        None => {
            let pages = rest.user_checkpoints(ListOptions::new()).into_iter();
            let listed: tinsmith::Result<Vec<Checkpoint>> = pages.take(LOOK_MAX).collect();
            let listed = remote.explained("look for a checkpoint to go on from", listed)?;
            let newest = listed
                .iter()
                .filter(|it| it.checkpoint_type == CheckpointType::Training)
                .filter_map(|it| {
                    let path: TinkerPath = it.tinker_path.parse().ok()?;
                    let step = mark.read(&path, it.user_metadata.as_ref()).ok()?;
                    Some((path, step, &it.time))
                })
                .max_by_key(|(_, _, time)| *time);
            match newest {
                Some((path, step, _)) => (path, step),
                None => bail!(
                    "find a checkpoint of a training on {} with the same rows, --batch-size and --seed: leave \
                     --resume out to begin",
                    mark.file
                ),
            }
        }
    };
    let call = service.create_training_client_from_state_with_optimizer(path.to_string());
    Ok((remote.wait(&format!("go on from {path}"), call)?, step))
}
