//! `tinsmith checkpoint set-ttl`.

use anyhow::Result;
use clap::Args;

use super::One;
use crate::terminal::say;

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("how_long").required(true).args(["ttl", "remove"]))]
pub(crate) struct Arguments {
    /// Seconds from now, from 3600 to ten years.
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// Keep it.
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    one: One,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { ttl, remove: _, one: One { path, remote } } = arguments;
    let call = remote.rest()?.set_checkpoint_ttl_from_tinker_path(path, *ttl);
    remote.wait("set how long the checkpoint is kept", call)?;
    say(&match ttl {
        Some(seconds) => format!("{path} goes away in {seconds} s"),
        None => format!("{path} is kept"),
    });
    Ok(())
}
