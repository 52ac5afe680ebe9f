//! `tinsmith checkpoint`: care of the checkpoints in the data directory.

use clap::Subcommand;

mod import;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a checkpoint of a LoRA adapter that PEFT (Hugging Face) wrote.
    Import(import::Arguments),
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Import(arguments) => import::run(arguments),
    }
}
