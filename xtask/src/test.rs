//! `cargo xtask test`: everything that CI runs, in order of speed, with the seconds of each stage.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench, book, compat, examples, python, requirements,
    run::{output, run as exec, run_with},
    say, tidy,
    tools::{DENY, MACHETE, NEXTEST},
};

type Stage = (&'static str, fn(&Path) -> Result<()>);

/// One line a stage.
const STAGES: &[Stage] = &[
    ("fmt", |root| exec(root, "cargo", &["fmt", "--all", "--check"])),
    ("tidy", tidy::run),
    ("requirements", requirements::run),
    ("typos", typos),
    ("clippy", clippy),
    ("deny", deny),
    ("machete", machete),
    ("package", package),
    ("tests", tests),
    ("doctests", |root| {
        exec(root, "cargo", &["test", "--workspace", "--doc", "--locked", "--quiet"])
    }),
    ("book", book::build),
    ("bench smoke", bench::smoke),
    ("counts", bench::counts::check),
    ("quickstart", quickstart),
    ("examples", examples::run),
    ("e2e", e2e),
    ("compat", compat::check),
    ("proofs", requirements::passed),
];

/// What goes to the registry.
const PUBLISHED: [&str; 3] = ["tinsmith-types", "tinsmith-tokenizer", "tinsmith"];

/// The task: the stages named, or all; stops at the first that fails.
pub(crate) fn run(root: &Path, names: &[String]) -> Result<()> {
    for name in names {
        if !STAGES.iter().any(|(stage, _)| stage == name) {
            let known: Vec<_> = STAGES.iter().map(|(stage, _)| *stage).collect();
            bail!("find a stage called `{name}`: there are {}", known.join(", "));
        }
    }
    let mut times = Vec::new();
    for (name, stage) in STAGES {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        say(&format!("== {name}"));
        let start = now();
        stage(root).with_context(|| format!("pass the stage `{name}`"))?;
        times.push((*name, start.elapsed()));
    }
    report(&times);
    Ok(())
}

fn report(times: &[(&str, Duration)]) {
    say("");
    for (name, time) in times {
        say(&format!("{name:>14} {:8.1} s", time.as_secs_f64()));
    }
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    say(&format!("{:>14} {:8.1} s", "total", total.as_secs_f64()));
    say(&format!("{} passed, 0 failed", times.len()));
}

fn typos(root: &Path) -> Result<()> {
    let typos = python::TYPOS.program(root, "typos")?;
    exec(root, &typos, &[])
}

fn clippy(root: &Path) -> Result<()> {
    let arguments =
        ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
    exec(root, "cargo", &arguments)
}

fn deny(root: &Path) -> Result<()> {
    DENY.ensure(root)?;
    // Advisories need a database that is not reachable everywhere: they are checked at a release.
    let arguments = ["deny", "--log-level", "error", "check", "bans", "licenses", "sources"];
    exec(root, "cargo", &arguments)
}

fn machete(root: &Path) -> Result<()> {
    MACHETE.ensure(root)?;
    exec(root, "cargo", &["machete", "--with-metadata"])
}

/// The crates that are published can be packed: what they are made of is in them, and says what it is. The whole of
/// it, with the registry, is `cargo publish --workspace --dry-run`.
fn package(root: &Path) -> Result<()> {
    let mut arguments = vec!["package", "--no-verify", "--allow-dirty", "--offline", "--locked"];
    for published in PUBLISHED {
        arguments.extend(["--package", published]);
    }
    exec(root, "cargo", &arguments)
}

fn tests(root: &Path) -> Result<()> {
    NEXTEST.ensure(root)?;
    let arguments = ["nextest", "run", "--workspace", "--locked", "--profile", "ci"];
    // A snapshot that a test would write anew is a failure here.
    run_with(root, "cargo", &arguments, &[("INSTA_UPDATE", "no")])
}

/// The server, built as it is released.
pub(crate) fn binary(root: &Path) -> Result<String> {
    exec(root, "cargo", &["build", "--release", "--locked", "--quiet"])?;
    Ok(format!("{}/release/tinsmith", target_folder(root)?))
}

/// Where cargo builds.
pub(crate) fn target_folder(root: &Path) -> Result<String> {
    let metadata = output(root, "cargo", &["metadata", "--format-version", "1", "--no-deps"])
        .context("ask cargo for its target folder")?;
    let folder = metadata.split("\"target_directory\":\"").nth(1);
    let folder = folder.and_then(|rest| rest.split('"').next());
    folder.map(str::to_owned).context("find the target folder in cargo's metadata")
}

fn quickstart(root: &Path) -> Result<()> {
    exec(root, &binary(root)?, &["quickstart"])
}

fn e2e(root: &Path) -> Result<()> {
    let binary = binary(root)?;
    let pytest = python::E2E.program(root, "pytest")?;
    let environment = [("TINSMITH", binary.as_str()), ("TINKER_TELEMETRY", "0")];
    let report = format!("--junitxml={}", requirements::REPORTS[1]);
    run_with(root, &pytest, &["-q", "--durations=5", &report, "e2e"], &environment)
}

#[expect(clippy::disallowed_methods, reason = "xtask times its own stages")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
