//! Qwen3, dense: `Qwen3ForCausalLM` in transformers.

use super::{
    Family, LLAMA_NAMES,
    common::{Defaults, Style, plain, upper_local_layers},
};
use crate::{
    Result,
    config::{ConfigJson, DecoderConfig},
    rope,
};

pub(super) const FAMILY: Family = Family { model_type: "qwen3", config };

const STYLE: Style = Style {
    family: FAMILY.model_type,
    defaults: Defaults {
        sizes: &[
            ("num_key_value_heads", 32),
            ("head_dim", 128),
            ("max_position_embeddings", 32_768),
        ],
        activation: ("hidden_act", "silu"),
        tie_embeddings: false,
    },
    rope: rope::shared,
    names: &LLAMA_NAMES,
};

fn config(json: &ConfigJson) -> Result<DecoderConfig> {
    let bias = json.flag("attention_bias")?;
    let plain = plain(json, &STYLE)?;
    let local = upper_local_layers(json, &plain)?;
    Ok(DecoderConfig { qk_norm: true, qkv_bias: bias, output_bias: bias, local, ..plain })
}
