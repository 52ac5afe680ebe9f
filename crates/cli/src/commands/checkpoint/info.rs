//! `tinsmith checkpoint info`.

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;

use super::One;
use crate::table::{Output, Table, expiry, size, time, yes};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { one: One { path, remote }, output } = arguments;
    let rest = remote.rest()?;
    let (checkpoint, run) =
        (rest.get_checkpoint_by_tinker_path(path), rest.get_training_run_by_tinker_path(path));
    let checkpoint = remote.wait("show the checkpoint", checkpoint)?;
    let run = remote.wait("show the checkpoint's training run", run)?;
    let mut table = Table::properties();
    table.property("checkpoint", Some(&checkpoint.tinker_path));
    table.property("type", Some(checkpoint.checkpoint_type.as_str()));
    table.property("size", checkpoint.size_bytes.map(size));
    table.property("public", Some(yes(checkpoint.public)));
    table.property("made", Some(time(&checkpoint.time)));
    table.property("expires", Some(expiry(checkpoint.expires_at.as_deref())));
    table.property("training run", Some(&run.training_run_id));
    table.property("base model", Some(&run.base_model));
    table.property("LoRA rank", run.lora_rank);
    for (key, value) in checkpoint.user_metadata.iter().flatten() {
        table.property(&format!("note {key}"), Some(value));
    }
    let mut json = serde_json::to_value(&checkpoint).context("write the answer as JSON")?;
    json["base_model"] = json!(run.base_model);
    json["is_lora"] = json!(run.is_lora);
    json["lora_rank"] = json!(run.lora_rank);
    output.show(&json, &table)
}
