//! The tokenizer of a model that a server has.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use tinsmith::{Tokenizer, load_tokenizer, tokenizer::tokenizer_id};

use crate::models;

/// The model that ships is known by its name.
const SHIPPED: &str = "nano";

/// The tokenizer that `given` names, a directory or a hub id; without it the one of `model`, for which the server may
/// have `said` where it is.
pub(crate) fn open(given: Option<&str>, model: &str, said: Option<&str>) -> Result<Arc<Tokenizer>> {
    let mut id = given.map_or_else(|| tokenizer_id(model, said), str::to_owned);
    if id == SHIPPED && !Path::new(&id).is_dir() {
        id = models::shipped()?.display().to_string();
    }
    load_tokenizer(&id).with_context(|| {
        format!("open the tokenizer of {model}: give its directory, or a hub id, with --tokenizer")
    })
}
