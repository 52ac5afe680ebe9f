//! llama.cpp, built from the source that comes with its Python bindings, once, for this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::process;
use crate::{
    python::{Environment, LLAMA, cache},
    run::run as exec,
    say,
};

const VERSION: &str = "0.3.36";

/// The program that measures, and the model in its format.
#[derive(Debug)]
pub(crate) struct Llama {
    bench: String,
    models: PathBuf,
    threads: String,
}

/// Weights and whether attention is fused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) weights: &'static str,
    pub(crate) flash: bool,
}

impl Setting {
    pub(crate) fn label(self) -> String {
        let attention = if self.flash { ", flash attention" } else { "" };
        format!("{}{attention}", self.weights)
    }
}

impl Llama {
    /// Builds it if that was not done, and writes the model in `model` into `models`.
    pub(crate) fn ensure(root: &Path, model: &Path, models: PathBuf, threads: u64) -> Result<Self> {
        let bench = path(&build(root, &LLAMA)?)?;
        let python = LLAMA.program(root, "python")?;
        let script = path(&root.join("xtask/peers/gguf_model.py"))?;
        exec(root, &python, &[&script, &path(model)?, &path(&models)?])?;
        Ok(Self { bench, models, threads: threads.to_string() })
    }

    /// A round of `prompt` tokens each and then `new` ones, for each number of sequences; an answer for each.
    pub(crate) fn round(
        &self,
        root: &Path,
        setting: Setting,
        (sequences, prompt, new): (&[usize], usize, usize),
    ) -> Result<Vec<Value>> {
        let model = path(&self.models.join(format!("{}.gguf", setting.weights)))?;
        let list: Vec<String> = sequences.iter().map(ToString::to_string).collect();
        let context = sequences.iter().max().unwrap_or(&1) * (prompt + new);
        let arguments = [
            ("--model", model.as_str()),
            ("--ctx-size", &context.to_string()),
            ("--batch-size", "2048"),
            ("--ubatch-size", "512"),
            ("--flash-attn", if setting.flash { "on" } else { "off" }),
            ("--threads", &self.threads),
            ("--threads-batch", &self.threads),
            ("-npp", &prompt.to_string()),
            ("-ntg", &new.to_string()),
            ("-npl", &list.join(",")),
            ("--output-format", "jsonl"),
        ];
        let arguments: Vec<&str> =
            arguments.iter().flat_map(|(name, value)| [*name, *value]).collect();
        let printed = process::text(root, &self.bench, &arguments)?;
        let answers = printed.lines().filter(|line| line.starts_with('{'));
        answers.map(|line| serde_json::from_str(line).context("read a line of llama.cpp")).collect()
    }
}

/// Builds `llama-batched-bench` for the instructions of this machine: minutes, once.
fn build(root: &Path, environment: &Environment) -> Result<PathBuf> {
    let folder = cache()?.join(format!("llama.cpp-{VERSION}"));
    let bench = folder.join("build/bin/llama-batched-bench");
    if bench.exists() {
        return Ok(bench);
    }
    say(&format!("building llama.cpp in {} (once, some minutes)", folder.display()));
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let pip = environment.program(root, "pip")?;
    let wanted = format!("llama-cpp-python=={VERSION}");
    let to = path(&folder)?;
    let download = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary"];
    exec(root, &pip, &[&download[..], &["llama-cpp-python", &wanted, "--dest", &to]].concat())?;
    let name = format!("llama_cpp_python-{VERSION}");
    let archive = path(&folder.join(format!("{name}.tar.gz")))?;
    exec(root, "tar", &["--extract", "--file", &archive, "--directory", &to])?;
    let cmake = environment.program(root, "cmake")?;
    let ninja = format!("-DCMAKE_MAKE_PROGRAM={}", environment.program(root, "ninja")?);
    let source = path(&folder.join(name).join("vendor/llama.cpp"))?;
    let into = path(&folder.join("build"))?;
    let configure = ["-S", &source, "-B", &into, "-G", "Ninja", &ninja];
    let options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_NATIVE=ON",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_SERVER=OFF",
        "-DLLAMA_BUILD_APP=OFF",
        "-DLLAMA_BUILD_UI=OFF",
        "-DLLAMA_OPENSSL=OFF",
    ];
    exec(root, &cmake, &[&configure[..], &options].concat())?;
    exec(root, &cmake, &["--build", &into, "--target", "llama-batched-bench", "--parallel"])?;
    Ok(bench)
}

fn path(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("read {} as UTF-8", path.display()))
}
