//! `tinsmith checkpoint delete`.

use std::io::BufRead as _;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use tinsmith::{RestClient, TinkerPath};
use tinsmith_types::{checkpoints::Checkpoint, path::CheckpointKind};

use crate::{
    remote::Remote,
    table::{count, time},
    terminal::{is_terminal, problem, say},
};

/// Deletions under way at a time.
const AT_ONCE: usize = 32;

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["paths", "run_id"]))]
pub(crate) struct Arguments {
    /// The checkpoints, as `tinker://RUN/KIND/NAME`.
    paths: Vec<TinkerPath>,
    /// All checkpoints of a training run, of which the other options choose some.
    #[arg(long)]
    run_id: Option<String>,
    /// Only those of this kind.
    #[arg(long = "type", value_enum, requires = "run_id")]
    kind: Option<Kind>,
    /// Only those made before this time: 2026-01-02, or as in RFC 3339, in UTC.
    #[arg(long, requires = "run_id", value_parser = moment)]
    before: Option<String>,
    /// Only those made after this time.
    #[arg(long, requires = "run_id", value_parser = moment)]
    after: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    Weights,
    SamplerWeights,
    ExternalWeights,
}

impl Kind {
    fn kind(self) -> CheckpointKind {
        match self {
            Self::Weights => CheckpointKind::Weights,
            Self::SamplerWeights => CheckpointKind::SamplerWeights,
            Self::ExternalWeights => CheckpointKind::ExternalWeights,
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let rest = arguments.remote.rest()?;
    let paths = match &arguments.run_id {
        None => arguments.paths.clone(),
        Some(run) => arguments.chosen(&rest, run)?,
    };
    if paths.is_empty() {
        say("no checkpoint of the run is meant: nothing was deleted");
        return Ok(());
    }
    if !arguments.yes {
        confirm(&paths)?;
    }
    let mut failed = 0;
    for paths in paths.chunks(AT_ONCE) {
        let calls: Vec<_> =
            paths.iter().map(|path| rest.delete_checkpoint_from_tinker_path(path)).collect();
        for (path, call) in paths.iter().zip(calls) {
            match arguments.remote.wait(&format!("delete {path}"), call) {
                Ok(()) => say(&format!("deleted {path}")),
                Err(error) => {
                    failed += 1;
                    problem(&format!("error: {error:#}"));
                }
            }
        }
    }
    ensure!(failed == 0, "delete {failed} of {}", count(paths.len(), "checkpoint"));
    Ok(())
}

impl Arguments {
    fn chosen(&self, rest: &RestClient, run: &str) -> Result<Vec<TinkerPath>> {
        let call = rest.list_checkpoints(run);
        let listed = self.remote.wait("list the run's checkpoints", call)?.checkpoints;
        let chosen = listed.into_iter().filter(|checkpoint| self.means(checkpoint));
        chosen.map(|checkpoint| Ok(checkpoint.tinker_path.parse()?)).collect()
    }

    fn means(&self, checkpoint: &Checkpoint) -> bool {
        // Times in the same form compare as text does.
        let made = time(&checkpoint.time);
        let is_kind = self.kind.is_none_or(|kind| checkpoint.checkpoint_type == kind.kind().into());
        is_kind
            && self.before.as_ref().is_none_or(|before| made < *before)
            && self.after.as_ref().is_none_or(|after| made > *after)
    }
}

/// A time of the command line, as tables show times.
fn moment(text: &str) -> Result<String> {
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        19 => format!("{text}Z"),
        _ => text.to_owned(),
    };
    let parsed: jiff::Timestamp = match full.parse() {
        Ok(parsed) => parsed,
        Err(_) => bail!("give it as 2026-01-02, or as 2026-01-02T03:04:05Z"),
    };
    Ok(time(&format!("{parsed:.0}")))
}

fn confirm(paths: &[TinkerPath]) -> Result<()> {
    ensure!(is_terminal(), "delete without asking: nobody is at a terminal; give --yes");
    for path in paths {
        say(&format!("  {path}"));
    }
    say(&format!("delete {}, for good? [y/N]", count(paths.len(), "checkpoint")));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    ensure!(
        matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"),
        "be told to delete them: nothing was deleted"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_tables_show_them() {
        for text in [
            "2026-01-02",
            "2026-01-02T00:00:00",
            "2026-01-02T00:00:00Z",
            "2026-01-02T02:00:00+02:00",
        ] {
            assert_eq!(moment(text).unwrap(), "2026-01-02 00:00:00 UTC", "{text}");
        }
        assert!(moment("yesterday").is_err());
    }
}
