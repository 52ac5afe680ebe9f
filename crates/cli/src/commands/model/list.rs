//! `tinsmith model list`.

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use crate::{
    remote::Remote,
    table::{Output, Table, or_dash, yes},
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Only models with this in their names, in any case.
    name: Option<String>,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { name, remote, output } = arguments;
    let call = remote.rest()?.get_server_capabilities();
    let mut models = remote.wait("list the models", call)?.supported_models;
    if let Some(part) = name {
        let part = part.to_lowercase();
        let has = |name: &Option<String>| {
            name.as_ref().is_some_and(|name| name.to_lowercase().contains(&part))
        };
        models.retain(|model| has(&model.model_name));
        ensure!(
            !models.is_empty(),
            "find a model with {part:?} in its name: `tinsmith model list` shows all"
        );
    }
    let mut table = Table::new(&["model", "context", "trainable", "sampleable"]);
    for model in &models {
        table.row(vec![
            or_dash(model.model_name.as_ref()),
            or_dash(model.max_context_length),
            or_dash(model.trainable.map(yes)),
            or_dash(model.sampleable.map(yes)),
        ]);
    }
    output.show(&json!({ "models": models }), &table)
}
