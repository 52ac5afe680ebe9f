#![expect(clippy::cast_possible_truncation, reason = "small numbers of tests")]

use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tinsmith_backend::{
    Activation, Ask, Backend, Draw, PagedSequence, Query, ReferenceBackend, philox::philox4x32_10,
};

use super::Decoder;
use crate::{
    batch::InferBatch,
    config::{DecoderConfig, LocalLayers},
    files::ModelDir,
    golden::{CASES, GRADIENT_TOLERANCE, Golden, LOGPROB_TOLERANCE, Ragged, minus},
    lora::{Adapter, LoraSpec, PairSet, Projection, Site},
    peft::tensor_name,
    rope::rope_table,
    tensors::bytes_of,
    workspace::Workspace,
};

/// Runs a generic check on every backend; on the CPU with one thread and with two, with the fastest kernels
/// and with those that every CPU has.
macro_rules! on_every_backend {
    ($($check:ident),* $(,)?) => {
        mod reference {
            $(#[test]
            fn $check() {
                super::$check(|| tinsmith_backend::ReferenceBackend);
            })*
        }

        mod cpu {
            use tinsmith_backend_cpu::{Config, CpuBackend, KernelSet, Kernels, Path};

            $(#[test]
            fn $check() {
                let portable = Kernels::new(KernelSet::F32, Path::Portable).unwrap();
                for kernels in [Kernels::f32(), portable] {
                    for threads in [1, 2] {
                        let config = Config { threads, kernels };
                        super::$check(|| CpuBackend::new(config).unwrap());
                    }
                }
            })*
        }
    };
}

on_every_backend!(
    logprobs_are_those_of_pytorch,
    gradients_are_those_of_pytorch,
    gradients_do_not_depend_on_company,
    gradients_of_some_sites_are_those_of_all,
    inference_has_the_bits_of_training,
    drawn_logprobs_are_the_scored_ones,
);

fn logprobs_are_those_of_pytorch<B: Backend>(backend: impl Fn() -> B) {
    for case in CASES {
        let (golden, mut b) = (Golden::open(case), backend());
        let (decoder, adapter) = golden.load(&mut b);
        let mut ragged = Ragged::default();
        golden.sequences.iter().for_each(|sequence| ragged.push(sequence));
        let expected = |adapted: bool| -> Vec<f32> {
            let each = golden.sequences.iter();
            each.flat_map(|s| if adapted { &s.logprobs } else { &s.base_logprobs })
                .copied()
                .collect()
        };
        let base = farthest(&ragged.forward(&mut b, &decoder, None), &expected(false));
        let adapted = farthest(&ragged.forward(&mut b, &decoder, Some(&adapter)), &expected(true));
        assert!(base < LOGPROB_TOLERANCE, "{case}: base logprobs differ by {base}");
        assert!(adapted < LOGPROB_TOLERANCE, "{case}: logprobs differ by {adapted}");
    }
}

/// Where nothing is rounded, as near as f32; else a weight or a row's feature is off by up to 2^-9 of it,
/// and the logprobs, as low as -20 here, by 0.03 in the mean and 0.14 at most (measured).
#[test]
fn logprobs_of_bf16_sets_are_near_those_of_pytorch() {
    use tinsmith_backend_cpu::{Config, CpuBackend, KernelSet, Kernels};

    let sets = KernelSet::ALL.into_iter().filter(|set| *set != KernelSet::F32);
    for set in sets.filter(|set| set.is_available()) {
        for case in CASES {
            let kernels = Kernels::best(set).unwrap();
            let mut b = CpuBackend::new(Config { threads: 2, kernels }).unwrap();
            let golden = Golden::open(case);
            let (decoder, adapter) = golden.load(&mut b);
            let mut ragged = Ragged::default();
            golden.sequences.iter().for_each(|sequence| ragged.push(sequence));
            let expected = golden.sequences.iter().flat_map(|s| &s.logprobs).copied();
            let expected = expected.collect::<Vec<_>>();
            let found = ragged.forward(&mut b, &decoder, Some(&adapter));
            let stored = golden.dir.stored_dtype() == tinsmith_backend::Dtype::Bf16;
            let is_exact = stored && set == KernelSet::W16Avx2;
            let (most, most_mean) =
                if is_exact { (LOGPROB_TOLERANCE, LOGPROB_TOLERANCE) } else { (0.25, 0.05) };
            let far = farthest(&found, &expected);
            let sum = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum::<f32>();
            let mean = sum / found.len() as f32;
            assert!(far < most, "{case} with {set}: logprobs differ by {far}");
            assert!(mean < most_mean, "{case} with {set}: logprobs differ by {mean} in the mean");
        }
    }
}

/// Beyond 2,048 tokens, with every scaled rotation: all on the CPU, one through the slow reference.
#[test]
fn logprobs_far_from_the_first_token_are_those_of_pytorch() {
    use tinsmith_backend_cpu::{Config, CpuBackend, Kernels};

    let config = Config { threads: 2, kernels: Kernels::f32() };
    let mut b = CpuBackend::new(config).unwrap();
    let cases = CASES.iter().filter(|case| check_long(case, &mut b));
    assert_eq!(cases.count(), 4);
    assert!(check_long("llama/scaled", &mut ReferenceBackend));
}

/// False where the case has no long sequence.
fn check_long<B: Backend>(case: &str, b: &mut B) -> bool {
    let golden = Golden::open(case);
    let Some(long) = &golden.long else { return false };
    let (decoder, adapter) = golden.load(b);
    let mut ragged = Ragged { tokens: long.tokens.clone(), ..Ragged::default() };
    assert!(ragged.tokens.len() > 2048);
    ragged.targets = vec![0; ragged.tokens.len()];
    ragged.sequences.push(0..ragged.tokens.len());
    for (row, target) in long.rows.iter().zip(&long.targets) {
        ragged.targets[*row as usize] = *target;
    }
    for (adapter, expected) in [(None, &long.base_logprobs), (Some(&adapter), &long.logprobs)] {
        let all = ragged.forward(b, &decoder, adapter);
        let found: Vec<f32> = long.rows.iter().map(|row| all[*row as usize]).collect();
        let far = farthest(&found, expected);
        assert!(far < LOGPROB_TOLERANCE, "{case}: logprobs differ by {far}");
    }
    true
}

fn gradients_are_those_of_pytorch<B: Backend>(backend: impl Fn() -> B) {
    for case in CASES {
        let (golden, mut b) = (Golden::open(case), backend());
        let (decoder, adapter) = golden.load(&mut b);
        let (ragged, weights) = golden.training();
        let gradient = ragged.backward(&mut b, &decoder, &adapter, &weights);
        let mut seen = 0;
        for site in Site::all(decoder.config()) {
            let module = site.module(decoder.config());
            let (first, mut second) = b.read_pair(gradient.site(site).unwrap());
            // B was scaled when it was read, so its gradient is scaled the other way.
            second.iter_mut().for_each(|value| *value *= golden.alpha_ratio());
            for (which, found) in [("A", first), ("B", second)] {
                let name = tensor_name(&module, which);
                check_gradient(&format!("{case}: {name}"), &found, &golden.gradients[&name]);
                seen += 1;
            }
        }
        assert_eq!(seen, golden.gradients.len());
    }
}

/// Two runs, and one that asks for logprobs only, in one step: the same bits as alone.
fn gradients_do_not_depend_on_company<B: Backend>(backend: impl Fn() -> B) {
    for case in ["qwen3/untied", "gemma2/capped", "gemma3/text"] {
        check_two_runs(case, backend());
    }
}

fn check_two_runs<B: Backend>(case: &str, mut b: B) {
    let golden = Golden::open(case);
    let (decoder, first) = golden.load(&mut b);
    let config = decoder.config().clone();
    let spec =
        LoraSpec { rank: 2, seed: 9, train_attn: false, train_mlp: true, train_unembed: true };
    let second = random_adapter(&mut b, &config, spec);
    let [long, one, short] = [0, 1, 2].map(|index| &golden.sequences[index]);
    let alone = |b: &mut B, adapter: &Adapter<B>, sequences: &[&crate::golden::Sequence]| {
        let mut ragged = Ragged::default();
        sequences.iter().for_each(|sequence| ragged.push(sequence));
        let weights = vec![0.5; ragged.tokens.len()];
        let gradient = ragged.backward(b, &decoder, adapter, &weights);
        values(b, &config, &gradient)
    };
    let first_alone = alone(&mut b, &first, &[long, one]);
    let second_alone = alone(&mut b, &second, &[short]);

    let mut ragged = Ragged::default();
    [long, short, long, one].into_iter().for_each(|sequence| ragged.push(sequence));
    let rows = ragged.sequences.clone();
    let mut gradients = [&first, &second].map(|adapter| PairSet::zeros(&mut b, adapter).unwrap());
    let [first_gradient, second_gradient] = &mut gradients;
    let groups = vec![
        ragged.group(rows[0].clone(), &second, None),
        ragged.group(rows[1].clone(), &second, Some(second_gradient)),
        ragged.group(rows[2].start..rows[3].end, &first, Some(first_gradient)),
    ];
    let mut weights = vec![0.5; ragged.tokens.len()];
    weights[rows[0].clone()].fill(0.0);
    let mut workspace = Workspace::new(&mut b, &config).unwrap();
    let mut coefficients = |rows: std::ops::Range<usize>, _: &[f32], out: &mut [f32]| {
        minus(out, &weights[rows]);
    };
    let mut batch = ragged.batch(groups);
    decoder.forward_backward(&mut b, &mut workspace, &mut batch, &mut coefficients).unwrap();
    assert_eq!(values(&mut b, &config, &gradients[0]), first_alone);
    assert_eq!(values(&mut b, &config, &gradients[1]), second_alone);
}

/// What backward leaves out where little is trained changes nothing about the rest: an adapter with
/// some sites has the gradients of one with all sites whose other B are zero.
fn gradients_of_some_sites_are_those_of_all<B: Backend>(backend: impl Fn() -> B) {
    let (golden, mut b) = (Golden::open("qwen3/odd"), backend());
    let decoder = Decoder::load(&mut b, &golden.dir).unwrap();
    let config = decoder.config();
    let (ragged, weights) = golden.training();
    for flags in [[true, false, false], [false, true, false], [false, false, true]] {
        let [train_attn, train_mlp, train_unembed] = flags;
        let part = LoraSpec { rank: 3, seed: 5, train_attn, train_mlp, train_unembed };
        let all = LoraSpec { train_attn: true, train_mlp: true, train_unembed: true, ..part };
        let some = random_adapter(&mut b, config, part);
        let every = Adapter::from_host(&mut b, config, all, |site| {
            let (first, mut second) = random_pair(config, all, site);
            if !part.trains(site) {
                second.fill(0.0);
            }
            Ok((first, second))
        });
        let every = ragged.backward(&mut b, &decoder, &every.unwrap(), &weights);
        let some = ragged.backward(&mut b, &decoder, &some, &weights);
        for site in Site::all(config).filter(|site| part.trains(*site)) {
            let (found, expected) = (some.site(site).unwrap(), every.site(site).unwrap());
            let (found, expected) = (b.read_pair(found), b.read_pair(expected));
            check_gradient(&format!("A at {site:?}"), &found.0, &expected.0);
            check_gradient(&format!("B at {site:?}"), &found.1, &expected.1);
        }
    }
}

/// A prompt in chunks, then token by token, beside a stranger: the trainer's logprobs.
fn inference_has_the_bits_of_training<B: Backend>(backend: impl Fn() -> B) {
    for case in CASES {
        let (golden, mut b) = (Golden::open(case), backend());
        let (decoder, adapter) = golden.load(&mut b);
        let (long, stranger) = (&golden.sequences[3], &golden.sequences[0]);
        let mut ragged = Ragged::default();
        ragged.push(long);
        let expected = ragged.forward(&mut b, &decoder, Some(&adapter));

        let mut cache = decoder.cache(&mut b, 7).unwrap();
        let mut workspace = Workspace::new(&mut b, decoder.config()).unwrap();
        let (mut found, mut answers) = (Vec::new(), Vec::new());
        let cuts = [0, 5, 33, 64, 65, 66, 67, 68, 69, 70];
        for (step, cut) in cuts.windows(2).enumerate() {
            let (from, to) = (cut[0], cut[1]);
            let rows = to - from;
            let mut tokens = vec![stranger.tokens[step]];
            tokens.extend(&long.tokens[from..to]);
            let batch = InferBatch {
                tokens: &tokens,
                sequences: vec![
                    PagedSequence { rows: 0..1, position: step, blocks: &[4] },
                    PagedSequence { rows: 1..rows + 1, position: from, blocks: &[6, 0, 3] },
                ],
                uses: vec![(1..rows + 1, &adapter)],
            };
            decoder.infer(&mut b, &mut workspace, &mut cache, &batch).unwrap();
            let wanted: Vec<usize> = (1..=rows).collect();
            let targets = long.targets[from..to].iter().enumerate();
            let asks: Vec<Ask> =
                targets.map(|(row, target)| Ask { row, query: Query::Token(*target) }).collect();
            let rows = (&batch, &wanted[..]);
            decoder.sample(&mut b, &mut workspace, rows, &asks, &mut answers).unwrap();
            found.extend(answers.iter().map(|answer| answer.logprob));
        }
        assert_eq!(found, expected, "{case}");
    }
}

#[test]
fn strangers_kernels_and_threads_change_no_bit() {
    check_company("qwen3/untied");
}

#[test]
fn strangers_kernels_and_threads_change_no_bit_of_capped_models() {
    check_company("gemma2/capped");
}

#[test]
fn strangers_kernels_and_threads_change_no_bit_of_local_layers() {
    check_company("gemma3/text");
}

/// One sequence alone, and among 32 strangers in two orders: the same bits, with every kernel and thread count.
fn check_company(case: &str) {
    use tinsmith_backend_cpu::{Config, CpuBackend, KernelSet, Kernels};

    let golden = Golden::open(case);
    let sequence = &golden.sequences[0];
    let weights = vec![0.7; sequence.tokens.len()];
    let run = |kernels: Kernels, threads: usize, before: usize, after: usize| {
        let mut b = CpuBackend::new(Config { threads, kernels }).unwrap();
        let (decoder, adapter) = golden.load(&mut b);
        let mut ragged = Ragged::default();
        let strangers = golden.sequences.iter().cycle();
        strangers.clone().take(before).for_each(|stranger| ragged.push(stranger));
        let rows = ragged.tokens.len()..ragged.tokens.len() + sequence.tokens.len();
        ragged.push(sequence);
        strangers.skip(1).take(after).for_each(|stranger| ragged.push(stranger));
        let logprobs = ragged.forward(&mut b, &decoder, Some(&adapter))[rows.clone()].to_vec();

        let mut gradient = PairSet::zeros(&mut b, &adapter).unwrap();
        let mut workspace = Workspace::new(&mut b, decoder.config()).unwrap();
        let group = ragged.group(rows.clone(), &adapter, Some(&mut gradient));
        let mut batch = ragged.batch(vec![group]);
        let mut coefficients = |asked: std::ops::Range<usize>, _: &[f32], out: &mut [f32]| {
            for (row, coefficient) in asked.zip(out) {
                *coefficient = if rows.contains(&row) { -weights[row - rows.start] } else { 0.0 };
            }
        };
        decoder.forward_backward(&mut b, &mut workspace, &mut batch, &mut coefficients).unwrap();
        (logprobs, values(&mut b, decoder.config(), &gradient))
    };
    for set in KernelSet::ALL.into_iter().filter(|set| set.is_available()) {
        let best = Kernels::best(set).unwrap();
        let alone = run(best, 1, 0, 0);
        for kernels in Kernels::available().into_iter().filter(|kernels| kernels.set() == set) {
            assert_eq!(run(kernels, 2, 0, 0), alone, "{kernels}");
            assert_eq!(run(kernels, 1, 20, 12), alone, "{kernels}");
        }
        assert_eq!(run(best, 2, 3, 29), alone, "{best}");
    }
}

/// The most likely token, drawn from picked rows, has the logprob that scoring gives it; rows of another
/// adapter, and one row drawn from twice, stand beside it.
fn drawn_logprobs_are_the_scored_ones<B: Backend>(backend: impl Fn() -> B) {
    let (golden, mut b) = (Golden::open("qwen3/untied"), backend());
    let (decoder, adapter) = golden.load(&mut b);
    let mut ragged = Ragged::default();
    ragged.push(&golden.sequences[2]);
    let mut cache = decoder.cache(&mut b, 2).unwrap();
    let mut workspace = Workspace::new(&mut b, decoder.config()).unwrap();
    let tokens = [&ragged.tokens[..], &ragged.tokens[..]].concat();
    let (len, all) = (ragged.tokens.len(), tokens.len());
    let batch = InferBatch {
        tokens: &tokens,
        sequences: vec![
            PagedSequence { rows: 0..len, position: 0, blocks: &[0] },
            PagedSequence { rows: len..all, position: 0, blocks: &[1] },
        ],
        uses: vec![(len..all, &adapter)],
    };
    decoder.infer(&mut b, &mut workspace, &mut cache, &batch).unwrap();
    let rows = [3, len - 1, len + 3, all - 1];
    let of_row = [0, 1, 1, 2, 3];
    let greedy = Draw { temperature: 0.0, top_k: None, top_p: 1.0, uniform: 0.5 };
    let asks = of_row.map(|row| Ask { row, query: Query::Draw(greedy) });
    let mut drawn = Vec::new();
    decoder.sample(&mut b, &mut workspace, (&batch, &rows), &asks, &mut drawn).unwrap();
    assert_eq!(drawn[1], drawn[2]);
    for (index, row) in of_row.map(|row| rows[row]).into_iter().enumerate() {
        ragged.targets.fill(drawn[index].token);
        let adapter = (row >= len).then_some(&adapter);
        let expected = ragged.forward(&mut b, &decoder, adapter)[row % len];
        assert_eq!(drawn[index].logprob.to_bits(), expected.to_bits(), "row {row}");
    }
}

/// Every switch moves the logprobs far beyond the tolerance, so the golden files see each of them.
#[test]
fn every_switch_matters() {
    let check = |case: &str, switch: &str, edit: fn(&mut DecoderConfig)| {
        let (golden, mut b) = (Golden::open(case), ReferenceBackend);
        let mut config = golden.dir.config().clone();
        edit(&mut config);
        let decoder = Decoder::load_as(&mut b, &golden.dir, config).unwrap();
        let mut ragged = Ragged::default();
        ragged.push(&golden.sequences[0]);
        let found = ragged.forward(&mut b, &decoder, None);
        let moved = farthest(&found, &golden.sequences[0].base_logprobs);
        assert!(moved > 100.0 * LOGPROB_TOLERANCE, "{switch} moves logprobs by {moved} only");
    };
    check("qwen3/tied", "qk_norm", |config| config.qk_norm = false);
    check("qwen3/tied", "rms_eps", |config| config.rms_eps = 1e-6);
    check("qwen3/tied", "rope", |config| config.rope = rope_table(1e6, config.head_dim));
    check("qwen3/tied", "rope amplitude", |config| config.rope.amplitude = 1.1);
    check("qwen3/tied", "embed_scale", |config| config.embed_scale = 8.0);
    check("qwen3/tied", "attention_scale", |config| config.attention_scale = 1.0);
    check("qwen3/untied", "tie_embeddings", |config| config.tie_embeddings = true);
    let plain = |config: &mut DecoderConfig| config.rope = rope_table(10_000.0, config.head_dim);
    check("llama/scaled", "rope scaling", plain);
    check("llama/biased", "rope scaling", |config| {
        config.rope = rope_table(500.0, config.head_dim);
    });
    check("llama/biased", "qkv_bias", |config| config.qkv_bias = false);
    check("llama/biased", "output_bias", |config| config.output_bias = false);
    check("llama/biased", "mlp_bias", |config| config.mlp_bias = false);
    check("llama/biased", "activation", |config| config.activation = Activation::Silu);
    check("qwen2/windowed", "qkv_bias", |config| config.qkv_bias = false);
    check("qwen2/windowed", "window", |config| config.local = None);
    check("qwen2/windowed", "local layers", |config| local(config).layers[0] = true);
    check("qwen2/windowed", "rope scaling", |config| {
        config.rope = rope_table(10_000.0, config.head_dim);
        local(config).rope = config.rope.clone();
    });
    check("qwen2/windowed", "rope amplitude", |config| {
        config.rope.amplitude = 1.0;
        local(config).rope.amplitude = 1.0;
    });
    check("mistral/windowed", "window", |config| config.local = None);
    check("mistral/windowed", "window size", |config| local(config).window += 1);
    check("gemma2/capped", "window", |config| config.local = None);
    check("gemma2/capped", "local layers", |config| local(config).layers.reverse());
    check("gemma2/capped", "attention_softcap", |config| config.attention_softcap = None);
    check("gemma2/capped", "logit_softcap", |config| config.logit_softcap = None);
    for case in ["gemma2/capped", "gemma3/text", "gemma3/image"] {
        check(case, "post_norms", |config| config.post_norms = false);
        check(case, "norm_offset", |config| config.norm_offset = 0.0);
        check(case, "embed_scale", |config| config.embed_scale = 1.0);
        check(case, "activation", |config| config.activation = Activation::Silu);
        check(case, "attention_scale", |config| config.attention_scale = 0.25);
    }
    for case in ["gemma3/text", "gemma3/image"] {
        check(case, "qk_norm", |config| config.qk_norm = false);
        check(case, "window", |config| local(config).window = 1000);
        check(case, "local layers", |config| local(config).layers[0] = false);
        check(case, "local rope", |config| local(config).rope = config.rope.clone());
        check(case, "rope scaling", plain);
    }
}

fn local(config: &mut DecoderConfig) -> &mut LocalLayers {
    config.local.as_mut().unwrap()
}

/// A bias is read where the switch asks for one: zeros change nothing, others do.
#[test]
fn biases_are_added() {
    let golden = Golden::open("qwen3/tied");
    let mut ragged = Ragged::default();
    ragged.push(&golden.sequences[0]);
    let logprobs = |bias: f32| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(golden.path.join("config.json"), dir.path().join("config.json")).unwrap();
        let mut config = golden.dir.config().clone();
        config.qkv_bias = true;
        add_biases(&golden, &config, bias, &dir.path().join("model.safetensors"));
        let (mut b, dir) = (ReferenceBackend, ModelDir::open_as(dir.path(), config).unwrap());
        let decoder = Decoder::load(&mut b, &dir).unwrap();
        ragged.forward(&mut b, &decoder, None)
    };
    let plain = &golden.sequences[0].base_logprobs;
    assert!(farthest(&logprobs(0.0), plain) < LOGPROB_TOLERANCE);
    assert!(farthest(&logprobs(0.3), plain) > 100.0 * LOGPROB_TOLERANCE);
}

fn add_biases(golden: &Golden, config: &DecoderConfig, bias: f32, to: &Path) {
    let bytes = std::fs::read(golden.path.join("model.safetensors")).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let biases: Vec<_> = (0..config.layers)
        .flat_map(|layer| Projection::ALL.map(|projection| (layer, projection)))
        .filter(|(_, projection)| projection.has_bias(config))
        .map(|(layer, projection)| {
            let name = format!("{}.bias", projection.file_name(config, layer));
            (name, bytes_of(&vec![bias; projection.shape(config).0]))
        })
        .collect();
    for (name, bytes) in &biases {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).unwrap();
        tensors.push((name.clone(), view));
    }
    safetensors::serialize_to_file(tensors, None, to).unwrap();
}

#[test]
fn gradients_are_finite_differences() {
    check_differences("qwen3/odd");
}

#[test]
fn gradients_of_capped_models_are_finite_differences() {
    check_differences("gemma2/capped");
}

/// Central differences, fourth order, through the whole decoder, at two elements of each matrix.
fn check_differences(case: &str) {
    const STEP: f32 = 0.02;
    let (golden, mut b) = (Golden::open(case), ReferenceBackend);
    let decoder = Decoder::load(&mut b, &golden.dir).unwrap();
    let config = decoder.config();
    let spec =
        LoraSpec { rank: 3, seed: 1, train_attn: true, train_mlp: true, train_unembed: true };
    let (ragged, weights) = golden.training();
    let adapter = random_adapter(&mut b, config, spec);
    let gradient = ragged.backward(&mut b, &decoder, &adapter, &weights);
    let loss = |b: &mut ReferenceBackend, at: (Site, bool, usize), step: f32| -> f64 {
        let adapter = Adapter::from_host(b, config, spec, |site| {
            let (mut first, mut second) = random_pair(config, spec, site);
            let values = if at.1 { &mut second } else { &mut first };
            if site == at.0 {
                values[at.2] += step;
            }
            Ok((first, second))
        });
        let logprobs = ragged.forward(b, &decoder, Some(&adapter.unwrap()));
        let terms = logprobs.iter().zip(&weights);
        terms.map(|(logprob, weight)| -f64::from(*logprob) * f64::from(*weight)).sum()
    };
    for (number, site) in Site::all(config).enumerate() {
        let (first, second) = b.read_pair(gradient.site(site).unwrap());
        for (is_b, values) in [(false, first), (true, second)] {
            // B counts `scale` times more than A.
            let step = if is_b { STEP / spec.scale() } else { STEP };
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            for random in &random_words(number as u32)[..2] {
                let index = *random as usize % values.len();
                let mut difference = |step: f32| {
                    loss(&mut b, (site, is_b, index), step)
                        - loss(&mut b, (site, is_b, index), -step)
                };
                let (near, far) = (difference(step), difference(2.0 * step));
                let slope = (8.0 * near - far) / (12.0 * f64::from(step));
                let error = (slope - f64::from(values[index])).abs();
                let allowed = 2e-3 * f64::from(largest) + 2e-4;
                assert!(error < allowed, "{site:?} B {is_b} [{index}]: {slope} {}", values[index]);
            }
        }
    }
}

/// An adapter with random A and random B.
fn random_adapter<B: Backend>(b: &mut B, config: &DecoderConfig, spec: LoraSpec) -> Adapter<B> {
    Adapter::from_host(b, config, spec, |site| Ok(random_pair(config, spec, site))).unwrap()
}

fn random_pair(config: &DecoderConfig, spec: LoraSpec, site: Site) -> (Vec<f32>, Vec<f32>) {
    let (outputs, inputs) = site.shape(config);
    let key = Site::all(config).position(|each| each == site).unwrap() as u32;
    let values = |stream: u32, len: usize| -> Vec<f32> {
        let value = |index: usize| {
            let [word, ..] = philox4x32_10([index as u32, stream, key, 0], [7, 7]);
            (f64::from(word) / f64::from(u32::MAX) - 0.5) as f32
        };
        (0..len).map(value).collect()
    };
    let scale = 0.3 / (spec.scale() * (inputs as f32).sqrt());
    let second = values(1, outputs * spec.rank).iter().map(|value| scale * value).collect();
    (values(0, spec.rank * inputs), second)
}

fn random_words(key: u32) -> [u32; 4] {
    philox4x32_10([key, 0, 0, 0], [1, 2])
}

/// Every number of a gradient.
fn values<B: Backend>(b: &mut B, config: &DecoderConfig, set: &PairSet<B>) -> Vec<f32> {
    let pairs = Site::all(config).filter_map(|site| set.site(site)).map(|pair| b.read_pair(pair));
    pairs.flat_map(|(first, second)| [first, second].concat()).collect()
}

fn farthest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    differences
        .fold(0.0, |farthest, each| if each > farthest || each.is_nan() { each } else { farthest })
}

/// Relative to the size of the expected gradient: its norm, and its largest element.
fn check_gradient(what: &str, found: &[f32], expected: &[f32]) {
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    };
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let far = farthest(found, expected);
    assert!(far <= GRADIENT_TOLERANCE * largest, "{what}: differs by {far}, largest {largest}");
    let mut differences = found.iter().zip(expected).map(|(found, expected)| found - expected);
    let (off, size) = (norm(&mut differences), norm(&mut expected.iter().copied()));
    assert!(off <= f64::from(GRADIENT_TOLERANCE) * size, "{what}: off by {off}, norm {size}");
}
