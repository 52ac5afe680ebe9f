//! Programs that answer a line with a line of JSON, so that several can take turns.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Threads of OpenMP stay on their cores.
const PINNED: [(&str, &str); 2] = [("OMP_PROC_BIND", "true"), ("OMP_PLACES", "cores")];

/// A program that waits for its next line.
#[derive(Debug)]
pub(crate) struct Peer {
    /// What it is called in the table.
    pub(crate) label: String,
    /// What it said of itself when it was ready.
    pub(crate) ready: Value,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(
        root: &Path,
        label: &str,
        program: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut child = command(root, program, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {label}: {program}"))?;
        let input = child.stdin.take().context("take its input")?;
        let output = BufReader::new(child.stdout.take().context("take its output")?);
        let mut peer = Self { label: label.to_owned(), ready: Value::Null, child, input, output };
        peer.ready = peer.answer()?;
        Ok(peer)
    }

    /// Its answer to `line`.
    pub(crate) fn ask(&mut self, line: &str) -> Result<Value> {
        writeln!(self.input, "{line}")
            .and_then(|()| self.input.flush())
            .with_context(|| format!("ask {} for `{line}`", self.label))?;
        self.answer().with_context(|| format!("ask {} for `{line}`", self.label))
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.output.read_line(&mut line).context("read its answer")?;
            if read == 0 {
                bail!("hear from {}: it ended; what it said stands above", self.label);
            }
            if line.starts_with('{') {
                return serde_json::from_str(&line).context("read its answer as JSON");
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What `program` prints, all of it; an exit code other than 0 is an error.
pub(crate) fn text(root: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let line = format!("{program} {}", arguments.join(" "));
    let output = command(root, program, arguments)
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("start `{line}`"))?;
    if !output.status.success() {
        bail!("run `{line}`: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command(root: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root).envs(PINNED);
    command
}
