//! Cargo's helpers at pinned versions, installed where they are missing.

use std::path::Path;

use anyhow::Result;

use crate::{
    run::{output, run},
    say,
};

/// A cargo subcommand.
#[derive(Debug)]
pub(crate) struct Tool {
    /// `nextest` of `cargo nextest`.
    pub(crate) command: &'static str,
    package: &'static str,
    version: &'static str,
}

/// Runs the tests.
pub(crate) const NEXTEST: Tool =
    Tool { command: "nextest", package: "cargo-nextest", version: "0.9.143" };
/// Holds the arrows between crates, licences and sources.
pub(crate) const DENY: Tool = Tool { command: "deny", package: "cargo-deny", version: "0.20.2" };
/// Finds dependencies that nothing uses.
pub(crate) const MACHETE: Tool =
    Tool { command: "machete", package: "cargo-machete", version: "0.9.2" };

impl Tool {
    /// Installs the tool if cargo does not know it; any version that is there will do.
    pub(crate) fn ensure(&self, root: &Path) -> Result<()> {
        if output(root, "cargo", &[self.command, "--version"]).is_some() {
            return Ok(());
        }
        let Self { package, version, .. } = self;
        say(&format!("installing {package} {version} (once)"));
        let wanted = format!("{package}@{version}");
        // A build profile without optimisation would be quicker to build, but deny and nextest run often.
        run(root, "cargo", &["install", "--locked", "--quiet", &wanted])
    }
}
