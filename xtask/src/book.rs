//! The book on the Rust SDK, `docs/guide`: built by mdBook, which is installed once, into the user's cache directory.
//! Its snippets are documentation tests of the client, and what it lists is compared by the client's tests.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::{python::cache, run::run as exec, say, test::target_folder};

const MDBOOK: &str = "mdbook@0.5.4";

/// Builds it into the target folder.
pub(crate) fn build(root: &Path) -> Result<()> {
    let folder = cache()?.join(MDBOOK.replace('@', "-"));
    let program = folder.join("bin/mdbook");
    if !program.is_file() {
        say(&format!("installing {MDBOOK} (once)"));
        let folder = folder.to_str().context("read the cache folder's name as UTF-8")?;
        let install = ["install", "--locked", "--quiet", "--no-default-features", "--root", folder];
        exec(root, "cargo", &[&install[..], &[MDBOOK]].concat())?;
    }
    let program = program.to_str().context("read the cache folder's name as UTF-8")?;
    let into = format!("{}/guide", target_folder(root)?);
    exec(root, program, &["build", "docs/guide", "--dest-dir", &into])?;
    let start = Path::new(&into).join("index.html");
    ensure!(start.is_file(), "find {}", start.display());
    Ok(())
}
