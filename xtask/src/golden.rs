//! `cargo xtask golden`: makes the golden numbers again, with PyTorch as the reference.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{python::GOLDEN, run::run as exec, say};

/// Every `make.py` below a crate's `tests/golden` writes the files beside itself.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut scripts = Vec::new();
    for entry in fs::read_dir(root.join("crates")).context("list the crates")? {
        let golden = entry.context("list the crates")?.path().join("tests/golden");
        if !golden.is_dir() {
            continue;
        }
        for folder in fs::read_dir(&golden).with_context(|| format!("list {}", golden.display()))? {
            let script = folder.context("list golden files")?.path().join("make.py");
            if script.is_file() {
                scripts.push(script);
            }
        }
    }
    ensure!(!scripts.is_empty(), "find a make.py below crates/*/tests/golden");
    scripts.sort();
    let python = GOLDEN.program(root, "python")?;
    for script in &scripts {
        say(&format!("running {}", script.display()));
        let text = script.to_str().context("read a script's name as UTF-8")?;
        exec(root, &python, &[text])?;
    }
    Ok(())
}
