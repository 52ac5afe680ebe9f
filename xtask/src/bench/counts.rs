//! `cargo xtask bench counts`: instructions of small fixed work, held to what docs/counts.txt says.
//!
//! Valgrind counts them, on the one path that it runs on every machine, so that they differ little between machines
//! and not with their load. A new kind of work is a variant of `Work` in the binary's `bench work` and a name here.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    run::{output, run_with},
    say, test,
};

const WORK: [&str; 3] = ["train", "decode", "polls"];
const FILE: &str = "docs/counts.txt";
/// What a count may have more than the file says, in percent.
const MORE_PERCENT_MAX: u64 = 3;
/// A count is lowered in the file where it has fallen by more than one part of this many: the rest is noise of the
/// threads that wait for each other.
const NOISE_PARTS: u64 = 500;
const HEAD: &str = "\
# Instructions of small fixed work (`cargo xtask bench counts`, which lowers them by itself; `--accept` writes all as
# they are): a training step, 32 decode steps, 100 requests submitted and polled for.
";

/// As a stage of `cargo xtask test`.
pub(crate) fn check(root: &Path) -> Result<()> {
    if output(root, "valgrind", &["--version"]).is_none() {
        say("skipped: valgrind is not installed");
        return Ok(());
    }
    run(root, &[])
}

/// Counts, compares with the file, and writes what has fallen into it; with `--accept` all of it.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let accepts = match arguments {
        [] => false,
        [flag] if flag == "--accept" => true,
        _ => bail!("read `{}`: `bench counts` takes --accept or nothing", arguments.join(" ")),
    };
    let path = root.join(FILE);
    let known = match fs::read_to_string(&path) {
        Ok(text) => read(&text)?,
        Err(_) => BTreeMap::new(),
    };
    let binary = test::binary(root)?;
    let (mut counts, mut risen) = (BTreeMap::new(), Vec::new());
    for work in WORK {
        let count = count(root, &binary, work)?;
        let verdict = verdict(known.get(work).copied(), count);
        say(&format!("{work:<8} {count:>14}  {verdict}"));
        if let Verdict::Risen(before) = verdict {
            risen.push(work);
            counts.insert(work, if accepts { count } else { before });
        } else if let Verdict::Same(before) = verdict {
            counts.insert(work, if accepts { count } else { before });
        } else {
            counts.insert(work, count);
        }
    }
    let mut text = HEAD.to_owned();
    for (work, count) in counts {
        writeln!(text, "{work} {count}")?;
    }
    fs::write(&path, text).with_context(|| format!("write {FILE}"))?;
    ensure!(
        risen.is_empty() || accepts,
        "keep {} within {MORE_PERCENT_MAX} % of {FILE}: make it cheaper, or accept it with \
         `cargo xtask bench counts --accept` and say why",
        risen.join(", ")
    );
    Ok(())
}

/// A count beside the one that is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    New,
    Same(u64),
    Fallen(u64),
    Risen(u64),
}

fn verdict(known: Option<u64>, count: u64) -> Verdict {
    match known {
        None => Verdict::New,
        Some(known) if count > known + known / 100 * MORE_PERCENT_MAX => Verdict::Risen(known),
        Some(known) if count < known - known / NOISE_PARTS => Verdict::Fallen(known),
        Some(known) => Verdict::Same(known),
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::New => write!(f, "new"),
            Self::Same(known) => write!(f, "as {known}"),
            Self::Fallen(known) => write!(f, "fallen from {known}"),
            Self::Risen(known) => write!(f, "risen from {known}"),
        }
    }
}

fn read(text: &str) -> Result<BTreeMap<String, u64>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let read = |line: &str| {
        let (work, count) = line.split_once(' ')?;
        Some((work.to_owned(), count.trim().parse().ok()?))
    };
    lines.map(|line| read(line).with_context(|| format!("read {FILE}: `{line}`"))).collect()
}

/// Instructions of the work: what the program takes to do it twice, less what it takes to do it once.
fn count(root: &Path, binary: &str, work: &str) -> Result<u64> {
    let once = program(root, binary, [work, "--times", "1"])?;
    let twice = program(root, binary, [work, "--times", "2"])?;
    twice.checked_sub(once).with_context(|| format!("count {work}: doing it twice takes less"))
}

/// Instructions of the whole program, in all its threads.
fn program(root: &Path, binary: &str, work: [&str; 3]) -> Result<u64> {
    let folder = root.join("target/counts");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let log = folder.join(format!("{}.log", work[0]));
    let (out, log_file) =
        ("--callgrind-out-file=/dev/null", format!("--log-file={}", log.display()));
    let valgrind = ["--tool=callgrind", out, &log_file, binary, "bench", "work"];
    let kernels = ["--kernels", "f32:avx2", "--threads", "1"];
    run_with(root, "valgrind", &[&valgrind[..], &work, &kernels].concat(), &[])?;
    number_after(&log, "Collected :")
}

/// The number behind a word in a file that Valgrind wrote.
fn number_after(path: &Path, word: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let number = text.lines().find_map(|line| line.split_once(word)?.1.trim().parse().ok());
    number.with_context(|| format!("find `{word}` in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_may_rise_by_three_percent_and_fall() {
        for (known, count, expected) in [
            (None, 5, Verdict::New),
            (Some(1000), 1030, Verdict::Same(1000)),
            (Some(1000), 1031, Verdict::Risen(1000)),
            (Some(1000), 999, Verdict::Same(1000)),
            (Some(1000), 997, Verdict::Fallen(1000)),
        ] {
            assert_eq!(verdict(known, count), expected);
        }
    }

    #[test]
    fn the_file_is_read_as_it_is_written() {
        let counts = read(&format!("{HEAD}train 12\npolls 3\n")).unwrap();
        assert_eq!(counts, BTreeMap::from([("train".to_owned(), 12), ("polls".to_owned(), 3)]));
        assert!(read("train twelve").is_err());
    }
}
