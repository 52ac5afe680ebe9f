//! The named switches of the one decoder, and reading them from `config.json`.

mod json;

use std::path::Path;

use tinsmith_backend::{Activation, AttentionShape, RopeTable};

use crate::{Error, Result};
pub use json::ConfigJson;

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
    /// Added to the weights of every RMS norm: 1 where files hold what they differ from 1 by (Gemma).
    pub norm_offset: f32,
    /// Inverse frequencies of the rotary embedding; of local layers, see [`LocalLayers::rope`].
    pub rope: RopeTable,
    /// Layers that attend to a window only.
    pub local: Option<LocalLayers>,
    /// The unembedding is the embedding.
    pub tie_embeddings: bool,
    /// Queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// The projection after attention has a bias.
    pub output_bias: bool,
    /// The projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// Each head of queries and keys goes through an RMS norm before it is rotated.
    pub qk_norm: bool,
    /// What attention and MLP give goes through a norm before it is added to the residual stream.
    pub post_norms: bool,
    /// Non-linearity of the gated MLP.
    pub activation: Activation,
    /// Longest sequence that the model was made for, in tokens.
    pub max_positions: usize,
    /// Factor on embedded tokens. Rounded to f32, as transformers has it in f32; in bf16 it rounds it more.
    pub embed_scale: f32,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// `c` of `c * tanh(score / c)`, before the softmax of attention.
    pub attention_softcap: Option<f32>,
    /// `c` of `c * tanh(logit / c)`.
    pub logit_softcap: Option<f32>,
    /// Where the weights stand in the files.
    pub names: &'static WeightNames,
}

/// Layers that attend to a window only, among others or alone.
#[derive(Clone, Debug)]
pub struct LocalLayers {
    /// Keys that a query sees, the one at its own position among them.
    pub window: usize,
    /// Inverse frequencies of these layers.
    pub rope: RopeTable,
    /// Whether a layer is one of them, `[layers]`.
    pub layers: Vec<bool>,
}

impl DecoderConfig {
    /// The constants of a layer's attention ops.
    pub fn attention_shape(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            window: self.local_layer(layer).map(|local| local.window),
            softcap: self.attention_softcap,
        }
    }

    /// Inverse frequencies of a layer.
    pub fn rope_of(&self, layer: usize) -> &RopeTable {
        self.local_layer(layer).map_or(&self.rope, |local| &local.rope)
    }

    fn local_layer(&self, layer: usize) -> Option<&LocalLayers> {
        self.local.as_ref().filter(|local| local.layers[layer])
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
        let mut add = |part: std::fmt::Arguments<'_>| {
            text.write_fmt(part).expect("a String takes every text");
        };
        for frequency in &self.rope.inverse_frequencies {
            add(format_args!(" {frequency:e}"));
        }
        if self.norm_offset != 0.0 {
            add(format_args!(" norm_offset {:e}", self.norm_offset));
        }
        match self.activation {
            Activation::Silu => {}
            Activation::GeluTanh => add(format_args!(" gelu_tanh")),
        }
        if let Some(softcap) = self.attention_softcap {
            add(format_args!(" attention_softcap {softcap:e}"));
        }
        if let Some(softcap) = self.logit_softcap {
            add(format_args!(" logit_softcap {softcap:e}"));
        }
        if let Some(LocalLayers { window, rope, layers }) = &self.local {
            add(format_args!(" window {window} local_rope {:e}", rope.amplitude));
            for frequency in &rope.inverse_frequencies {
                add(format_args!(" {frequency:e}"));
            }
            add(format_args!(" local_layers {layers:?}"));
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
        if !(self.attention_scale.is_finite() && self.attention_scale > 0.0) {
            return refuse("query_pre_attn_scalar is not a positive number");
        }
        let softcaps = [self.attention_softcap, self.logit_softcap];
        if softcaps.into_iter().flatten().any(|cap| !(cap.is_finite() && cap > 0.0)) {
            return refuse("a soft cap in it is not a positive number");
        }
        if self.local.as_ref().is_some_and(|local| local.window == 0) {
            return refuse("sliding_window is 0");
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
    /// The norms of what attention and MLP give; empty in families that have none.
    pub post_norms: [&'static str; 2],
    /// The norm of each query head.
    pub q_norm: &'static str,
    /// The norm of each key head.
    pub k_norm: &'static str,
    /// q, k, v, o, gate, up, down.
    pub projections: [&'static str; 7],
    /// What an adapter's files call them.
    pub modules: ModuleNames,
}

/// Names of modules in transformers, which PEFT goes by; files may have others.
#[derive(Debug, Eq, PartialEq)]
pub struct ModuleNames {
    /// The embedding.
    pub embed: &'static str,
    /// The unembedding.
    pub unembed: &'static str,
    /// What the layers stand under.
    pub layers: &'static str,
}
