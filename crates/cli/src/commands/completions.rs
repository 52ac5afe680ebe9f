//! `tinsmith completions`: what a shell needs to complete these commands.

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::terminal::say;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The shell: `tinsmith completions bash > ~/.local/share/bash-completion/completions/tinsmith`.
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut crate::Arguments::command(),
        "tinsmith",
        &mut script,
    );
    say(String::from_utf8(script).context("write the script")?.trim_end());
    Ok(())
}
