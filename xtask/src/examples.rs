//! The programs of `examples/`: built, run against a real server with the model that ships, and their output compared
//! with what stands beside them. A new one is `examples/<name>.rs`, `examples/<name>.txt` and its lines in
//! `crates/client/Cargo.toml`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    run::run as exec,
    say,
    test::{binary, target_folder},
};

/// Longer programs show too much at once.
const LINES_MAX: usize = 150;
const START_MAX: Duration = Duration::from_secs(60);
const RUN_MAX: Duration = Duration::from_secs(120);
const MANIFEST: &str = "crates/client/Cargo.toml";

/// Runs every example; `TINSMITH` names another binary than a release build.
pub(crate) fn run(root: &Path) -> Result<()> {
    let names = names(root)?;
    for name in &names {
        check_text(root, name)?;
    }
    exec(root, "cargo", &["build", "--package", "tinsmith", "--examples", "--locked", "--quiet"])?;
    let folder = Path::new(&target_folder(root)?).join("debug/examples");
    let server = Server::start(root)?;
    for name in &names {
        let start = crate::test::now();
        let program = folder.join(name);
        let output = printed(&program, root, &server.url).with_context(|| format!("run {name}"))?;
        let path = format!("examples/{name}.txt");
        let expected =
            fs::read_to_string(root.join(&path)).with_context(|| format!("read {path}"))?;
        compare(&expected, &output)
            .with_context(|| format!("find in the output of {name} what {path} says"))?;
        say(&format!("{name:>24} {:6.1} s", start.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Programs in Rust, by name.
pub(crate) fn names(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("examples")).context("list examples/")? {
        let path = entry.context("list examples/")?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().and_then(|name| name.to_str());
            names.push(name.context("read an example's name as UTF-8")?.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// It is short, says how it is run, and cargo knows it.
fn check_text(root: &Path, name: &str) -> Result<()> {
    let path = format!("examples/{name}.rs");
    let text = fs::read_to_string(root.join(&path)).with_context(|| format!("read {path}"))?;
    let lines = text.lines().count();
    ensure!(lines < LINES_MAX, "keep {path} under {LINES_MAX} lines: it has {lines}");
    let line = format!("cargo run --release -p tinsmith --example {name}");
    let header = text.lines().take_while(|line| line.starts_with("//!"));
    ensure!(
        header.into_iter().any(|said| said.contains(&line)),
        "find `{line}` in the header of {path}"
    );
    let manifest = fs::read_to_string(root.join(MANIFEST)).context("read the client's manifest")?;
    ensure!(manifest.contains(&format!("../../{path}")), "find {path} in {MANIFEST}");
    Ok(())
}

/// What a program prints on a server.
fn printed(program: &Path, root: &Path, url: &str) -> Result<String> {
    let mut child = Command::new(program)
        .current_dir(root)
        .env("TINKER_BASE_URL", url)
        .env("TINKER_API_KEY", "tml-examples")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let mut stdout = child.stdout.take().context("read its output")?;
    let (told, ended) = mpsc::channel();
    let reader = thread::Builder::new().name("output".to_owned()).spawn(move || {
        let mut text = String::new();
        let read = stdout.read_to_string(&mut text);
        told.send(read.map(|_| text)).is_ok()
    });
    reader.context("start a thread for its output")?;
    let Ok(text) = ended.recv_timeout(RUN_MAX) else {
        child.kill().context("stop it")?;
        bail!("end within {} s", RUN_MAX.as_secs());
    };
    let (text, status) = (text.context("read its output")?, child.wait().context("wait for it")?);
    ensure!(status.success(), "it ends with {status}:\n{text}");
    Ok(text)
}

/// A server of an empty data directory that ends with this value.
struct Server {
    process: Child,
    url: String,
    data: PathBuf,
}

impl Server {
    #[expect(clippy::disallowed_methods, reason = "xtask has no configuration to read it in")]
    fn start(root: &Path) -> Result<Self> {
        let binary = std::env::var("TINSMITH").or_else(|_| binary(root))?;
        let data = std::env::temp_dir().join(format!("tinsmith-examples-{}", std::process::id()));
        fs::create_dir_all(&data).with_context(|| format!("make {}", data.display()))?;
        let mut process = Command::new(&binary)
            .args(["serve", "--port", "0", "--data-dir"])
            .arg(&data)
            .current_dir(root)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {binary}"))?;
        let stdout = process.stdout.take().context("read the server's output")?;
        let (found, url) = mpsc::channel();
        let reader = thread::Builder::new().name("server".to_owned()).spawn(move || {
            // It is read to its end, so that the server never waits for a reader.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(place) = line.find("http://") {
                    let url = line[place..].split_whitespace().next().unwrap_or_default();
                    drop(found.send(url.to_owned()));
                }
            }
        });
        reader.context("start a thread for the server's output")?;
        let mut server = Self { process, url: String::new(), data };
        server.url = url.recv_timeout(START_MAX).context("read the server's address")?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a server that does not go.
        drop(self.process.kill());
        drop(self.process.wait());
        drop(fs::remove_dir_all(&self.data));
    }
}

/// Each line as expected, where `{a..b}` is a number from a to b, `{word}` one without spaces, and `{text}` any text.
fn compare(expected: &str, output: &str) -> Result<()> {
    let (expected, printed) = (expected.lines().collect::<Vec<_>>(), output.lines());
    let printed: Vec<_> = printed.collect();
    for (number, (expected, printed)) in expected.iter().zip(&printed).enumerate() {
        ensure!(
            is_like(expected, printed),
            "line {}: it is `{printed}`, not like `{expected}`",
            number + 1
        );
    }
    let (count, wanted) = (printed.len(), expected.len());
    ensure!(count == wanted, "it has {count} lines, not {wanted}:\n{output}");
    Ok(())
}

fn is_like(pattern: &str, line: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('{') else { return pattern == line };
    let Some((what, after)) = rest.split_once('}') else { return pattern == line };
    let Some(line) = line.strip_prefix(before) else { return false };
    let ends = line.char_indices().map(|(place, _)| place).chain([line.len()]);
    match what {
        "text" => ends.into_iter().any(|end| is_like(after, &line[end..])),
        "word" => {
            let word = line.find(char::is_whitespace).unwrap_or(line.len());
            ends.into_iter().any(|end| end > 0 && end <= word && is_like(after, &line[end..]))
        }
        range => {
            let Some((low, high)) = range.split_once("..") else { return false };
            let (Ok(low), Ok(high)) = (low.parse::<f64>(), high.parse::<f64>()) else {
                return false;
            };
            let is_part = |byte: char| byte.is_ascii_digit() || "+-.e".contains(byte);
            let number = line.find(|byte| !is_part(byte)).unwrap_or(line.len());
            let is_within = |text: &str| text.parse().is_ok_and(|x: f64| low <= x && x <= high);
            ends.into_iter()
                .any(|end| end <= number && is_within(&line[..end]) && is_like(after, &line[end..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_compared_with_patterns() {
        for (pattern, line, expected) in [
            ("loss 2.5", "loss 2.5", true),
            ("loss 2.5", "loss 2.6", false),
            ("loss {2..3} s", "loss 2.25 s", true),
            ("loss {2..3} s", "loss 3.25 s", false),
            ("loss {-1e3..0}", "loss -12.5.", false),
            ("{0..9} of {9..9}.", "7 of 9.", true),
            ("run {word}", "run a:1", true),
            ("run {word}", "run a b", false),
            ("run {word}/x", "run tinker://a/x", true),
            ("{text}: {text}", "what: ever", true),
            ("{text}: {text}", "whatever", false),
        ] {
            assert_eq!(is_like(pattern, line), expected, "{pattern} and {line}");
        }
    }

    #[test]
    fn every_line_counts() {
        assert!(compare("a\nb\n", "a\nb\n").is_ok());
        assert!(compare("a\nb\n", "a\n").is_err());
        assert!(compare("a\n", "a\nb\n").is_err());
    }
}
