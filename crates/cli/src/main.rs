//! `tinsmith`: the server, its tools, and a first try, in one binary.
//!
//! The only crate that reads the environment and files of its own, and that prints. A command is one
//! file in `commands/` and one variant below.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod commands;
mod config;
mod device;
mod host;
mod hub;
mod logs;
mod memory;
mod models;
mod random;
mod run;
mod terminal;

/// Your own Tinker: trains and samples LoRA adapters on the hardware that you have.
#[derive(Debug, Parser)]
#[command(name = "tinsmith", version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API for models in Hugging Face format.
    Serve(commands::serve::Arguments),
    /// Train and sample the model that ships, in under a minute.
    Quickstart(commands::quickstart::Arguments),
    /// What this machine can do, and whether a model fits.
    Doctor(commands::doctor::Arguments),
    /// Measure training, sampling and latencies here.
    Bench(commands::bench::Arguments),
    /// The checkpoints in the data directory.
    #[command(subcommand)]
    Checkpoint(commands::checkpoint::Command),
    /// The settings.
    #[command(subcommand)]
    Config(commands::config::Command),
    /// The version, and the kernel set in use.
    Version,
}

fn main() -> ExitCode {
    // What every HTTPS connection of this process is made with; it is set once, here.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        terminal::problem("error: the cryptography was set up twice");
        return ExitCode::FAILURE;
    }
    match Arguments::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::problem(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Serve(arguments) => commands::serve::run(&arguments),
            Self::Quickstart(arguments) => commands::quickstart::run(&arguments),
            Self::Doctor(arguments) => commands::doctor::run(&arguments),
            Self::Bench(arguments) => commands::bench::run(&arguments),
            Self::Checkpoint(command) => commands::checkpoint::run(&command),
            Self::Config(command) => commands::config::run(&command),
            Self::Version => commands::version::run(),
        }
    }
}
