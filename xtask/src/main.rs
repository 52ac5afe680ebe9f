//! Chores of the workspace: `cargo xtask <task>`. Each task is one file; it starts binaries and
//! reads files, and never links a crate of the product.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

mod bench;
mod book;
mod compat;
mod examples;
mod golden;
mod python;
mod requirements;
mod run;
mod test;
mod tidy;
mod tools;

const USAGE: &str = "\
usage: cargo xtask <task>

  test [STAGE…]   everything that CI runs, or only the named stages
  tidy            the checks of the house that no lint makes
  requirements    every row of docs/requirements.md that is shown names a proof that exists
  golden          makes the golden numbers again with PyTorch (needs the network once, for pip)
  compat          drives versions of the official SDK against the server and writes docs/compatibility.md;
                  --all, --check, --newest or VERSION… (needs the network once for each version, for pip)
  bench           training, sampling and latency figures of this machine; `bench client`: the client's overhead
                  beside the official SDK's; `bench peers`: beside PyTorch and llama.cpp, --help for its options
                  (both need the network once, for pip); `bench growth`: curves, into docs/growth;
                  `bench counts`: instructions, held to docs/counts.txt (needs valgrind)";

fn main() -> ExitCode {
    match task() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn task() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = root()?;
    let name = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match name.as_str() {
        "test" => test::run(&root, &rest),
        "tidy" => tidy::run(&root),
        "requirements" => requirements::run(&root),
        "golden" => golden::run(&root),
        "compat" => compat::run(&root, &rest),
        "bench" => bench::run(&root, &rest),
        "" | "help" | "--help" | "-h" => {
            say(USAGE);
            Ok(())
        }
        other => bail!("find a task called `{other}`\n\n{USAGE}"),
    }
}

/// The workspace's folder.
fn root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(manifest.parent().context("find the folder above xtask")?.to_owned())
}

#[expect(clippy::print_stdout, reason = "xtask talks on the terminal")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "xtask talks on the terminal")]
fn print_error(line: &str) {
    eprintln!("{line}");
}
