//! Qwen2 and Qwen2.5, dense: `Qwen2ForCausalLM` in transformers.

use super::{
    Family, LLAMA_NAMES,
    common::{Defaults, Style, plain, upper_local_layers},
};
use crate::{
    Result,
    config::{ConfigJson, DecoderConfig},
    rope,
};

pub(super) const FAMILY: Family = Family { model_type: "qwen2", config };

const STYLE: Style = Style {
    family: FAMILY.model_type,
    defaults: Defaults {
        sizes: &[("num_key_value_heads", 32), ("max_position_embeddings", 32_768)],
        activation: ("hidden_act", "silu"),
        tie_embeddings: false,
    },
    rope: rope::shared,
    names: &LLAMA_NAMES,
};

fn config(json: &ConfigJson) -> Result<DecoderConfig> {
    let plain = plain(json, &STYLE)?;
    let local = upper_local_layers(json, &plain)?;
    Ok(DecoderConfig { qkv_bias: true, local, ..plain })
}
