//! `tinsmith run info`.

use anyhow::Result;
use clap::Args;

use super::{lora, status};
use crate::{
    remote::{Remote, Scope},
    table::{Output, Table, time},
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The training run's id, or a path of one of its checkpoints.
    run: String,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { run, scope, remote, output } = arguments;
    let rest = scope.of(&remote.rest()?);
    let call = if run.starts_with("tinker://") {
        rest.get_training_run_by_tinker_path(run.as_str())
    } else {
        rest.get_training_run(run)
    };
    let run = remote.wait("show the training run", call)?;
    let mut table = Table::properties();
    table.property("run", Some(&run.training_run_id));
    table.property("base model", Some(&run.base_model));
    table.property("owner", Some(&run.model_owner));
    table.property("LoRA", Some(lora(run.is_lora, run.lora_rank)));
    table.property("last update", Some(time(&run.last_request_time)));
    table.property("status", Some(status(run.corrupted)));
    let checkpoints =
        [("training", &run.last_checkpoint), ("sampler", &run.last_sampler_checkpoint)];
    for (kind, checkpoint) in checkpoints {
        let Some(checkpoint) = checkpoint else { continue };
        table.property(&format!("last {kind} checkpoint"), Some(&checkpoint.tinker_path));
        table.property("  made", Some(time(&checkpoint.time)));
    }
    for (key, value) in run.user_metadata.iter().flatten() {
        table.property(&format!("note {key}"), Some(value));
    }
    output.show(&run, &table)
}
