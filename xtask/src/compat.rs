//! `cargo xtask compat`: drives versions of the official SDK against the real server with `e2e/compat`, and writes
//! docs/compatibility.md or compares with it. A new version is a word in one of the lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{python::E2E, say, test};

mod drive;
mod page;
mod sdk;

use drive::Driver;
use page::{Page, Row, State};

/// Each has a column on the page.
const PINNED: [&str; 8] =
    ["0.3.0", "0.6.3", "0.12.0", "0.18.2", "0.24.1", "0.26.2", "0.33.1", "0.38.0"];
/// The last of each minor that is not pinned; these have a line of figures.
const BETWEEN: [&str; 26] = [
    "0.4.1", "0.5.1", "0.7.0", "0.8.1", "0.9.0", "0.10.0", "0.11.0", "0.13.1", "0.14.0", "0.15.0",
    "0.16.1", "0.19.0", "0.20.0", "0.21.0", "0.22.7", "0.23.4", "0.25.0", "0.27.2", "0.28.1",
    "0.29.1", "0.30.4", "0.31.0", "0.32.0", "0.34.0", "0.35.0", "0.36.0",
];
/// Those that `cargo xtask test` compares with the page.
const CHECKED: [&str; 3] = ["0.3.0", "0.24.1", "0.38.0"];
const PAGE: &str = "docs/compatibility.md";
/// Versions that are driven at the same time; they mostly wait.
const PARALLEL: usize = 3;

type Results = BTreeMap<String, Vec<Row>>;

/// The task: no argument drives the pinned versions and writes the page; `--all` also those between; `--check`
/// compares some with the page; `--newest` and `VERSION…` tell what they find.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => write(root, &PINNED),
        ["--all"] => write(root, &[PINNED.as_slice(), &BETWEEN].concat()),
        ["--check"] => check(root),
        ["--newest"] => {
            let version = sdk::newest(root)?;
            tell(root, &[version.as_str()])
        }
        versions => {
            if let Some(flag) = versions.iter().find(|word| word.starts_with('-')) {
                bail!("know {flag}: there are --all, --check, --newest, or versions of the SDK");
            }
            tell(root, versions)
        }
    }
}

/// The stage of `cargo xtask test`.
pub(crate) fn check(root: &Path) -> Result<()> {
    let page = Page::read(&root.join(PAGE))?;
    let results = drive(root, &CHECKED, &[])?;
    let mut problems = lacking(&results, &CHECKED);
    for (version, rows) in &results {
        problems.extend(page.differences(version, rows));
    }
    let others: Vec<&str> =
        PINNED.into_iter().filter(|version| !CHECKED.contains(version)).collect();
    let listed = drive(root, &others, &["--list"])?;
    problems.extend(lacking(&listed, &others));
    for (version, rows) in &listed {
        problems.extend(page.missing(version, rows));
    }
    ensure!(
        problems.is_empty(),
        "find in {PAGE} what the SDKs meet (`cargo xtask compat` writes it anew):\n  {}",
        problems.join("\n  ")
    );
    say(&format!("{} versions of the SDK do what {PAGE} says", results.len()));
    Ok(())
}

fn write(root: &Path, versions: &[&str]) -> Result<()> {
    let results = drive(root, versions, &[])?;
    let path = root.join(PAGE);
    let kept = if path.is_file() { Page::read(&path)?.figures } else { BTreeMap::new() };
    let page = Page::new(&results, &PINNED, kept);
    page.write(&path)?;
    say(&format!("wrote {PAGE}"));
    complain(&results, versions)
}

fn tell(root: &Path, versions: &[&str]) -> Result<()> {
    let results = drive(root, versions, &[])?;
    complain(&results, versions)
}

fn lacking(results: &Results, versions: &[&str]) -> Vec<String> {
    let lacking = versions.iter().filter(|version| !results.contains_key(**version));
    lacking.map(|version| format!("{version} was not driven")).collect()
}

/// Says what fails; a method without a case, or a version that was not driven, is an error.
fn complain(results: &Results, versions: &[&str]) -> Result<()> {
    let mut uncovered = BTreeSet::new();
    for (version, rows) in results {
        for row in rows.iter().filter(|row| row.state == State::Fails) {
            say(&format!("{version:>8}  {}: {}", row.title(), row.message));
        }
        let without = rows.iter().filter(|row| row.state == State::Uncovered);
        uncovered.extend(without.map(Row::title));
    }
    let lacking = lacking(results, versions);
    ensure!(lacking.is_empty(), "drive every version: {}", lacking.join(", "));
    ensure!(
        uncovered.is_empty(),
        "find a case in e2e/compat for {}",
        uncovered.into_iter().collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// The rows of each version, some versions at a time, each with a server of its own.
fn drive(root: &Path, versions: &[&str], arguments: &[&str]) -> Result<Results> {
    let python = PathBuf::from(E2E.program(root, "python")?);
    let binary = if arguments.is_empty() { binary(root)? } else { String::new() };
    let folder = env::temp_dir().join(format!("tinsmith-compat-{}", process::id()));
    let driver = Driver { root, python: &python, binary: &binary, folder: &folder, arguments };
    let waiting = Mutex::new(versions.to_vec());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..PARALLEL.min(versions.len()) {
            scope.spawn(|| {
                while let Some(version) = next(&waiting) {
                    let rows =
                        sdk::ensure(root, version).and_then(|sdk| driver.rows(version, &sdk));
                    let rows = rows.with_context(|| format!("drive the SDK {version}"));
                    let figures =
                        rows.as_deref().map_or_else(|_| "was not driven".to_owned(), page::figures);
                    say(&format!("{version:>8}  {figures}"));
                    results.lock().expect("no thread panics with the lock").push((version, rows));
                }
            });
        }
    });
    let results = results.into_inner().expect("no thread panics with the lock");
    let (driven, failed): (Vec<_>, Vec<_>) =
        results.into_iter().partition(|(_, rows): &(&str, Result<_>)| rows.is_ok());
    for (_, rows) in failed {
        // The others are not lost with it; the lack of this one shows.
        say(&format!("error: {:#}", rows.err().context("find an error")?));
    }
    let rows = |(version, rows): (&str, Result<Vec<Row>>)| Ok((version.to_owned(), rows?));
    let results: Results = driven.into_iter().map(rows).collect::<Result<_>>()?;
    let fails = results.values().flatten().any(|row| row.state == State::Fails);
    if fails || results.len() < versions.len() {
        say(&format!("logs are in {}", folder.display()));
    } else if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(results)
}

/// The server that TINSMITH names, as for the end-to-end tests, or the one that is released.
#[expect(clippy::disallowed_methods, reason = "xtask has no configuration to read it in")]
fn binary(root: &Path) -> Result<String> {
    env::var("TINSMITH").or_else(|_| test::binary(root))
}

fn next<'version>(waiting: &Mutex<Vec<&'version str>>) -> Option<&'version str> {
    waiting.lock().expect("no thread panics with the lock").pop()
}
