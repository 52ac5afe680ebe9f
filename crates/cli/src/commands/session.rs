//! `tinsmith session`: the sessions of a server.

use anyhow::Result;
use clap::Subcommand;

mod export_trace;
mod info;
mod list;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List sessions, newest first.
    List(list::Arguments),
    /// Show a session's training runs and samplers.
    Info(info::Arguments),
    /// Fetch a timeline of a session's operations, for `ui.perfetto.dev`.
    ExportTrace(export_trace::Arguments),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(arguments) => list::run(arguments),
        Command::Info(arguments) => info::run(arguments),
        Command::ExportTrace(arguments) => export_trace::run(arguments),
    }
}
