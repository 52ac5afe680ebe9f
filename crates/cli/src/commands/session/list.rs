//! `tinsmith session list`.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::{
    remote::{Part, Remote, Scope},
    table::{Output, Table, count},
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { part, scope, remote, output } = arguments;
    let rest = scope.of(&remote.rest()?);
    let sessions =
        remote.explained("list the sessions", part.read(rest.sessions(part.options())))?;
    let mut table = Table::new(&["session"]).title(count(sessions.len(), "session"));
    for session in &sessions {
        table.row(vec![session.to_string()]);
    }
    output.show(&json!({ "sessions": sessions }), &table)
}
