//! Llama 2 and 3.x, and all that say they are: `LlamaForCausalLM` in transformers.

use super::{
    Family, LLAMA_NAMES,
    common::{Defaults, Style, plain},
};
use crate::{
    Result,
    config::{ConfigJson, DecoderConfig},
    rope,
};

pub(super) const FAMILY: Family = Family { model_type: "llama", config };

const STYLE: Style = Style {
    family: FAMILY.model_type,
    defaults: Defaults {
        sizes: &[("max_position_embeddings", 2048)],
        activation: ("hidden_act", "silu"),
        tie_embeddings: false,
    },
    rope: rope::shared,
    names: &LLAMA_NAMES,
};

fn config(json: &ConfigJson) -> Result<DecoderConfig> {
    let (attention, mlp_bias) = (json.flag("attention_bias")?, json.flag("mlp_bias")?);
    let plain = plain(json, &STYLE)?;
    Ok(DecoderConfig { qkv_bias: attention, output_bias: attention, mlp_bias, ..plain })
}
