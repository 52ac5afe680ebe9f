//! `tinsmith checkpoint list`.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::{
    remote::{Part, Remote},
    table::{Output, Table, count, expiry, or_dash, size, time, yes},
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Only those of this training run.
    #[arg(long)]
    run_id: Option<String>,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { run_id, part, remote, output } = arguments;
    let rest = remote.rest()?;
    let checkpoints = match run_id {
        Some(id) => rest.list_checkpoints(id).wait().map(|listed| part.of(listed.checkpoints)),
        None => part.read(rest.user_checkpoints(part.options())),
    };
    let checkpoints = remote.explained("list the checkpoints", checkpoints)?;
    let columns = ["path", "type", "size", "public", "made", "expires"];
    let mut title = count(checkpoints.len(), "checkpoint");
    if let Some(id) = run_id {
        title = format!("{title} of {id}");
    }
    let mut table = Table::new(&columns).title(title);
    for it in &checkpoints {
        table.row(vec![
            it.tinker_path.clone(),
            it.checkpoint_type.as_str().to_owned(),
            or_dash(it.size_bytes.map(size)),
            yes(it.public),
            time(&it.time),
            expiry(it.expires_at.as_deref()),
        ]);
    }
    let mut json = json!({ "checkpoints": checkpoints });
    if let Some(id) = run_id {
        json["run_id"] = json!(id);
    }
    output.show(&json, &table)
}
