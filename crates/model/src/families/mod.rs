//! The table of model families. To add one: a file here that maps its `config.json` to the decoder's
//! switches and names its weights, one line in [`FAMILIES`], golden numbers under `tests/golden/`.

mod qwen3;

use crate::{
    Error, Result,
    config::{ConfigJson, DecoderConfig, WeightNames},
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
pub const FAMILIES: &[Family] = &[qwen3::FAMILY];

/// The names that transformers gives to the weights of a decoder in the style of Llama.
pub const LLAMA_NAMES: WeightNames = WeightNames {
    embed: "model.embed_tokens",
    unembed: "lm_head",
    final_norm: "model.norm",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
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

/// The base of a rotary embedding without scaling, from where transformers 4 or 5 writes it.
fn plain_rope_theta(json: &ConfigJson) -> Result<f64> {
    for field in ["rope_scaling", "rope_parameters"] {
        for key in ["rope_type", "type"] {
            let field = format!("{field}.{key}");
            if json.get(&field).is_some() && json.text(&field)? != "default" {
                return Err(json.unsupported(&field, "scaled rotary embeddings are not supported"));
            }
        }
        let factor = format!("{field}.factor");
        if json.get(&factor).is_some() {
            return Err(json.unsupported(&factor, "scaled rotary embeddings are not supported"));
        }
    }
    for field in ["partial_rotary_factor", "rope_parameters.partial_rotary_factor"] {
        if json.get(field).is_some() && json.number(field)? != 1.0 {
            return Err(json.unsupported(field, "partly rotated heads are not supported"));
        }
    }
    let new = "rope_parameters.rope_theta";
    let field = if json.get(new).is_some() { new } else { "rope_theta" };
    let theta = json.number(field)?;
    if !(theta.is_finite() && theta > 1.0) {
        return Err(json.unsupported(field, "it must be a number over 1"));
    }
    Ok(theta)
}

/// Refuses models of which some layers attend to a window only.
fn refuse_sliding_window(json: &ConfigJson) -> Result<()> {
    if json.flag("use_sliding_window")? {
        return Err(json.unsupported("use_sliding_window", "sliding windows are not supported"));
    }
    let types = json.get("layer_types").and_then(|types| types.as_array());
    if types.is_some_and(|types| types.iter().any(|kind| kind != "full_attention")) {
        return Err(json.unsupported("layer_types", "only `full_attention` is supported"));
    }
    Ok(())
}
