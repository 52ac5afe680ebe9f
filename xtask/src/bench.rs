//! `cargo xtask bench`: the figures of this machine, measured by the binary itself.

use std::path::Path;

use anyhow::Result;

use crate::run::run as exec;

/// Runs `tinsmith bench` from a release build, with `arguments` handed on.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let mut line = vec!["run", "--release", "--locked", "--quiet", "--", "bench"];
    line.extend(arguments.iter().map(String::as_str));
    exec(root, "cargo", &line)
}

/// Every benchmark once, on the smallest sizes, so that none rots.
pub(crate) fn smoke(root: &Path) -> Result<()> {
    let benches = ["bench", "--workspace", "--bench", "*", "--locked", "--quiet", "--", "--test"];
    exec(root, "cargo", &benches)?;
    run(root, &["--smoke".to_owned()])
}
