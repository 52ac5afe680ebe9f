//! Python environments that the tests make once, in the user's cache directory, and use again.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    run::{output, run},
    say,
};

/// The official SDK that the end-to-end tests drive.
pub(crate) const E2E: Environment = Environment {
    name: "e2e-0.38.0",
    packages: &["tinker[torch]==0.38.0", "pytest==9.0.1", "peft==0.21.2"],
};

/// The reference for golden numbers.
pub(crate) const GOLDEN: Environment = Environment {
    name: "golden-1",
    packages: &[
        "torch==2.15.0",
        "transformers==5.23.0",
        "peft==0.21.2",
        "numpy",
        "safetensors",
        "tinker[torch]==0.38.0",
    ],
};

/// What builds llama.cpp and writes its model files.
pub(crate) const LLAMA: Environment = Environment {
    name: "llama-1",
    packages: &[
        "cmake==4.4.4",
        "ninja==1.13.2",
        "scikit-build-core==1.1.2",
        "gguf==0.19.0",
        "numpy==2.4.6",
    ],
};

/// The spelling checker, from a prebuilt wheel.
pub(crate) const TYPOS: Environment =
    Environment { name: "typos-1.52.0", packages: &["typos==1.52.0"] };

/// A virtual environment with pinned packages.
#[derive(Debug)]
pub(crate) struct Environment {
    name: &'static str,
    packages: &'static [&'static str],
}

impl Environment {
    /// Its folder, made on the first use. One that lacks packages gets them.
    pub(crate) fn ensure(&self, root: &Path) -> Result<PathBuf> {
        let folder = cache()?.join(format!("venv-{}", self.name));
        let complete = folder.join("complete");
        let installed = fs::read_to_string(&complete).ok();
        if installed.as_deref() == Some(&self.packages.join("\n")) {
            return Ok(folder);
        }
        say(&format!("making {} with {}", folder.display(), self.packages.join(" ")));
        if installed.is_none() {
            let version = output(root, "python3", &["--version"]).context(
                "find python3: install Python 3.11 or later (Debian: apt-get install python3-venv)",
            )?;
            let text = folder.to_str().context("read the cache folder's name as UTF-8")?;
            run(root, "python3", &["-m", "venv", "--clear", text])
                .with_context(|| format!("make a virtual environment with {}", version.trim()))?;
        }
        let pip = folder.join("bin/pip");
        let pip = pip.to_str().context("read the cache folder's name as UTF-8")?;
        let mut arguments = vec!["install", "--quiet", "--disable-pip-version-check"];
        arguments.extend(self.packages);
        run(root, pip, &arguments)?;
        fs::write(&complete, self.packages.join("\n")).context("mark the environment complete")?;
        Ok(folder)
    }

    /// One of its programs.
    pub(crate) fn program(&self, root: &Path, name: &str) -> Result<String> {
        let path = self.ensure(root)?.join("bin").join(name);
        ensure!(path.exists(), "find {name} in {}", path.display());
        path.into_os_string().into_string().ok().context("read the cache folder's name as UTF-8")
    }
}

/// `$XDG_CACHE_HOME/tinsmith`, else `~/.cache/tinsmith`.
#[expect(clippy::disallowed_methods, reason = "xtask has no configuration to read it in")]
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match env::var("XDG_CACHE_HOME") {
        Ok(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => Path::new(&env::var("HOME").context("read HOME")?).join(".cache"),
    };
    let folder = base.join("tinsmith");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}
