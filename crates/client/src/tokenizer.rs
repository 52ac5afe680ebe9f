//! Where a model's tokenizer is, and how it is read.

use std::{path::Path, sync::Arc};

pub use tinsmith_tokenizer::{Chat, ChatEnd, Message, Tokenizer, Value};

use crate::{Error, Result, chat::refused};

mod clients;
#[cfg(feature = "hub")]
mod hub;

pub(crate) use clients::Tokenizers;

/// Llama 3 models are gated; this one is open and has the same tokenizer.
const LLAMA_3: (&str, &str) =
    ("meta-llama/Llama-3", "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer");
/// Models whose tokenizer no file describes.
const WITHOUT_FILES: [&str; 2] = ["TML/", "thinkingmachines/"];

/// Where the tokenizer of a model is: a directory, or an id on the Hugging Face hub.
///
/// That is what the server says (`tokenizer_id` of `get_info`), or else what the model's name tells, as `org/name`. What
/// stands behind a `:`, and a third part of the name, are variants of one model.
pub fn tokenizer_id(model_name: &str, tokenizer_id: Option<&str>) -> String {
    if let Some(id) = tokenizer_id.filter(|id| !id.is_empty()) {
        return id.to_owned();
    }
    let name = model_name.split(':').next().unwrap_or(model_name);
    if name.starts_with(LLAMA_3.0) {
        return LLAMA_3.1.to_owned();
    }
    let mut parts = name.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(org), Some(model), Some(variant)) if !variant.contains('/') && !org.is_empty() => {
            format!("{org}/{model}")
        }
        _ => name.to_owned(),
    }
}

/// Reads a tokenizer, with its chat template if there is one: from a model's directory, or, with the feature `hub`, by
/// its id on the Hugging Face hub. This waits for the disk, and for downloads.
///
/// # Errors
///
/// No such directory, files that are missing or faulty; no such model, no network.
pub fn load_tokenizer(id: &str) -> Result<Arc<Tokenizer>> {
    let dir = Path::new(id);
    if dir.is_dir() {
        return Tokenizer::open(dir).map(Arc::new).map_err(refused);
    }
    if WITHOUT_FILES.iter().any(|org| id.starts_with(org)) {
        return Err(Error::validation(format!("the tokenizer of {id} is not published as files")));
    }
    from_hub(id)
}

#[cfg(feature = "hub")]
fn from_hub(id: &str) -> Result<Arc<Tokenizer>> {
    let dir = hub::fetch(id)?;
    Tokenizer::open(&dir).map(Arc::new).map_err(refused)
}

#[cfg(not(feature = "hub"))]
fn from_hub(id: &str) -> Result<Arc<Tokenizer>> {
    let message = format!("there is no directory {id} to read a tokenizer from");
    Err(Error::validation(format!(
        "{message}; to fetch it from the Hugging Face hub, build tinsmith with its feature `hub`"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_where_the_tokenizer_is() {
        for (model, said, expected) in [
            ("Qwen/Qwen3-8B", None, "Qwen/Qwen3-8B"),
            ("Qwen/Qwen3-8B", Some("other/one"), "other/one"),
            ("Qwen/Qwen3-8B", Some(""), "Qwen/Qwen3-8B"),
            ("Qwen/Qwen3-8B/long", None, "Qwen/Qwen3-8B"),
            ("Qwen/Qwen3-8B:peft:131072", None, "Qwen/Qwen3-8B"),
            ("meta-llama/Llama-3.1-8B-Instruct", None, LLAMA_3.1),
            ("meta-llama/Llama-3.2-1B:x", None, LLAMA_3.1),
            ("nano", None, "nano"),
            ("/models/a/nano", None, "/models/a/nano"),
        ] {
            assert_eq!(tokenizer_id(model, said), expected, "{model}");
        }
    }

    #[test]
    fn directories_are_read_and_others_say_what_to_do() {
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
        assert!(load_tokenizer(&nano.display().to_string()).unwrap().end_token().is_some());
        let empty = tempfile::tempdir().unwrap();
        let message = load_tokenizer(&empty.path().display().to_string()).unwrap_err().to_string();
        assert!(message.contains("copy the file from the model's repository"), "{message}");
        let message = load_tokenizer("thinkingmachines/Inkling").unwrap_err().to_string();
        assert!(message.ends_with("is not published as files"), "{message}");
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_feature_the_hub_is_named() {
        let message = load_tokenizer("org/name").unwrap_err().to_string();
        assert!(message.contains("with its feature `hub`"), "{message}");
    }
}
