//! `tinsmith run`: the training runs of a server.

use anyhow::Result;
use clap::Subcommand;

mod info;
mod list;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List training runs, newest first.
    List(list::Arguments),
    /// Show one training run.
    Info(info::Arguments),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(arguments) => list::run(arguments),
        Command::Info(arguments) => info::run(arguments),
    }
}

/// How a run's adapter is called in tables.
fn lora(is_lora: bool, rank: Option<u32>) -> String {
    match (is_lora, rank) {
        (true, Some(rank)) => format!("rank {rank}"),
        (true, None) => "yes".to_owned(),
        (false, _) => "no".to_owned(),
    }
}

fn status(corrupted: bool) -> String {
    if corrupted { "failed" } else { "ok" }.to_owned()
}
