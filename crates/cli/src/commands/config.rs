//! `tinsmith config show`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::{
    config::{SETTINGS, Settings, Values},
    terminal::say,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print every setting's value and where it came from.
    Show {
        /// Settings file; without it `$TINSMITH_CONFIG`, else `./tinsmith.toml`.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

pub(crate) fn run(command: &Command) -> Result<()> {
    let Command::Show { config } = command;
    let values = Values::load(&Vec::new(), config.as_deref())?;
    for ((key, value, source), (_, _, help)) in values.all().zip(SETTINGS) {
        say(&format!("{key} = {value:?}  # {source}: {help}"));
    }
    Settings::new(&values)?;
    Ok(())
}
