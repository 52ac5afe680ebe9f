//! `cargo xtask tidy`: the checks of the house that no lint makes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{run::output, say};

const FILE_LINES_MAX: usize = 600;
const BLOB_BYTES_MAX: u64 = 5_000_000;
/// Words that mark unfinished work; spelled in halves so that this file passes itself.
const LEFTOVERS: [&str; 4] = [
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
];

/// Every problem at once, so that one run is enough to mend them.
pub(crate) fn run(root: &Path) -> Result<()> {
    let files = tracked(root)?;
    let mut problems = Vec::new();
    for file in &files {
        check_file(root, file, &mut problems)?;
    }
    check_routes(root, &mut problems)?;
    check_ops(root, &mut problems)?;
    check_readme(root, &mut problems)?;
    if problems.is_empty() {
        say(&format!("{} files are tidy", files.len()));
        return Ok(());
    }
    bail!("keep the house tidy:\n  {}", problems.join("\n  "));
}

fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let list = output(root, "git", &arguments).context("list the files with git")?;
    Ok(list.lines().map(PathBuf::from).filter(|file| root.join(file).is_file()).collect())
}

fn check_file(root: &Path, file: &Path, problems: &mut Vec<String>) -> Result<()> {
    let path = root.join(file);
    let size = fs::metadata(&path).with_context(|| format!("look at {}", file.display()))?.len();
    if size > BLOB_BYTES_MAX {
        problems.push(format!("{}: {size} bytes are too many for the repository", file.display()));
    }
    let generated = file.ends_with("generated.rs");
    if file.extension().is_none_or(|extension| extension != "rs") || generated {
        return Ok(());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", file.display()))?;
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        problems.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", file.display()));
    }
    for leftover in LEFTOVERS {
        if text.contains(leftover) {
            problems.push(format!("{}: contains {leftover}", file.display()));
        }
    }
    if text.contains(concat!("#[", "ignore")) {
        problems.push(format!("{}: an ignored test proves nothing", file.display()));
    }
    Ok(())
}

/// Each `routes/x.rs` has its tests in `tests/it/routes/x.rs`.
fn check_routes(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    for name in stems(&root.join("crates/server/src/routes"))? {
        if !root.join(format!("crates/server/tests/it/routes/{name}.rs")).is_file() {
            problems.push(format!("crates/server/tests/it/routes/{name}.rs: is missing"));
        }
    }
    Ok(())
}

/// Each op of the reference is a file of the same name in the conformance suite and the CPU backend, and
/// a row of the page about the engine.
fn check_ops(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    let page = fs::read_to_string(root.join("docs/engine.md")).context("read docs/engine.md")?;
    for name in stems(&root.join("crates/backend/src/reference"))? {
        for folder in ["crates/backend/src/conformance", "crates/backend-cpu/src"] {
            let file = format!("{folder}/{name}.rs");
            if !root.join(&file).is_file() && !root.join(folder).join(&name).is_dir() {
                problems.push(format!("{file}: is missing, the reference has the op"));
            }
        }
        if name != "buffer" && !page.contains(&format!("| `{name}`")) {
            problems.push(format!("docs/engine.md: has no row for the op {name}"));
        }
    }
    Ok(())
}

/// The README's tree names every crate.
fn check_readme(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    let readme = fs::read_to_string(root.join("README.md")).context("read README.md")?;
    for entry in fs::read_dir(root.join("crates")).context("list the crates")? {
        let name = entry.context("list the crates")?.file_name();
        let name = name.to_string_lossy();
        if !readme.contains(&format!("crates/{name}")) {
            problems.push(format!("README.md: does not name crates/{name}"));
        }
    }
    Ok(())
}

fn stems(folder: &Path) -> Result<Vec<String>> {
    let mut stems = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let stem = path.file_stem().context("read a file's name")?.to_string_lossy();
            if stem != "mod" {
                stems.push(stem.into_owned());
            }
        }
    }
    stems.sort();
    Ok(stems)
}
