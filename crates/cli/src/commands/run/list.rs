//! `tinsmith run list`.

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;
use tinsmith_types::runs::TrainingRun;

use super::{lora, status};
use crate::{
    remote::{Part, Remote, Scope},
    table::{Output, Table, count, or_dash, time},
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// What is shown of each, separated by commas.
    #[arg(long, short, value_delimiter = ',', default_values = ["id", "model", "lora", "updated", "status"])]
    columns: Vec<Column>,
    /// Only those of this project.
    #[arg(long)]
    project_id: Option<String>,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Column {
    Id,
    Model,
    Owner,
    Lora,
    Updated,
    Status,
    Checkpoint,
    CheckpointTime,
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Id => "run",
            Self::Model => "base model",
            Self::Owner => "owner",
            Self::Lora => "LoRA",
            Self::Updated => "last update",
            Self::Status => "status",
            Self::Checkpoint => "last checkpoint",
            Self::CheckpointTime => "checkpoint time",
        }
    }

    fn of(self, run: &TrainingRun) -> String {
        let checkpoint = run.last_checkpoint.as_ref();
        match self {
            Self::Id => run.training_run_id.to_string(),
            Self::Model => run.base_model.clone(),
            Self::Owner => run.model_owner.clone(),
            Self::Lora => lora(run.is_lora, run.lora_rank),
            Self::Updated => time(&run.last_request_time),
            Self::Status => status(run.corrupted),
            Self::Checkpoint => or_dash(checkpoint.map(|it| &it.checkpoint_id)),
            Self::CheckpointTime => or_dash(checkpoint.map(|it| time(&it.time))),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { columns, project_id, part, scope, remote, output } = arguments;
    let rest = scope.of(&remote.rest()?);
    let mut options = part.options();
    if let Some(id) = project_id {
        options = options.project_id(id);
    }
    let runs =
        remote.explained("list the training runs", part.read(rest.training_runs(options)))?;
    let names: Vec<&str> = columns.iter().map(|column| column.name()).collect();
    let mut table = Table::new(&names).title(count(runs.len(), "training run"));
    for run in &runs {
        table.row(columns.iter().map(|column| column.of(run)).collect());
    }
    output.show(&json!({ "runs": runs }), &table)
}
