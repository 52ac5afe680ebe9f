//! Qwen3, dense: `Qwen3ForCausalLM` in transformers.

use tinsmith_backend::Activation;

use super::{Family, LLAMA_NAMES, plain_rope_theta, refuse_sliding_window};
use crate::{
    Result,
    config::{ConfigJson, DecoderConfig, rope_table},
};

pub(super) const FAMILY: Family = Family { model_type: "qwen3", config };

fn config(json: &ConfigJson) -> Result<DecoderConfig> {
    if json.flag("attention_bias")? {
        return Err(json.unsupported("attention_bias", "biases in attention are not supported"));
    }
    refuse_sliding_window(json)?;
    if json.text("hidden_act")? != "silu" {
        return Err(json.unsupported("hidden_act", "only `silu` is supported"));
    }
    let head_dim = json.size("head_dim")?;
    #[expect(clippy::cast_possible_truncation, reason = "the decoder computes in f32")]
    let rms_eps = json.number("rms_norm_eps")? as f32;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "the decoder computes in f32"
    )]
    let attention_scale = (head_dim as f64).powf(-0.5) as f32;
    Ok(DecoderConfig {
        family: FAMILY.model_type,
        vocab_size: json.size("vocab_size")?,
        hidden: json.size("hidden_size")?,
        layers: json.size("num_hidden_layers")?,
        heads: json.size("num_attention_heads")?,
        kv_heads: json.size("num_key_value_heads")?,
        head_dim,
        ffn: json.size("intermediate_size")?,
        rms_eps,
        rope: rope_table(plain_rope_theta(json)?, head_dim),
        tie_embeddings: json.flag("tie_word_embeddings")?,
        qkv_bias: false,
        qk_norm: true,
        activation: Activation::Silu,
        max_positions: json.size("max_position_embeddings")?,
        embed_scale: 1.0,
        attention_scale,
        names: &LLAMA_NAMES,
    })
}
