//! The base models that are offered, by the names that clients ask for.

use std::sync::Arc;

use tinsmith_tokenizer::Tokenizer;

use crate::error::{Error, Result};

/// All base models, one entry per offered name.
#[derive(Clone, Debug)]
pub struct Catalog {
    pub models: Vec<ModelEntry>,
}

/// One name of a base model.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// What clients ask for; aliases have entries of their own.
    pub name: String,
    /// Digest of the weights, hex.
    pub base_digest: String,
    /// Family, such as `qwen3`.
    pub architecture: String,
    /// Where clients load the tokenizer from: a local directory or a hub name.
    pub tokenizer_id: String,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Tokens that a prompt and its continuation may have together.
    pub context: usize,
    /// Tokens that a datum may have. Training needs no cache, so this may be more than `context`.
    pub training_context: usize,
    /// What its journals are written with, such as `f32.1`.
    pub kernel_set: String,
    pub trainable: bool,
    pub sampleable: bool,
    /// For chats and texts that are to be made into tokens here; `None`: clients have to do it.
    pub tokenizer: Option<Arc<Tokenizer>>,
}

impl Catalog {
    /// The model of this name. A `:variant` suffix is cut off only if the name with it is unknown.
    ///
    /// # Errors
    /// A 400 that lists the known names.
    pub(crate) fn by_name(&self, name: &str) -> Result<&ModelEntry> {
        let find = |name: &str| self.models.iter().find(|model| model.name == name);
        find(name)
            .or_else(|| name.rsplit_once(':').and_then(|(base, _variant)| find(base)))
            .ok_or_else(|| {
                let known: Vec<&str> =
                    self.models.iter().map(|model| model.name.as_str()).collect();
                Error::invalid(
                    "unknown_base_model",
                    format!("base_model {name:?} is not offered; known: {}", known.join(", ")),
                )
            })
    }

    /// The model that a run or sampler was made on: of that name if its weights are still the same,
    /// else any other name of the same weights.
    ///
    /// # Errors
    /// A 400 that says that the weights are not offered any more.
    pub(crate) fn by_origin(&self, name: &str, base_digest: &str) -> Result<&ModelEntry> {
        if let Ok(model) = self.by_name(name)
            && model.base_digest == base_digest
        {
            return Ok(model);
        }
        self.models.iter().find(|model| model.base_digest == base_digest).ok_or_else(|| {
            Error::invalid(
                "base_model_missing",
                format!(
                    "base model {name:?} with weights {base_digest} is not offered by this server \
                     any more; start it with that model to go on"
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, base_digest: &str) -> ModelEntry {
        ModelEntry {
            name: name.to_owned(),
            base_digest: base_digest.to_owned(),
            architecture: "qwen3".to_owned(),
            tokenizer_id: "/models/nano".to_owned(),
            vocab_size: 100,
            context: 64,
            training_context: 64,
            kernel_set: "f32.1".to_owned(),
            trainable: true,
            sampleable: true,
            tokenizer: None,
        }
    }

    fn catalog() -> Catalog {
        Catalog { models: vec![entry("a/b", "1"), entry("a/b:long", "2"), entry("alias", "1")] }
    }

    #[test]
    fn variants_are_cut_only_when_unknown() {
        let catalog = catalog();
        let check = |name: &str| catalog.by_name(name).map(|model| model.base_digest.clone()).ok();
        assert_eq!(check("a/b"), Some("1".to_owned()));
        assert_eq!(check("a/b:long"), Some("2".to_owned()));
        assert_eq!(check("a/b:short"), Some("1".to_owned()));
        assert_eq!(check("c"), None);
    }

    #[test]
    fn origin_is_the_weights() {
        let catalog = catalog();
        let check = |name: &str, digest: &str| {
            catalog.by_origin(name, digest).map(|model| model.name.clone()).ok()
        };
        assert_eq!(check("alias", "1"), Some("alias".to_owned()));
        assert_eq!(check("gone", "2"), Some("a/b:long".to_owned()));
        assert_eq!(check("a/b", "2"), Some("a/b:long".to_owned()));
        assert_eq!(check("a/b", "3"), None);
    }
}
