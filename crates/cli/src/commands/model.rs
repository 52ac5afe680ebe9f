//! `tinsmith model`: the base models of a server.

use anyhow::Result;
use clap::Subcommand;

mod list;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the base models that can be trained or sampled.
    List(list::Arguments),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(arguments) => list::run(arguments),
    }
}
