//! `tinsmith auth status`.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::{
    remote::Remote,
    table::{Output, Table},
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { remote, output } = arguments;
    let rest = remote.rest()?;
    let models = remote.wait("use the key", rest.get_server_capabilities())?.supported_models;
    // A server need not tell whose a key is.
    let who = rest.whoami().wait().ok();
    let mut table = Table::properties();
    table.property("server", Some(remote.url()));
    table.property("key", Some("accepted"));
    table.property("user", who.as_ref().map(|who| &who.user_urn));
    table.property("email", who.as_ref().and_then(|who| who.email.as_ref()));
    table.property("organization", who.as_ref().map(|who| &who.org_urn));
    table.property("models", Some(models.len()));
    let json = json!({
        "server": remote.url(),
        "accepted": true,
        "user_urn": who.as_ref().map(|who| &who.user_urn),
        "email": who.as_ref().and_then(|who| who.email.as_ref()),
        "org_urn": who.as_ref().map(|who| &who.org_urn),
        "models": models.len(),
    });
    output.show(&json, &table)
}
