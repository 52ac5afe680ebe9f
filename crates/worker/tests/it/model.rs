//! A tiny random Qwen3 on the CPU.

use std::{fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use tinsmith_backend_cpu::{Config as CpuConfig, CpuBackend, Kernels};
use tinsmith_engine::{Config, Decoder, Engine, ModelDir};

pub(crate) const VOCAB: usize = 32;
const HIDDEN: usize = 16;
const HEADS: usize = 2;
const KV_HEADS: usize = 1;
const HEAD_DIM: usize = 8;
const FFN: usize = 16;
const CONTEXT: usize = 64;
/// Enough for a whole context.
pub(crate) const ACTIVATION_BYTES_MAX: usize = 64 << 20;

/// Small pseudo-random numbers without a dependency.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// In `[-1, 1)`.
    fn unit(&mut self) -> f32 {
        f32::from(u16::try_from(self.next() >> 48).unwrap()) / 32768.0 - 1.0
    }
}

/// Writes the model's files; with `other`, one bit of its weights is another.
fn write(dir: &Path, other: bool) {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": FFN,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": true, "attention_bias": false, "hidden_act": "silu",
        "use_sliding_window": false, "eos_token_id": 0,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        (layer("self_attn.q_proj"), vec![HEADS * HEAD_DIM, HIDDEN]),
        (layer("self_attn.k_proj"), vec![KV_HEADS * HEAD_DIM, HIDDEN]),
        (layer("self_attn.v_proj"), vec![KV_HEADS * HEAD_DIM, HIDDEN]),
        (layer("self_attn.o_proj"), vec![HIDDEN, HEADS * HEAD_DIM]),
        (layer("self_attn.q_norm"), vec![HEAD_DIM]),
        (layer("self_attn.k_norm"), vec![HEAD_DIM]),
        (layer("mlp.gate_proj"), vec![FFN, HIDDEN]),
        (layer("mlp.up_proj"), vec![FFN, HIDDEN]),
        (layer("mlp.down_proj"), vec![HIDDEN, FFN]),
        (layer("input_layernorm"), vec![HIDDEN]),
        (layer("post_attention_layernorm"), vec![HIDDEN]),
    ];
    let mut random = SplitMix64(1);
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, shape) in shapes {
        let mut value = || if shape.len() == 1 { 1.0 + 0.3 * random.unit() } else { random.unit() };
        let count = shape.iter().product();
        let bytes = (0..count).flat_map(|_| value().to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    }
    if other {
        // The highest bit of a final norm's fraction.
        tensors[1].2[2] ^= 0x40;
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// An engine on one thread.
pub(crate) fn engine(
    other: bool,
    kernels: Kernels,
    activation_bytes_max: usize,
    runs_bytes_max: usize,
) -> Engine<CpuBackend> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), other);
    let model = ModelDir::open(dir.path()).unwrap();
    let cpu = CpuConfig { threads: 1, kernels };
    let mut backend = CpuBackend::new(cpu).unwrap();
    let decoder = Decoder::load(&mut backend, &model).unwrap();
    let config = Config {
        train_context_max: CONTEXT,
        train_tokens_max: 64,
        activation_bytes_max,
        training_queue_max: 16,
        prefill_tokens_max: 64,
        max_num_seqs: 8,
        speculative_rows_max: 16,
        kv_blocks: 64,
        kv_spill_bytes: 0,
        kv_spill_flops_per_byte_min: 0,
        max_model_len: CONTEXT,
        waiting_sequences_max: 64,
        num_samples_max: 8,
        stops_max: 8,
        logprobs_max: 10_000,
        runs_max: 32,
        runs_bytes_max,
        samplers_max: 16,
        samplers_bytes_max: 1 << 30,
        rank_max: 64,
    };
    Engine::new(backend, decoder, vec![0], None, config).unwrap()
}
