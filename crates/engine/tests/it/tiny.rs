//! A tiny random Qwen3 on the CPU, a tokenizer for it, and short ways to ask the engine for things.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
pub(crate) use tinsmith_backend_cpu::Kernels;
use tinsmith_backend_cpu::{Config as CpuConfig, CpuBackend};
use tinsmith_engine::{
    AdamParams, Config, Datum, Decoder, Engine, Failure, LoraSpec, ModelDir, Output, RunKey,
    SampleJob, SampleOutput, SamplerKey, Stop, Ticket, Work,
};
use tinsmith_tokenizer::Tokenizer;

pub(crate) const VOCAB: usize = 64;
const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const FFN: usize = 48;
pub(crate) const CONTEXT: usize = 512;
/// The model's own end token.
pub(crate) const END: u32 = 0;
/// Makes logits as far apart as those of a trained model.
const WEIGHT_GAIN: f64 = 3.0;

pub(crate) type CpuEngine = Engine<CpuBackend>;

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
    pub(crate) fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let fraction = (self.next() >> 11) as f64 / 9_007_199_254_740_992.0;
        fraction.mul_add(2.0, -1.0)
    }

    /// Tokens other than the end token.
    pub(crate) fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| u32::try_from(1 + self.below(VOCAB - 1)).unwrap()).collect()
    }
}

/// Writes the model's files.
pub(crate) fn write_model(dir: &Path) {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": FFN,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": true, "attention_bias": false, "hidden_act": "silu",
        "use_sliding_window": false, "eos_token_id": END,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let matrices: [(&str, Vec<usize>); 11] = [
            ("self_attn.q_proj", vec![HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * HEAD_DIM]),
            ("self_attn.q_norm", vec![HEAD_DIM]),
            ("self_attn.k_norm", vec![HEAD_DIM]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ];
        for (name, shape) in matrices {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut random = SplitMix64(1);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let bytes = weights(&mut random, &shape);
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A matrix around zero, or a vector around one.
fn weights(random: &mut SplitMix64, shape: &[usize]) -> Vec<u8> {
    let inputs = u32::try_from(shape[shape.len() - 1]).unwrap();
    let bound = WEIGHT_GAIN / f64::from(inputs).sqrt();
    let mut value = || {
        if shape.len() == 1 { 0.3f64.mul_add(random.unit(), 1.0) } else { bound * random.unit() }
    };
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    let bytes = (0..shape.iter().product()).flat_map(|_| (value() as f32).to_le_bytes()).collect();
    bytes
}

/// A tokenizer whose token `i` is a text of one to three letters; texts stand together without spaces.
pub(crate) fn tokenizer() -> Tokenizer {
    let vocab: BTreeMap<String, usize> = (0..VOCAB).map(|id| (text_of(id), id)).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": text_of(0)},
    });
    Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
}

/// The text of a token: every id has another first letter, `A` to `Z`, `a` to `z` and what follows.
pub(crate) fn text_of(id: usize) -> String {
    let first = char::from_u32(u32::try_from(0x100 + id).unwrap()).unwrap();
    format!("{first}{}", "xy".get(..id % 3).unwrap())
}

/// Room for everything in these tests.
pub(crate) fn config() -> Config {
    Config {
        train_context_max: CONTEXT,
        train_tokens_max: 128,
        activation_bytes_max: 256 << 20,
        training_queue_max: 64,
        prefill_tokens_max: 256,
        max_num_seqs: 64,
        speculative_rows_max: 16,
        kv_blocks: 1024,
        kv_spill_bytes: 0,
        kv_spill_flops_per_byte_min: 0,
        max_model_len: CONTEXT,
        waiting_sequences_max: 1024,
        num_samples_max: 128,
        stops_max: 8,
        logprobs_max: 10_000,
        runs_max: 16,
        runs_bytes_max: 1 << 30,
        samplers_max: 16,
        samplers_bytes_max: 1 << 30,
        rank_max: 64,
    }
}

/// An engine on `threads` threads, with the fastest kernels of `f32`.
pub(crate) fn engine(threads: usize, config: Config) -> CpuEngine {
    engine_on(threads, Kernels::f32(), config)
}

/// The sampler of [`base`].
pub(crate) const BASE: SamplerKey = SamplerKey(0);

/// An engine on one thread with a sampler of the base model.
pub(crate) fn base(config: Config) -> CpuEngine {
    let mut engine = engine(1, config);
    engine.create_sampler(BASE, "a", None).unwrap();
    engine
}

/// What a job of the base model's sampler gives.
pub(crate) fn draw(engine: &mut CpuEngine, job: SampleJob) -> SampleOutput {
    sampled(run_one(engine, sample(BASE, job)))
}

pub(crate) fn engine_on(threads: usize, kernels: Kernels, config: Config) -> CpuEngine {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    engine_of(dir.path(), threads, kernels, config)
}

/// An engine of the model with these tokens at the end of a text, as its generation configuration says.
pub(crate) fn engine_ended_by(end_tokens: &[u32], config: Config) -> CpuEngine {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let json = serde_json::json!({ "eos_token_id": end_tokens, "temperature": 0.1, "top_k": 1 });
    fs::write(dir.path().join("generation_config.json"), json.to_string()).unwrap();
    engine_of(dir.path(), 1, Kernels::f32(), config)
}

fn engine_of(dir: &Path, threads: usize, kernels: Kernels, config: Config) -> CpuEngine {
    let model = ModelDir::open(dir).unwrap();
    let mut backend = CpuBackend::new(CpuConfig { threads, kernels }).unwrap();
    let decoder = Decoder::load(&mut backend, &model).unwrap();
    let end_tokens = model.end_tokens().to_vec();
    Engine::new(backend, decoder, end_tokens, Some(Arc::new(tokenizer())), config).unwrap()
}

/// All kernel sets that this machine has, on all their paths.
pub(crate) fn kernel_sets() -> Vec<Kernels> {
    Kernels::available()
}

pub(crate) fn spec(rank: usize, seed: u64) -> LoraSpec {
    LoraSpec { rank, seed, train_attn: true, train_mlp: true, train_unembed: true }
}

pub(crate) fn adam(learning_rate: f64) -> AdamParams {
    AdamParams {
        learning_rate,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-12,
        weight_decay: 0.0,
        grad_clip_norm: 0.0,
    }
}

/// Submits everything, steps until all is done, and gives the results in the order of submission.
pub(crate) fn run_all(engine: &mut CpuEngine, works: Vec<Work>) -> Vec<Result<Output, Failure>> {
    let count = works.len();
    for (ticket, work) in (0u64..).zip(works) {
        engine.submit(Ticket(ticket), work).unwrap();
    }
    let mut results = BTreeMap::new();
    while !engine.is_idle() {
        results.extend(engine.step());
    }
    assert_eq!(results.len(), count, "every ticket comes back once");
    assert_eq!(engine.stats().kv_blocks_used, 0, "no block is left behind");
    results.into_values().collect()
}

pub(crate) fn run_one(engine: &mut CpuEngine, work: Work) -> Result<Output, Failure> {
    run_all(engine, vec![work]).pop().unwrap()
}

/// A datum that predicts each token from those before it.
pub(crate) fn datum(tokens: &[u32]) -> Datum {
    Datum {
        tokens: tokens[..tokens.len() - 1].to_vec(),
        targets: tokens[1..].to_vec(),
        per_row: 1,
        values: BTreeMap::new(),
        arrays: Vec::new(),
    }
}

/// Datums of mixed lengths with mixed weights.
pub(crate) fn datums(seed: u64, count: usize) -> Vec<Datum> {
    let mut random = SplitMix64(seed);
    let one = |_| {
        let length = 2 + random.below(70);
        let tokens = random.tokens(length);
        let mut datum = datum(&tokens);
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let weights = datum.tokens.iter().map(|_| random.unit() as f32).collect();
        datum.values.insert("weights".to_owned(), weights);
        datum
    };
    (0..count).map(one).collect()
}

pub(crate) fn forward_backward(run: RunKey, datums: Vec<Datum>) -> Work {
    let (loss, config) = ("cross_entropy".into(), BTreeMap::new());
    Work::ForwardBackward { run, datums, loss, config, forward_only: false }
}

pub(crate) fn forward(run: RunKey, datums: Vec<Datum>) -> Work {
    let (loss, config) = ("cross_entropy".into(), BTreeMap::new());
    Work::ForwardBackward { run, datums, loss, config, forward_only: true }
}

pub(crate) fn optim_step(run: RunKey, params: AdamParams) -> Work {
    Work::OptimStep { run, params }
}

pub(crate) fn job(prompt: &[u32], max_tokens: usize) -> SampleJob {
    SampleJob {
        prompt: prompt.to_vec(),
        num_samples: 1,
        max_tokens: Some(max_tokens),
        seed: Some(7),
        temperature: 1.0,
        top_k: None,
        top_p: 1.0,
        stop: Stop::Tokens(Vec::new()),
        prompt_logprobs: false,
        prompt_logprobs_last_n: None,
        topk_prompt_logprobs: 0,
        topk_sample_logprobs: 0,
        target_prompt_logprobs: None,
        prompt_alt_tokens: 0,
    }
}

pub(crate) fn sample(sampler: SamplerKey, job: SampleJob) -> Work {
    Work::Sample { sampler, job }
}

pub(crate) fn scored(result: Result<Output, Failure>) -> (Vec<Vec<f32>>, BTreeMap<String, f64>) {
    match result.unwrap() {
        Output::ForwardBackward { logprobs, metrics } => (logprobs, metrics),
        other @ (Output::OptimStep { .. } | Output::Sample(_)) => panic!("{other:?}"),
    }
}

pub(crate) fn sampled(result: Result<Output, Failure>) -> SampleOutput {
    match result.unwrap() {
        Output::Sample(output) => output,
        other @ (Output::OptimStep { .. } | Output::ForwardBackward { .. }) => panic!("{other:?}"),
    }
}

/// Everything that a sample gave, as bits, so that NaN equals NaN.
pub(crate) fn bits(output: &SampleOutput) -> Vec<Vec<u32>> {
    let of =
        |logprobs: &[f32]| -> Vec<u32> { logprobs.iter().map(|each| each.to_bits()).collect() };
    let mut all = Vec::new();
    for sequence in &output.sequences {
        all.push(sequence.tokens.clone());
        all.push(of(&sequence.logprobs));
    }
    all.extend(output.prompt_logprobs.as_deref().map(of));
    all
}

/// Gives a run weights of its own: two optimizer steps.
pub(crate) fn train_a_little(engine: &mut CpuEngine, run: RunKey) {
    for seed in 0..2 {
        let works =
            vec![forward_backward(run, datums(run.0 + seed, 3)), optim_step(run, adam(0.02))];
        for result in run_all(engine, works) {
            result.unwrap();
        }
    }
}
