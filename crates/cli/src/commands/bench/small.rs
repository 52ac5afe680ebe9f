//! The *small* model: Qwen3 with random weights, large enough that arithmetic is what takes the time.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::random::Random;

const HIDDEN: usize = 512;
const LAYERS: usize = 8;
const HEADS: usize = 8;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const FEED_FORWARD: usize = 1536;
const VOCABULARY: usize = 8192;
/// 1.0 in bf16.
const ONE: u16 = 0x3F80;

/// Writes the model into `dir`, with the tokenizer of the model in `tokenizer_dir`.
pub(super) fn write(dir: &Path, tokenizer_dir: &Path) -> Result<()> {
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let from = tokenizer_dir.join(name);
        fs::copy(&from, dir.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    let config = serde_json::to_string_pretty(&config()).context("write the configuration")?;
    fs::write(dir.join("config.json"), config).context("write config.json")?;
    write_weights(&dir.join("model.safetensors")).context("write model.safetensors")
}

fn config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FEED_FORWARD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": false,
        "tie_word_embeddings": true,
        "eos_token_id": 2,
    })
}

/// Name and shape of every tensor.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let parts = [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * HEAD_DIM]),
            ("self_attn.q_norm", vec![HEAD_DIM]),
            ("self_attn.k_norm", vec![HEAD_DIM]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![FEED_FORWARD, HIDDEN]),
            ("mlp.up_proj", vec![FEED_FORWARD, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FEED_FORWARD]),
        ];
        tensors.extend(
            parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)),
        );
    }
    tensors
}

/// The safetensors format: the header's length, the header, the tensors' bytes.
fn write_weights(path: &Path) -> Result<()> {
    let tensors = tensors();
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut random = Random::new(1);
    for (_, shape) in &tensors {
        for _ in 0..shape.iter().product() {
            // Vectors are the scales of norms.
            let value = if shape.len() == 1 { ONE } else { weight(&mut random) };
            file.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(file.flush()?)
}

/// Uniform with a standard deviation of 0.02, the upper half of the bits of an f32.
#[expect(clippy::cast_precision_loss, reason = "noise")]
fn weight(random: &mut Random) -> u16 {
    let unit = random.below(1 << 16) as f32 / 32_768.0 - 1.0;
    let [_, _, low, high] = (unit * 0.0346).to_le_bytes();
    u16::from_le_bytes([low, high])
}
