//! `tinsmith checkpoint download`.

use std::{path::PathBuf, sync::Mutex, time::Duration};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tinsmith::{DownloadOptions, DownloadProgress, download_dir};

use super::One;
use crate::{
    table::{Output, Table, count, size},
    terminal::is_terminal,
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The directory; without it, one that is named as the path.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Replace an earlier download of the checkpoint.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    shown: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { output, force, one: One { path, remote }, shown } = arguments;
    let dir = output.clone().unwrap_or_else(|| download_dir(path));
    let mut options = DownloadOptions::new().force(*force);
    if is_terminal() && !shown.is_json() {
        let bar = Mutex::new(None);
        options = options.progress(move |progress| show(&bar, progress));
    }
    let call = remote.patient_rest()?.download_checkpoint(path, dir, options);
    let done = remote.wait(&format!("download {path}"), call)?;
    let mut table = Table::properties();
    table.property("checkpoint", Some(path));
    table.property("saved to", Some(done.dir.display()));
    for file in &done.files {
        table.property("  file", Some(file.display()));
    }
    table.property("size", Some(size(done.size_bytes)));
    let resumed = (done.resumed_bytes > 0).then(|| size(done.resumed_bytes));
    table.property("were here already", resumed);
    let checked = match done.checksums {
        0 => "sizes".to_owned(),
        some => format!("sizes, and {}", count(some, "checksum")),
    };
    table.property("checked", Some(checked));
    let files: Vec<_> = done.files.iter().map(|file| file.display().to_string()).collect();
    let json = json!({
        "checkpoint_path": path,
        "destination": done.dir.display().to_string(),
        "file_size_bytes": done.size_bytes,
        "files": files,
        "resumed_bytes": done.resumed_bytes,
        "checksums": done.checksums,
    });
    shown.show(&json, &table)
}

/// A bar for each file.
fn show(bar: &Mutex<Option<(usize, ProgressBar)>>, progress: &DownloadProgress) {
    let Ok(mut bar) = bar.lock() else { return };
    if bar.as_ref().is_none_or(|(number, _)| *number != progress.file_number) {
        if let Some((_, bar)) = bar.take() {
            bar.finish();
        }
        let new = ProgressBar::new(progress.size_bytes.unwrap_or(0));
        let template = "  {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            new.set_style(style);
        }
        new.set_message(progress.file.clone());
        new.enable_steady_tick(Duration::from_millis(200));
        *bar = Some((progress.file_number, new));
    }
    if let Some((_, bar)) = bar.as_ref() {
        bar.set_length(progress.size_bytes.unwrap_or(progress.bytes));
        bar.set_position(progress.bytes);
    }
}
