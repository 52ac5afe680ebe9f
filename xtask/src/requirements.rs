//! `cargo xtask requirements`: what docs/requirements.md says is shown, is.
//!
//! A row is `| S-001 | what | proof |`. A proof is `path` or `path::name`, several of them separated by
//! `, `: the file must exist and, with a name, contain it. `open` says that nothing shows the row yet.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

use crate::say;

const ROWS: usize = 314;

/// Checks every row; prints how many are shown.
pub(crate) fn run(root: &Path) -> Result<()> {
    let path = root.join("docs/requirements.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut seen = BTreeSet::new();
    let mut shown = 0;
    for line in text.lines().filter(|line| line.starts_with("| S-")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [id, _, proof] = cells[..] else { bail!("read three cells in `{line}`") };
        ensure!(seen.insert(id.to_owned()), "find {id} only once");
        if proof == "open" {
            continue;
        }
        for proof in proof.split(", ") {
            check(root, id, proof.trim_matches('`'))?;
        }
        shown += 1;
    }
    for number in 1..=ROWS {
        let id = format!("S-{number:03}");
        ensure!(seen.contains(&id), "find a row for {id} in docs/requirements.md");
    }
    say(&format!("{shown} of {ROWS} requirements are shown"));
    Ok(())
}

fn check(root: &Path, id: &str, proof: &str) -> Result<()> {
    let (file, name) =
        proof.split_once("::").map_or((proof, None), |(file, name)| (file, Some(name)));
    let text = fs::read_to_string(root.join(file))
        .with_context(|| format!("read {file}, which {id} names as its proof"))?;
    if let Some(name) = name {
        ensure!(text.contains(name), "find `{name}` in {file}, which {id} names as its proof");
    }
    Ok(())
}
