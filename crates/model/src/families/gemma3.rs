//! Gemma 3: `Gemma3ForCausalLM` in transformers, and the text part of `Gemma3ForConditionalGeneration`.
//! Most layers have the window, and a rotation of their own.

use tinsmith_backend::RopeTable;

use super::{
    Family, GEMMA_NAMES, GEMMA3_PART_NAMES,
    common::{Defaults, Style, gemma, local_layers, softcap, window},
};
use crate::{
    Result,
    config::{ConfigJson, DecoderConfig},
    rope::{RopeShape, scaled},
};

pub(super) const TEXT: Family =
    Family { model_type: "gemma3_text", config: |json| config(json, &STYLE) };

/// A model that sees images; its text part is served.
pub(super) const WHOLE: Family = Family {
    model_type: "gemma3",
    config: |json| {
        let style = Style { family: "gemma3", names: &GEMMA3_PART_NAMES, ..STYLE };
        let config = config(&json.section("text_config")?, &style)?;
        let tie_embeddings = json.flag_or("tie_word_embeddings", config.tie_embeddings)?;
        Ok(DecoderConfig { tie_embeddings, ..config })
    },
};

const STYLE: Style = Style {
    family: TEXT.model_type,
    defaults: Defaults {
        sizes: &[
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("vocab_size", 262_208),
            ("max_position_embeddings", 131_072),
        ],
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        tie_embeddings: true,
    },
    rope: global_rope,
    names: &GEMMA_NAMES,
};

fn config(json: &ConfigJson, style: &Style) -> Result<DecoderConfig> {
    const CAP: &str = "attn_logit_softcapping";
    if json.get(CAP).is_some() {
        return Err(json.unsupported(CAP, "transformers has it in Gemma 2 only"));
    }
    let gemma = gemma(json, style)?;
    let period = json.size_or("sliding_window_pattern", 6)?.max(1);
    let is_local = |layer: usize| !(layer + 1).is_multiple_of(period);
    let mut local = local_layers(json, &gemma, window(json, 4096)?, is_local)?;
    if let Some(local) = &mut local {
        let shape = RopeShape { head_dim: gemma.head_dim, max_positions: gemma.max_positions };
        let theta = ("rope_local_base_freq", 10_000.0);
        local.rope = scaled(json, "rope_parameters.sliding_attention", theta, shape)?;
    }
    let logit_softcap = softcap(json, "final_logit_softcapping", None)?;
    Ok(DecoderConfig { qk_norm: true, local, logit_softcap, ..gemma })
}

/// Of the layers without a window; scaling that is not for one kind of layer is for these.
fn global_rope(json: &ConfigJson, shape: RopeShape) -> Result<RopeTable> {
    const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];
    let parameters = json.get("rope_parameters").and_then(|value| value.as_object());
    if parameters.is_some_and(|kinds| kinds.keys().any(|kind| !KINDS.contains(&&**kind))) {
        let why = "it must have `full_attention` and `sliding_attention`, and nothing else";
        return Err(json.unsupported("rope_parameters", why));
    }
    let fields = ["rope_scaling", "rope_parameters.full_attention"];
    let field = fields.into_iter().find(|field| json.get(field).is_some());
    let field = field.unwrap_or("rope_parameters.full_attention");
    scaled(json, field, ("rope_theta", 1_000_000.0), shape)
}
