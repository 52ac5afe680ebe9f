//! `cargo xtask bench`: the figures of this machine, measured by the binary itself; `bench client`: the client's own,
//! beside the official SDK's; `bench peers`: beside PyTorch and llama.cpp; `bench growth`: pictures for the docs;
//! `bench counts`: instructions.

use std::path::Path;

use anyhow::Result;

use crate::{python, run::run as exec};

pub(crate) mod counts;
mod llama;
mod peers;
mod process;
mod table;

/// Runs `tinsmith bench` from a release build, with `arguments` handed on.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    match arguments.first().map(String::as_str) {
        Some("client") => return client(root),
        Some("counts") => return counts::run(root, &arguments[1..]),
        Some("peers") => return peers::run(root, &arguments[1..]),
        _ => {}
    }
    let mut line = vec!["run", "--release", "--locked", "--quiet", "--", "bench"];
    line.extend(arguments.iter().map(String::as_str));
    if arguments.first().is_some_and(|argument| argument == "growth") {
        line.push("docs/growth");
    }
    exec(root, "cargo", &line)
}

/// Processor time of a request in this client and in the official SDK, against the same mock server.
fn client(root: &Path) -> Result<()> {
    let python = python::E2E.program(root, "python")?;
    let bench = ["bench", "--package", "tinsmith", "--bench", "client", "--locked", "--quiet"];
    exec(root, "cargo", &[&bench[..], &["--", "--python", &python]].concat())
}

/// Every benchmark once, on the smallest sizes, so that none rots.
pub(crate) fn smoke(root: &Path) -> Result<()> {
    let benches = ["bench", "--workspace", "--bench", "*", "--locked", "--quiet", "--", "--test"];
    exec(root, "cargo", &benches)?;
    run(root, &["--smoke".to_owned()])
}
