//! Runs a command in the workspace's folder, its output on the terminal.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

/// Runs `program` with `arguments`; an exit code other than 0 is an error.
pub(crate) fn run(root: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    run_with(root, program, arguments, &[])
}

/// The same with environment variables.
pub(crate) fn run_with(
    root: &Path,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<()> {
    let line = format!("{program} {}", arguments.join(" "));
    let status = command(root, program, arguments)
        .envs(environment.iter().copied())
        .status()
        .with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("run `{line}`: {status}");
    }
    Ok(())
}

/// What `program` prints, or `None` if it cannot be started or fails.
pub(crate) fn output(root: &Path, program: &str, arguments: &[&str]) -> Option<String> {
    let output = command(root, program, arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command(root: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    // Cargo sets this for xtask; subcommands such as machete would think that cargo runs them as a package.
    command.args(arguments).current_dir(root).env_remove("CARGO_PKG_NAME");
    command
}
