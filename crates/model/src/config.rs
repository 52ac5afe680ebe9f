//! The named switches of the one decoder, and reading them from `config.json`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tinsmith_backend::{Activation, AttentionShape, RopeTable};

use crate::{Error, Result};

/// Everything that the decoder needs to know about a model, said by its family's table entry.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// `model_type` of the family.
    pub family: &'static str,
    /// Tokens in the vocabulary: rows of the embedding.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// Features inside the gated MLP.
    pub ffn: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_eps: f32,
    /// Inverse frequencies of the rotary embedding.
    pub rope: RopeTable,
    /// The unembedding is the embedding.
    pub tie_embeddings: bool,
    /// Queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Each head of queries and keys goes through an RMS norm before it is rotated.
    pub qk_norm: bool,
    /// Non-linearity of the gated MLP.
    pub activation: Activation,
    /// Longest sequence that the model was made for, in tokens.
    pub max_positions: usize,
    /// Factor on embedded tokens.
    pub embed_scale: f32,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// Where the weights stand in the files.
    pub names: &'static WeightNames,
}

impl DecoderConfig {
    /// The constants of the attention ops.
    pub fn attention_shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            window: None,
            softcap: None,
        }
    }

    /// Features of the queries of all heads.
    pub fn q_features(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Features of the keys, and of the values, of all heads.
    pub fn kv_features(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// What the decoder computes beyond what names and shapes of the weights say; part of the model's digest.
    ///
    /// Journals keep digests, so this text never changes for a model that could be served before: a new
    /// switch is added to it only where the switch is on.
    pub(crate) fn fingerprint(&self) -> String {
        use std::fmt::Write as _;

        let mut text = format!(
            "{} heads {} kv_heads {} rms_eps {:e} embed_scale {:e} attention_scale {:e} rope {:e}",
            self.family,
            self.heads,
            self.kv_heads,
            self.rms_eps,
            self.embed_scale,
            self.attention_scale,
            self.rope.amplitude,
        );
        for frequency in &self.rope.inverse_frequencies {
            write!(text, " {frequency:e}").expect("a String takes every text");
        }
        text
    }

    /// Refuses shapes that no decoder can have; `path` is the `config.json` that says them.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let refuse = |problem: &str| Err(Error::model(path, problem));
        let sizes = [self.vocab_size, self.hidden, self.layers, self.heads, self.kv_heads];
        if sizes.contains(&0) || self.head_dim == 0 || self.ffn == 0 || self.max_positions == 0 {
            return refuse("a size in it is 0");
        }
        let largest = sizes.into_iter().chain([self.head_dim, self.ffn]).max();
        if largest > Some(SIZE_MAX) {
            return refuse("a size in it is over 16 million");
        }
        if self.layers > LAYERS_MAX {
            return refuse("it has over 10000 layers");
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse("num_attention_heads is not a multiple of num_key_value_heads");
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse("head_dim is odd; the rotary embedding turns pairs");
        }
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0) {
            return refuse("rms_norm_eps is not a positive number");
        }
        Ok(())
    }
}

/// No published model comes near; a product of two such sizes still fits 64 bits.
const SIZE_MAX: usize = 1 << 24;

/// The same for layers, each of which has a dozen names to check.
const LAYERS_MAX: usize = 10_000;

/// Names of the weights in the files. Projections and norms of a layer stand under
/// `<layers>.<index>.`, and every name ends in `.weight` or `.bias`.
#[derive(Debug, Eq, PartialEq)]
pub struct WeightNames {
    /// The embedding.
    pub embed: &'static str,
    /// The unembedding, where it is not tied.
    pub unembed: &'static str,
    /// The norm after the last layer.
    pub final_norm: &'static str,
    /// What the layers stand under.
    pub layers: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// The norm before the MLP.
    pub mlp_norm: &'static str,
    /// The norm of each query head.
    pub q_norm: &'static str,
    /// The norm of each key head.
    pub k_norm: &'static str,
    /// q, k, v, o, gate, up, down.
    pub projections: [&'static str; 7],
}

/// Standard rotary embedding: `theta^(-2i / head_dim)`, the exponent rounded to f32 as transformers does.
pub fn rope_table(theta: f64, head_dim: usize) -> RopeTable {
    #[expect(clippy::cast_precision_loss, reason = "head sizes are small")]
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        #[expect(clippy::cast_possible_truncation, reason = "the table is f32")]
        let power = theta.powf(f64::from(exponent)) as f32;
        1.0 / power
    };
    RopeTable { inverse_frequencies: (0..head_dim / 2).map(frequency).collect(), amplitude: 1.0 }
}

/// `config.json` with typed access; every error names the file and the field.
#[derive(Debug)]
pub struct ConfigJson {
    path: PathBuf,
    value: Value,
}

impl ConfigJson {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        if !path.exists() {
            let problem = "there is no such file; name a directory in the format of Hugging Face: \
                           config.json, tokenizer.json, model.safetensors or its shards";
            return Err(Error::model(&path, problem));
        }
        let bytes =
            std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Error::model(&path, format!("is not JSON ({error})")))?;
        if !value.is_object() {
            return Err(Error::model(&path, "is not a JSON object"));
        }
        Ok(Self { path, value })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value at a dotted path; `None` where it is missing or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        let value = field.split('.').try_fold(&self.value, |value, key| value.get(key))?;
        (!value.is_null()).then_some(value)
    }

    /// A count that must be there.
    pub fn size(&self, field: &str) -> Result<usize> {
        let value = self.required(field)?;
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(field, "a whole number", value))
    }

    /// A number that must be there.
    pub fn number(&self, field: &str) -> Result<f64> {
        let value = self.required(field)?;
        value.as_f64().ok_or_else(|| self.wrong(field, "a number", value))
    }

    /// A switch; off where it is missing.
    pub fn flag(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false", value)),
        }
    }

    /// A text that must be there.
    pub fn text(&self, field: &str) -> Result<&str> {
        let value = self.required(field)?;
        value.as_str().ok_or_else(|| self.wrong(field, "a text", value))
    }

    /// Refuses the model because of what `field` says.
    pub fn unsupported(&self, field: &str, why: &str) -> Error {
        let value = self.get(field).map_or_else(|| "null".to_owned(), Value::to_string);
        Error::model(&self.path, format!("`{field}` is {value}: {why}"))
    }

    fn required(&self, field: &str) -> Result<&Value> {
        self.get(field).ok_or_else(|| Error::model(&self.path, format!("`{field}` is missing")))
    }

    fn wrong(&self, field: &str, expected: &str, value: &Value) -> Error {
        Error::model(&self.path, format!("`{field}` is {value}, not {expected}"))
    }
}
