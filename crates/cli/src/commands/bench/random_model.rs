//! Models to measure with: Qwen3 with random weights, in sizes where arithmetic is what takes the time.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::random::Random;

/// 1.0 in bf16.
const ONE: u16 = 0x3F80;

/// Longest sequence that the models are said to be made for.
const POSITIONS_MAX: usize = 32_768;

/// What sets one model apart from another; all are Qwen3 with tied embeddings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) feed_forward: usize,
    pub(super) vocabulary: usize,
}

/// 29.4 M parameters.
pub(super) const SMALL: Size = Size {
    hidden: 512,
    layers: 8,
    heads: 8,
    kv_heads: 4,
    head_dim: 64,
    feed_forward: 1536,
    vocabulary: 8192,
};

/// 474 M parameters: the shapes of Qwen3 0.6B, with a fifth of its vocabulary.
pub(super) const LARGE: Size = Size {
    hidden: 1024,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    feed_forward: 3072,
    vocabulary: 32_768,
};

/// Writes a model of `size` into `dir`, with the tokenizer of the model in `tokenizer_dir`.
pub(super) fn write(size: &Size, dir: &Path, tokenizer_dir: &Path) -> Result<()> {
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let from = tokenizer_dir.join(name);
        fs::copy(&from, dir.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    let config = serde_json::to_string_pretty(&config(size)).context("write the configuration")?;
    fs::write(dir.join("config.json"), config).context("write config.json")?;
    write_weights(size, &dir.join("model.safetensors")).context("write model.safetensors")
}

fn config(size: &Size) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "intermediate_size": size.feed_forward,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": POSITIONS_MAX,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": false,
        "tie_word_embeddings": true,
        "eos_token_id": 2,
    })
}

/// Name and shape of every tensor.
fn tensors(size: &Size) -> Vec<(String, Vec<usize>)> {
    let hidden = size.hidden;
    let (queries, keys) = (size.heads * size.head_dim, size.kv_heads * size.head_dim);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![size.vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..size.layers {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("self_attn.q_norm", vec![size.head_dim]),
            ("self_attn.k_norm", vec![size.head_dim]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![size.feed_forward, hidden]),
            ("mlp.up_proj", vec![size.feed_forward, hidden]),
            ("mlp.down_proj", vec![hidden, size.feed_forward]),
        ];
        tensors.extend(
            parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)),
        );
    }
    tensors
}

/// The safetensors format: the header's length, the header, the tensors' bytes.
fn write_weights(size: &Size, path: &Path) -> Result<()> {
    let tensors = tensors(size);
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
