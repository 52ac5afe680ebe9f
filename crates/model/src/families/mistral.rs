//! Mistral 7B and its like: `MistralForCausalLM` in transformers. Every layer has the window, or none.

use super::{
    Family, LLAMA_NAMES,
    common::{Defaults, Style, plain, window},
};
use crate::{
    Result,
    config::{ConfigJson, DecoderConfig, LocalLayers},
    rope,
};

pub(super) const FAMILY: Family = Family { model_type: "mistral", config };

const STYLE: Style = Style {
    family: FAMILY.model_type,
    defaults: Defaults {
        sizes: &[("num_key_value_heads", 8), ("max_position_embeddings", 131_072)],
        activation: ("hidden_act", "silu"),
        tie_embeddings: false,
    },
    rope: rope::shared,
    names: &LLAMA_NAMES,
};

fn config(json: &ConfigJson) -> Result<DecoderConfig> {
    if json.get("layer_types").is_some() {
        return Err(json.unsupported("layer_types", "layers of this family are all alike"));
    }
    let plain = plain(json, &STYLE)?;
    let layers = vec![true; plain.layers];
    let local =
        window(json, 4096)?.map(|window| LocalLayers { window, rope: plain.rope.clone(), layers });
    Ok(DecoderConfig { local, ..plain })
}
