//! What the table's entries share: reading the fields that most families have.

use tinsmith_backend::{Activation, RopeTable};

use crate::{
    Result,
    config::{ConfigJson, DecoderConfig, LocalLayers, WeightNames},
    rope::RopeShape,
};

/// What transformers' configuration class takes where `config.json` leaves a field out.
pub(super) struct Defaults {
    /// Sizes by their fields; those that are not named here must be there.
    pub(super) sizes: &'static [(&'static str, usize)],
    /// The field that names the activation, and its default.
    pub(super) activation: (&'static str, &'static str),
    pub(super) tie_embeddings: bool,
}

/// The family's name, what it takes for missing fields, its rotation and where its weights stand.
pub(super) struct Style {
    pub(super) family: &'static str,
    pub(super) defaults: Defaults,
    pub(super) rope: fn(&ConfigJson, RopeShape) -> Result<RopeTable>,
    pub(super) names: &'static WeightNames,
}

/// A plain decoder in the style of Llama: no biases, no windows, no caps. A family changes what it has
/// otherwise.
pub(super) fn plain(json: &ConfigJson, style: &Style) -> Result<DecoderConfig> {
    let defaults = &style.defaults;
    let size = |field: &str| default_size(json, defaults, field);
    let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
    let kv_heads = optional_size(json, defaults, "num_key_value_heads")?.unwrap_or(heads);
    let head_dim = match optional_size(json, defaults, "head_dim")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let why = "it is no multiple of num_attention_heads, and there is no head_dim";
            return Err(json.unsupported("hidden_size", why));
        }
    };
    let max_positions = size("max_position_embeddings")?;
    #[expect(clippy::cast_precision_loss, reason = "head sizes are small")]
    let attention_scale = inverse_root(head_dim as f64);
    Ok(DecoderConfig {
        family: style.family,
        vocab_size: size("vocab_size")?,
        hidden,
        layers: size("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        ffn: size("intermediate_size")?,
        rms_eps: narrow(json.number_or("rms_norm_eps", 1e-6)?),
        norm_offset: 0.0,
        rope: (style.rope)(json, RopeShape { head_dim, max_positions })?,
        local: None,
        tie_embeddings: json.flag_or("tie_word_embeddings", defaults.tie_embeddings)?,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        post_norms: false,
        activation: activation(json, defaults.activation)?,
        max_positions,
        embed_scale: 1.0,
        attention_scale,
        attention_softcap: None,
        logit_softcap: None,
        names: style.names,
    })
}

/// Gemma 2 and 3: norms by what they differ from 1, norms after attention and MLP too, and the scales.
pub(super) fn gemma(json: &ConfigJson, style: &Style) -> Result<DecoderConfig> {
    const BOTH_WAYS: &str = "use_bidirectional_attention";
    if json.flag(BOTH_WAYS)? {
        return Err(json.unsupported(BOTH_WAYS, "only attention to earlier tokens is supported"));
    }
    let plain = plain(json, style)?;
    let bias = json.flag("attention_bias")?;
    #[expect(clippy::cast_precision_loss, reason = "hidden sizes are below 2²⁴")]
    let embed_scale = (plain.hidden as f64).sqrt();
    Ok(DecoderConfig {
        norm_offset: 1.0,
        post_norms: true,
        qkv_bias: bias,
        output_bias: bias,
        embed_scale: narrow(embed_scale),
        attention_scale: inverse_root(json.number_or("query_pre_attn_scalar", 256.0)?),
        ..plain
    })
}

/// The layers that see a window of `window` keys only: those of which `layer_types` says so, else those of
/// the family's `pattern`.
pub(super) fn local_layers(
    json: &ConfigJson,
    config: &DecoderConfig,
    window: Option<usize>,
    pattern: impl Fn(usize) -> bool,
) -> Result<Option<LocalLayers>> {
    let field = "layer_types";
    let layers: Vec<bool> = match json.get(field) {
        None => (0..config.layers).map(pattern).collect(),
        Some(types) => {
            let local = |kind: &serde_json::Value| match kind.as_str() {
                Some("sliding_attention") => Some(true),
                Some("full_attention") => Some(false),
                _ => None,
            };
            let types = types.as_array().and_then(|types| types.iter().map(local).collect());
            types.ok_or_else(|| {
                let why = "only a list of `full_attention` and `sliding_attention` is supported";
                json.unsupported(field, why)
            })?
        }
    };
    if !layers.contains(&true) {
        return Ok(None);
    }
    if layers.len() != config.layers {
        return Err(json.unsupported(field, "it has not as many entries as there are layers"));
    }
    let Some(window) = window else {
        return Err(json.unsupported(field, "its `sliding_attention` has no sliding_window"));
    };
    Ok(Some(LocalLayers { window, rope: config.rope.clone(), layers }))
}

/// As Qwen has windows: not unless they are asked for, and then in the upper layers only.
pub(super) fn upper_local_layers(
    json: &ConfigJson,
    config: &DecoderConfig,
) -> Result<Option<LocalLayers>> {
    let on = json.flag("use_sliding_window")?;
    let window = if on { window(json, 4096)? } else { None };
    let lowest = json.size_or("max_window_layers", 28)?;
    local_layers(json, config, window, |layer| window.is_some() && layer >= lowest)
}

/// `sliding_window`; null is off.
pub(super) fn window(json: &ConfigJson, default: usize) -> Result<Option<usize>> {
    let field = "sliding_window";
    if json.is_null(field) { Ok(None) } else { json.size_or(field, default).map(Some) }
}

/// The cap at `field`; null is off.
pub(super) fn softcap(json: &ConfigJson, field: &str, default: Option<f64>) -> Result<Option<f32>> {
    if json.is_null(field) || (json.get(field).is_none() && default.is_none()) {
        return Ok(None);
    }
    json.number_or(field, default.unwrap_or_default()).map(|cap| Some(narrow(cap)))
}

fn activation(json: &ConfigJson, (field, default): (&str, &str)) -> Result<Activation> {
    let name = if json.get(field).is_some() { json.text(field)? } else { default };
    match name {
        "silu" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        _ => Err(json.unsupported(field, "only `silu` and `gelu_pytorch_tanh` are supported")),
    }
}

fn default_size(json: &ConfigJson, defaults: &Defaults, field: &str) -> Result<usize> {
    match defaults.sizes.iter().find(|(name, _)| *name == field) {
        Some((_, default)) => json.size_or(field, *default),
        None => json.size(field),
    }
}

/// `None` where it is null, or missing without a default.
fn optional_size(json: &ConfigJson, defaults: &Defaults, field: &str) -> Result<Option<usize>> {
    let has_default = defaults.sizes.iter().any(|(name, _)| *name == field);
    if json.is_null(field) || (json.get(field).is_none() && !has_default) {
        return Ok(None);
    }
    default_size(json, defaults, field).map(Some)
}

fn inverse_root(number: f64) -> f32 {
    narrow(number.powf(-0.5))
}

#[expect(clippy::cast_possible_truncation, reason = "the decoder computes in f32")]
fn narrow(number: f64) -> f32 {
    number as f32
}
