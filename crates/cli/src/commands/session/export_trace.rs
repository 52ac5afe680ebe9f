//! `tinsmith session export-trace`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use crate::{
    remote::Remote,
    table::{Output, Table, size},
    terminal::say,
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The session's id.
    session: String,
    /// The file; without it, the id with `.pftrace`.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Print a link to the trace, which needs no key and expires, and fetch nothing.
    #[arg(long, conflicts_with = "output")]
    url_only: bool,
    /// Replace the file if it is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    shown: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { session, output, url_only, force, remote, shown } = arguments;
    let name = format!("{}.pftrace", session.replace(['/', '\\'], "_"));
    let file = output.clone().unwrap_or_else(|| PathBuf::from(name));
    ensure!(
        *url_only || *force || !file.exists(),
        "write {}: it is there already; give --output, or --force to replace it",
        file.display()
    );
    let rest = remote.rest()?;
    if *url_only {
        let url = remote.wait("export the trace", rest.export_session_trace(session))?;
        if shown.is_json() {
            let json = json!({ "session_id": session, "url": url });
            return shown.show(&json, &Table::properties());
        }
        // Bare, so that it can stand in `curl "$(…)"`.
        say(&url);
        return Ok(());
    }
    let call = rest.download_session_trace(session, &file);
    let size_bytes = remote.wait("export the trace", call)?;
    let mut table = Table::properties();
    table.property("session", Some(session));
    table.property("saved to", Some(file.display()));
    table.property("size", Some(size(size_bytes)));
    let destination = file.display().to_string();
    let json = json!({
        "session_id": session, "destination": destination, "file_size_bytes": size_bytes
    });
    shown.show(&json, &table)
}
