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
mod remote;
mod run;
mod table;
mod terminal;
mod tokenizers;

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
    /// Training runs of a server.
    #[command(subcommand)]
    Run(commands::run::Command),
    /// Sessions of a server.
    #[command(subcommand)]
    Session(commands::session::Command),
    /// Checkpoints of a server, and in the data directory.
    #[command(subcommand)]
    Checkpoint(commands::checkpoint::Command),
    /// Base models of a server.
    #[command(subcommand)]
    Model(commands::model::Command),
    /// Sample from a model or a checkpoint of a server, or chat with it.
    Sample(commands::sample::Arguments),
    /// Fine-tune an adapter on a JSONL file, on a server.
    Train(commands::train::Arguments),
    /// What was used on a server.
    Usage(commands::usage::Arguments),
    /// The key that a server is asked with.
    #[command(subcommand)]
    Auth(commands::auth::Command),
    /// The settings.
    #[command(subcommand)]
    Config(commands::config::Command),
    /// Write the script that lets a shell complete these commands.
    Completions(commands::completions::Arguments),
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
            Self::Run(command) => commands::run::run(&command),
            Self::Session(command) => commands::session::run(&command),
            Self::Checkpoint(command) => commands::checkpoint::run(&command),
            Self::Model(command) => commands::model::run(&command),
            Self::Sample(arguments) => commands::sample::run(&arguments),
            Self::Train(arguments) => commands::train::run(&arguments),
            Self::Usage(arguments) => commands::usage::run(&arguments),
            Self::Auth(command) => commands::auth::run(&command),
            Self::Config(command) => commands::config::run(&command),
            Self::Completions(arguments) => commands::completions::run(&arguments),
            Self::Version => commands::version::run(),
        }
    }
}
