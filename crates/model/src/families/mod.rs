//! The table of model families. To add one: a file here that maps its `config.json` to the decoder's
//! switches and names its weights, one line in [`FAMILIES`], golden numbers under `tests/golden/`.

mod common;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use crate::{
    Error, Result,
    config::{ConfigJson, DecoderConfig, ModuleNames, WeightNames},
};

/// One entry of the table.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Maps `config.json` to the decoder's switches; refuses what they cannot say.
    pub config: fn(&ConfigJson) -> Result<DecoderConfig>,
}

/// Every family that can be served.
pub const FAMILIES: &[Family] = &[
    gemma2::FAMILY,
    gemma3::TEXT,
    gemma3::WHOLE,
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
];

/// The names that transformers gives to the weights of a decoder in the style of Llama.
pub const LLAMA_NAMES: WeightNames = WeightNames {
    embed: "model.embed_tokens",
    unembed: "lm_head",
    final_norm: "model.norm",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    post_norms: ["", ""],
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    projections: [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    modules: ModuleNames {
        embed: "model.embed_tokens",
        unembed: "lm_head",
        layers: "model.layers",
    },
};

/// The same for Gemma, where what follows attention is a norm of its own.
pub const GEMMA_NAMES: WeightNames = WeightNames {
    mlp_norm: "pre_feedforward_layernorm",
    post_norms: ["post_attention_layernorm", "post_feedforward_layernorm"],
    ..LLAMA_NAMES
};

/// The same for the text part of a Gemma 3 that sees images.
pub const GEMMA3_PART_NAMES: WeightNames = WeightNames {
    embed: "language_model.model.embed_tokens",
    unembed: "language_model.lm_head",
    final_norm: "language_model.model.norm",
    layers: "language_model.model.layers",
    modules: ModuleNames {
        embed: "model.language_model.embed_tokens",
        unembed: "lm_head",
        layers: "model.language_model.layers",
    },
    ..GEMMA_NAMES
};

/// The decoder's switches for the model that `json` describes.
pub fn config(json: &ConfigJson) -> Result<DecoderConfig> {
    let model_type = json.text("model_type")?;
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
        let problem =
            format!("model_type `{model_type}` is not supported; these are: {}", known.join(", "));
        return Err(Error::model(json.path(), problem));
    };
    if json.get("quantization_config").is_some() {
        return Err(Error::model(
            json.path(),
            "`quantization_config` is set; only unquantised weights (bf16, f16, f32) can be served",
        ));
    }
    let config = (family.config)(json)?;
    config.check(json.path())?;
    Ok(config)
}

#[cfg(test)]
mod tests;
