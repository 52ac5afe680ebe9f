//! `tinsmith checkpoint`: the checkpoints of a server, and care of those in the data directory.

use anyhow::Result;
use clap::{Args, Subcommand};
use tinsmith::TinkerPath;

use crate::remote::Remote;

mod delete;
mod download;
mod import;
mod info;
mod list;
mod publish;
mod set_ttl;
mod unpublish;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List checkpoints, newest first.
    List(list::Arguments),
    /// Show one checkpoint.
    Info(info::Arguments),
    /// Fetch a checkpoint's files; a fetch that was broken off goes on.
    Download(download::Arguments),
    /// Let anybody read a checkpoint.
    Publish(One),
    /// Take the publishing of a checkpoint back.
    Unpublish(One),
    /// Say how long a checkpoint is kept.
    SetTtl(set_ttl::Arguments),
    /// Delete checkpoints.
    Delete(delete::Arguments),
    /// Make a checkpoint of a LoRA adapter that PEFT (Hugging Face) wrote.
    Import(import::Arguments),
}

/// A command about one checkpoint.
#[derive(Args, Debug)]
pub(crate) struct One {
    /// The checkpoint, as `tinker://RUN/KIND/NAME`.
    path: TinkerPath,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(arguments) => list::run(arguments),
        Command::Info(arguments) => info::run(arguments),
        Command::Download(arguments) => download::run(arguments),
        Command::Publish(arguments) => publish::run(arguments),
        Command::Unpublish(arguments) => unpublish::run(arguments),
        Command::SetTtl(arguments) => set_ttl::run(arguments),
        Command::Delete(arguments) => delete::run(arguments),
        Command::Import(arguments) => import::run(arguments),
    }
}
