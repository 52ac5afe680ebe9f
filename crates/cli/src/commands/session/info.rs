//! `tinsmith session info`.

use anyhow::Result;
use clap::Args;

use crate::{
    remote::{Remote, Scope},
    table::{Output, Table},
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The session's id.
    session: String,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { session, scope, remote, output } = arguments;
    let rest = scope.of(&remote.rest()?);
    let found = remote.wait("show the session", rest.get_session(session))?;
    let mut table = Table::properties();
    table.property("session", Some(session));
    table.property("name", found.display_name.as_ref());
    for run in &found.training_run_ids {
        table.property("training run", Some(run));
    }
    for sampler in &found.sampler_ids {
        table.property("sampler", Some(sampler));
    }
    for (key, value) in found.user_metadata.iter().flatten() {
        table.property(&format!("note {key}"), Some(value));
    }
    output.show(&found, &table)
}
