//! One version of the SDK against one server of its own, which lives as long as the run.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::page::Row;

const START_SECONDS_MAX: u64 = 60;

/// What all runs share.
#[derive(Debug)]
pub(super) struct Driver<'run> {
    pub(super) root: &'run Path,
    pub(super) python: &'run Path,
    /// The server.
    pub(super) binary: &'run str,
    /// Where each version has a folder for its server's data, its files and its logs.
    pub(super) folder: &'run Path,
    /// `--list`, or nothing to drive every row.
    pub(super) arguments: &'run [&'run str],
}

impl Driver<'_> {
    /// The rows that the version in the folder `sdk` has.
    pub(super) fn rows(&self, version: &str, sdk: &Path) -> Result<Vec<Row>> {
        let folder = self.folder.join(version);
        fs::create_dir_all(folder.join("home")).context("make a folder for the run")?;
        let mut command = self.command(version, sdk, &folder);
        // They live as long as this.
        let (keys, tokens);
        if self.arguments.is_empty() {
            keys = self.server(&folder.join("keys"), false)?;
            tokens = self.server(&folder.join("tokens"), true)?;
            command.args([&keys.url, &tokens.url, &folder.display().to_string()]);
            command.env("TINKER_BASE_URL", &keys.url);
        } else {
            command.args(self.arguments);
        }
        let errors = fs::File::create(folder.join("sdk.log")).context("make a log")?;
        let output = command.stderr(errors).output().context("start Python")?;
        ensure!(
            output.status.success(),
            "run e2e/compat/drive.py: see {}/sdk.log",
            folder.display()
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let rows: Result<Vec<_>> = text.lines().map(Row::parse).collect();
        let rows = rows?;
        ensure!(!rows.is_empty(), "find a row: see {}/sdk.log", folder.display());
        Ok(rows)
    }

    /// A server that takes keys, or one that exchanges them for tokens.
    fn server(&self, folder: &Path, tokens: bool) -> Result<Server> {
        fs::create_dir_all(folder).context("make a folder for a server")?;
        let mut command = Command::new(self.binary);
        command.args(["serve", "nano=models/nano", "--port", "0", "--data-dir"]);
        command.arg(folder.join("data")).current_dir(self.root);
        command.env("TINSMITH_JWT_AUTH", tokens.to_string());
        Server::start(command, folder)
    }

    fn command(&self, version: &str, sdk: &Path, folder: &Path) -> Command {
        let mut command = Command::new(self.python);
        command.arg(self.root.join("e2e/compat/drive.py")).arg(version);
        // A sampling client looks for its tokenizer by the base model's name, which is a folder there.
        command.current_dir(self.root.join("models"));
        command.env("PYTHONPATH", OsString::from(sdk)).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("HOME", folder.join("home")).env("HF_HUB_OFFLINE", "1");
        command.env("TINKER_API_KEY", "tml-compat").env_remove("TINKER_TELEMETRY");
        command
    }
}

/// A server on a free port; it is killed when this is dropped.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(mut command: Command, folder: &Path) -> Result<Self> {
        let log = fs::File::create(folder.join("server.log")).context("make a log")?;
        let mut process =
            command.stdout(Stdio::piped()).stderr(log).spawn().context("start the server")?;
        let output = process.stdout.take().context("read what the server prints")?;
        let (found, url) = mpsc::channel();
        let read = move || {
            // Reading goes on after the URL: a full pipe would stop the server.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let url = line.split_whitespace().find(|word| word.starts_with("http://"));
                if let Some(url) = url
                    && found.send(url.trim_end_matches('/').to_owned()).is_err()
                {
                    // The first URL was enough: nobody waits for another.
                    continue;
                }
            }
        };
        let mut server = Self { process, url: String::new() };
        thread::Builder::new()
            .name("server output".to_owned())
            .spawn(read)
            .context("start a thread")?;
        server.url = url
            .recv_timeout(Duration::from_secs(START_SECONDS_MAX))
            .with_context(|| format!("see the server's URL: its log is in {}", folder.display()))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that ended by itself is as good.
        if self.process.kill().is_ok() {
            drop(self.process.wait());
        }
    }
}
