//! Gemma 2: `Gemma2ForCausalLM` in transformers. Every other layer has the window, the first one has.

use super::{
    Family, GEMMA_NAMES,
    common::{Defaults, Style, gemma, local_layers, softcap, window},
};
use crate::{
    Result,
    config::{ConfigJson, DecoderConfig},
    rope,
};

pub(super) const FAMILY: Family = Family { model_type: "gemma2", config };

const STYLE: Style = Style {
    family: FAMILY.model_type,
    defaults: Defaults {
        sizes: &[
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("vocab_size", 256_000),
            ("max_position_embeddings", 8192),
        ],
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        tie_embeddings: true,
    },
    rope: rope::shared,
    names: &GEMMA_NAMES,
};

fn config(json: &ConfigJson) -> Result<DecoderConfig> {
    let gemma = gemma(json, &STYLE)?;
    let local = local_layers(json, &gemma, window(json, 4096)?, |layer| layer % 2 == 0)?;
    Ok(DecoderConfig {
        local,
        attention_softcap: softcap(json, "attn_logit_softcapping", Some(50.0))?,
        logit_softcap: softcap(json, "final_logit_softcapping", Some(30.0))?,
        ..gemma
    })
}
