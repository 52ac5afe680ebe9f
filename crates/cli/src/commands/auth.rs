//! `tinsmith auth`: whether a server takes the key.

use anyhow::Result;
use clap::Subcommand;

mod status;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask the server whether it takes the key, and whose it is.
    Status(status::Arguments),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Status(arguments) => status::run(arguments),
    }
}
