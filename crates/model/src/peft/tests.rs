use serde_json::{Map, Value, json};
use tinsmith_backend::{Backend, ReferenceBackend, philox::philox4x32_10};

use super::{CONFIG, Files, WEIGHTS};
use crate::{
    decoder::Decoder,
    golden::{CASES, Golden},
    lora::{Adapter, LoraSpec, Moments, PairSet, Site},
};

const SPEC: LoraSpec =
    LoraSpec { rank: 2, seed: 3, train_attn: true, train_mlp: false, train_unembed: true };

/// Changes PEFT's files and expects this error.
#[track_caller]
fn check(change: impl Fn(&mut Files), expected: &str) {
    let golden = Golden::open("qwen3/tied");
    let mut files = golden.adapter_files();
    change(&mut files);
    let read = super::read_adapter(&mut ReferenceBackend, golden.dir.config(), &files);
    assert_eq!(read.unwrap_err().to_string(), format!("use the adapter: {expected}"));
}

#[track_caller]
fn check_config(key: &str, value: &Value, expected: &str) {
    let change = |files: &mut Files| {
        let config = files.get_mut(CONFIG).unwrap();
        let mut json: Map<String, Value> = serde_json::from_slice(config).unwrap();
        json.insert(key.to_owned(), value.clone());
        *config = Value::from(json).to_string().into_bytes();
    };
    check(change, &format!("adapter_config.json {expected}"));
}

#[track_caller]
fn check_sets(key: &str, value: &Value, reason: &str) {
    check_config(key, value, &format!("sets `{key}` to {value}, which is not supported{reason}"));
}

#[test]
fn what_peft_does_and_we_do_not_is_refused_by_name() {
    check_sets("use_dora", &json!(true), ": DoRA's magnitudes cannot be held in A and B");
    check_sets(
        "use_rslora",
        &json!(true),
        ": scaling is lora_alpha / r here; lora_alpha times the square root of r with use_rslora false is \
         the same adapter",
    );
    check_sets("bias", &json!("all"), ": only \"none\" is: an adapter trains no biases here");
    check_sets("lora_bias", &json!(true), ": an adapter trains no biases here");
    let modules = json!(["embed_tokens"]);
    check_sets("modules_to_save", &modules, ": whole modules are not trained here");
    check_sets("rank_pattern", &json!({"q_proj": 4}), ": all modules have one rank here");
    check_sets("alpha_pattern", &json!({"q_proj": 4}), ": all modules have one alpha here");
    check_sets("fan_in_fan_out", &json!(true), ": weights lie as [outputs, inputs] here");
    check_sets("layers_pattern", &json!(["blocks"]), "");
    let tokens = json!({"embed_tokens": [1]});
    check_sets("trainable_token_indices", &tokens, ": the embedding is not trained here");
    check_sets(
        "init_lora_weights",
        &json!("pissa"),
        ": it changes the base weights too; convert it to a plain LoRA with PEFT",
    );
    check_sets("new_trick", &json!(7), "");
    check_config("peft_type", &json!("IA3"), "has peft_type \"IA3\"; only \"LORA\" is supported");
    check_config("r", &json!(-1), "has no whole number `r`");
    check_config("lora_alpha", &json!(0), "has a `lora_alpha` that is not a positive number");
}

/// Sets one key of the configuration.
fn set(key: &'static str, value: Value) -> impl Fn(&mut Files) {
    move |files: &mut Files| {
        let config = files.get_mut(CONFIG).unwrap();
        let mut json: Value = serde_json::from_slice(config).unwrap();
        json[key] = value.clone();
        *config = json.to_string().into_bytes();
    }
}

#[test]
fn files_and_tensors_are_checked() {
    check(|files| drop(files.remove(CONFIG)), "adapter_config.json is missing");
    let pickled = |files: &mut Files| {
        let weights = files.remove(WEIGHTS).unwrap();
        files.insert("adapter_model.bin".to_owned(), weights);
    };
    check(
        pickled,
        "adapter_model.safetensors is missing; adapter_model.bin is not read: save it as safetensors",
    );
    check(set("r", json!(0)), "rank 0 is not between 1 and 1024");
    check(
        set("r", json!(4)),
        "adapter_model.safetensors: tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` \
         has shape [3, 64], but [4, 64] is asked for",
    );
    let rename = |from: &'static [u8], to: &'static [u8]| {
        move |files: &mut Files| {
            let weights = files.get_mut(WEIGHTS).unwrap();
            let at = weights.windows(from.len()).position(|window| window == from).unwrap();
            weights[at..at + to.len()].copy_from_slice(to);
        }
    };
    check(
        rename(b"layers.1.mlp.up_proj.lora_B", b"layers.7.mlp.up_proj.lora_B"),
        "adapter_model.safetensors has tensor `base_model.model.model.layers.7.mlp.up_proj.lora_B.weight`, \
         which is no LoRA matrix of this base model",
    );
    check(
        rename(b"lm_head.lora_A", b"lm_head.lora_x"),
        "adapter_model.safetensors has tensor `base_model.model.lm_head.lora_x.weight`, which is no LoRA \
         matrix of this base model",
    );
    check(
        set("lora_alpha", json!(1e39)),
        "adapter_config.json has a `lora_alpha` that is not a positive number",
    );
    let too_large = |files: &mut Files| {
        set("lora_alpha", json!(3e38))(files);
        let weights = files.get_mut(WEIGHTS).unwrap();
        let end = weights.len();
        weights[end - 4..].copy_from_slice(&1e30f32.to_le_bytes());
    };
    check(too_large, "adapter_config.json: lora_alpha 3e38 is too large for f32");
    check(
        set("target_modules", json!({"q_proj": 1})),
        "adapter_config.json has a `target_modules` that is neither a text nor a list of names",
    );
    check(
        set("layers_to_transform", json!([0, -1])),
        "adapter_config.json has a `layers_to_transform` that is no list of layers' numbers",
    );
    check(
        set("exclude_modules", json!(["layers.1.mlp.up_proj"])),
        "adapter_model.safetensors has tensor `base_model.model.model.layers.1.mlp.up_proj.lora_A.weight`, \
         but adapter_config.json does not target that module",
    );
    let not_finite = |files: &mut Files| {
        let weights = files.get_mut(WEIGHTS).unwrap();
        let end = weights.len();
        weights[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    check(
        not_finite,
        "adapter_model.safetensors: tensor \
         `base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight` has NaN at element 95",
    );
}

/// Leaves only the tensors that `keep` names, and gives the configuration these targets.
fn part(files: &mut Files, targets: &[(&str, Value)], keep: impl Fn(&str) -> bool) {
    let tensors = tensors(&files[WEIGHTS]);
    let views = tensors.iter().filter(|(name, ..)| keep(name)).map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name, view.unwrap())
    });
    files.insert(WEIGHTS.to_owned(), safetensors::serialize(views, None).unwrap());
    let config = files.get_mut(CONFIG).unwrap();
    let mut json: Map<String, Value> = serde_json::from_slice(config).unwrap();
    json.extend(targets.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    *config = Value::from(json).to_string().into_bytes();
}

/// Targets, and the tensors that are theirs.
type Part<'a> = (&'a [(&'a str, Value)], &'a dyn Fn(&str) -> bool);

/// What an adapter leaves out computes nothing: it begins there as a new adapter does.
#[test]
fn adapters_of_some_modules_are_read() {
    let query_and_value = |name: &str| name.contains("q_proj") || name.contains("v_proj");
    let up = |name: &str| name.contains("layers.1.mlp.up_proj");
    let pattern = r"model\.layers\.(?!0)\d+\..*up_proj";
    let cases: [Part<'_>; 6] = [
        (&[("target_modules", json!(["q_proj", "v_proj"]))], &query_and_value),
        (&[("target_modules", json!(["up_proj"])), ("layers_to_transform", json!([1]))], &up),
        (&[("target_modules", json!(["up_proj"])), ("layers_to_transform", json!(1))], &up),
        (&[("target_modules", json!(["model.layers.1.mlp.up_proj", "c_attn"]))], &up),
        (&[("target_modules", json!(pattern))], &up),
        (&[("target_modules", json!("all-linear"))], &|name| name.contains("layers")),
    ];
    for (targets, keep) in cases {
        let (golden, mut b) = (Golden::open("qwen3/tied"), ReferenceBackend);
        let config = golden.dir.config();
        let mut files = golden.adapter_files();
        part(&mut files, targets, keep);
        let expected = tensors(&files[WEIGHTS]);
        let adapter = super::read_adapter(&mut b, config, &files).unwrap();
        let mut written = Files::new();
        super::write_adapter(&mut b, config, &adapter, "golden", &mut written);
        let (mut there, mut absent) = (Vec::new(), 0);
        for (name, shape, bytes) in tensors(&written[WEIGHTS]) {
            if keep(&name) {
                there.push((name, shape, bytes));
            } else if name.contains("lora_B") {
                absent += 1;
                assert!(bytes.iter().all(|byte| *byte == 0), "{name}");
            }
        }
        let sites = Site::all(config).filter(|site| adapter.spec().trains(*site)).count();
        assert_eq!(absent, sites - expected.len() / 2, "{targets:?}");
        assert_eq!(there.len(), expected.len(), "{targets:?}");
        let names = |tensors: &[(String, Vec<usize>, Vec<u8>)]| -> Vec<String> {
            tensors.iter().map(|(name, ..)| name.clone()).collect()
        };
        assert_eq!(names(&there), names(&expected), "{targets:?}");
        let again = super::read_adapter(&mut b, config, &written).unwrap();
        let mut rewritten = Files::new();
        super::write_adapter(&mut b, config, &again, "golden", &mut rewritten);
        assert_eq!(rewritten, written, "{targets:?}");
    }
}

#[test]
fn targets_and_tensors_agree() {
    let query = |name: &str| name.contains("q_proj");
    check(
        |files| part(files, &[("target_modules", json!(["q_proj", "v_proj"]))], query),
        "adapter_model.safetensors: tensor \
         `base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight` is missing, but \
         adapter_config.json targets its module: the file is incomplete, or made for another base model",
    );
    check(
        |files| part(files, &[("target_modules", json!(["v_proj"]))], query),
        "adapter_model.safetensors has tensor \
         `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`, but adapter_config.json does not \
         target that module",
    );
    check(
        |files| part(files, &[("target_modules", json!("x")), ("r", json!(3))], |_| false),
        "at least one of train_attn, train_mlp and train_unembed must be true",
    );
}

/// A dtype with the ways to it and back.
type Half = (safetensors::Dtype, fn(f32) -> u16, fn(u16) -> f32);

/// Numbers of half the width are widened, which is exact.
#[test]
fn adapters_in_half_precision_are_read() {
    let (golden, mut b) = (Golden::open("qwen3/tied"), ReferenceBackend);
    let config = golden.dir.config();
    let tensors = tensors(&golden.adapter_files()[WEIGHTS]);
    let shorten = |bytes: &[u8], narrow: fn(f32) -> u16| -> Vec<u8> {
        let (numbers, _) = bytes.as_chunks::<4>();
        numbers
            .iter()
            .flat_map(|number| narrow(f32::from_le_bytes(*number)).to_le_bytes())
            .collect()
    };
    let kinds: [Half; 2] = [
        (
            safetensors::Dtype::F16,
            |value| half::f16::from_f32(value).to_bits(),
            |bits| half::f16::from_bits(bits).to_f32(),
        ),
        (
            safetensors::Dtype::BF16,
            |value| half::bf16::from_f32(value).to_bits(),
            |bits| half::bf16::from_bits(bits).to_f32(),
        ),
    ];
    for (dtype, narrow, widen) in kinds {
        let mut files = golden.adapter_files();
        let short: Vec<_> = tensors
            .iter()
            .map(|(name, shape, bytes)| (name, shape.clone(), shorten(bytes, narrow)))
            .collect();
        let views = short.iter().map(|(name, shape, bytes)| {
            (*name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        files.insert(WEIGHTS.to_owned(), safetensors::serialize(views, None).unwrap());
        let adapter = super::read_adapter(&mut b, config, &files).unwrap();
        let mut written = Files::new();
        super::write_adapter(&mut b, config, &adapter, "golden", &mut written);
        let name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight";
        let found = super::tests::tensors(&written[WEIGHTS]);
        let (.., found) = found.iter().find(|(found, ..)| found == name).unwrap();
        let (.., expected) = short.iter().find(|(found, ..)| *found == name).unwrap();
        let (bits, _) = expected.as_chunks::<2>();
        let expected: Vec<u8> =
            bits.iter().flat_map(|bits| widen(u16::from_le_bytes(*bits)).to_le_bytes()).collect();
        assert_eq!(*found, expected, "{dtype:?}");
    }
}

/// The files of an adapter that PEFT wrote, read and written again, hold the same tensors.
#[test]
fn adapters_of_peft_survive() {
    for case in CASES {
        let (golden, mut b) = (Golden::open(case), ReferenceBackend);
        let (decoder, adapter) = golden.load(&mut b);
        let mut files = Files::new();
        super::write_adapter(&mut b, decoder.config(), &adapter, "golden", &mut files);
        let mut expected = tensors(&golden.adapter_files()[WEIGHTS]);
        expected.retain(|(name, ..)| name.contains(".lora_"));
        if golden.alpha_ratio() == 1.0 {
            assert_eq!(tensors(&files[WEIGHTS]), expected, "{case}");
        } else {
            let names = |tensors: Vec<(String, Vec<usize>, Vec<u8>)>| -> Vec<_> {
                tensors.into_iter().map(|(name, shape, _)| (name, shape)).collect()
            };
            assert_eq!(names(tensors(&files[WEIGHTS])), names(expected), "{case}");
        }
        let again = super::read_adapter(&mut b, decoder.config(), &files).unwrap();
        assert_eq!(values(&mut b, &golden, &again), values(&mut b, &golden, &adapter), "{case}");
    }
}

#[test]
fn the_config_is_that_of_peft() {
    let (golden, mut b) = (Golden::open("qwen3/odd"), ReferenceBackend);
    let adapter = Adapter::new(&mut b, golden.dir.config(), SPEC).unwrap();
    let mut files = Files::new();
    super::write_adapter(&mut b, golden.dir.config(), &adapter, "Qwen/Qwen3-8B", &mut files);
    let ours: Map<String, Value> = serde_json::from_slice(&files[CONFIG]).unwrap();
    let theirs = golden.adapter_files();
    let theirs: Map<String, Value> = serde_json::from_slice(&theirs[CONFIG]).unwrap();
    for (key, value) in &ours {
        match key.as_str() {
            "base_model_name_or_path" => assert_eq!(value, "Qwen/Qwen3-8B"),
            "lora_alpha" => assert_eq!(value, 32),
            "target_modules" => {
                assert_eq!(*value, json!(["k_proj", "lm_head", "o_proj", "q_proj", "v_proj"]));
            }
            key => assert_eq!(Some(value), theirs.get(key), "{key}"),
        }
    }
    let read = super::read_adapter(&mut b, golden.dir.config(), &files).unwrap();
    assert_eq!(*read.spec(), LoraSpec { seed: 0, ..SPEC });
}

#[test]
fn training_state_survives() {
    let (golden, mut b) = (Golden::open("qwen3/odd"), ReferenceBackend);
    let decoder = Decoder::load(&mut b, &golden.dir).unwrap();
    let config = decoder.config();
    let adapter = Adapter::new(&mut b, config, SPEC).unwrap();
    let (ragged, weights) = golden.training();
    let gradient = ragged.backward(&mut b, &decoder, &adapter, &weights);
    let mut moments = Moments::zeros(&mut b, &adapter).unwrap();
    moments.first.copy_from(&mut b, &gradient);
    moments.step = 41;

    let bytes = super::write_gradient(&mut b, config, &adapter, &gradient);
    let read = super::read_gradient(&mut b, config, &adapter, &bytes).unwrap();
    assert_eq!(pair_values(&mut b, &golden, &read), pair_values(&mut b, &golden, &gradient));
    let bytes = super::write_optimizer(&mut b, config, &adapter, &moments);
    let read = super::read_optimizer(&mut b, config, &adapter, &bytes).unwrap();
    assert_eq!(read.step, 41);
    assert_eq!(pair_values(&mut b, &golden, &read.first), pair_values(&mut b, &golden, &gradient));
    assert_eq!(read.second.sum_squares(&mut b), 0.0);
    assert_eq!(super::write_optimizer(&mut b, config, &adapter, &read), bytes);

    let other = LoraSpec { rank: 3, ..SPEC };
    let other = Adapter::new(&mut b, config, other).unwrap();
    let error = super::read_optimizer(&mut b, config, &other, &bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "use the adapter: optimizer.safetensors: tensor \
         `first.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` has shape [2, 40], but \
         [3, 40] is asked for"
    );
}

/// Files come from strangers: whatever stands in them, reading ends in an adapter or an error.
#[test]
fn damaged_files_never_panic() {
    let (golden, mut b) = (Golden::open("qwen3/tied"), ReferenceBackend);
    let files = golden.adapter_files();
    let mut refused = 0;
    for round in 0..2000 {
        let [at, value, cut, which] = philox4x32_10([round, 0, 0, 0], [4, 2]);
        let mut damaged = files.clone();
        let bytes =
            damaged.get_mut(if which.is_multiple_of(4) { CONFIG } else { WEIGHTS }).unwrap();
        // Mostly the header, now and then anywhere.
        let end = if which.is_multiple_of(7) { bytes.len() } else { bytes.len().min(4096) };
        bytes[at as usize % end] = value.to_le_bytes()[0];
        if cut.is_multiple_of(10) {
            bytes.truncate(cut as usize % bytes.len());
        }
        let read = super::read_adapter(&mut b, golden.dir.config(), &damaged);
        refused += usize::from(read.is_err());
    }
    assert!(refused > 1000, "only {refused} were refused");
}

fn tensors(bytes: &[u8]) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

fn values(
    b: &mut ReferenceBackend,
    golden: &Golden,
    adapter: &Adapter<ReferenceBackend>,
) -> Vec<(Vec<f32>, Vec<f32>)> {
    let sites = Site::all(golden.dir.config()).filter_map(|site| adapter.site(site));
    sites.map(|lora| b.read_lora(lora)).collect()
}

fn pair_values(
    b: &mut ReferenceBackend,
    golden: &Golden,
    pairs: &PairSet<ReferenceBackend>,
) -> Vec<(Vec<f32>, Vec<f32>)> {
    let sites = Site::all(golden.dir.config()).filter_map(|site| pairs.site(site));
    sites.map(|pair| b.read_pair(pair)).collect()
}
