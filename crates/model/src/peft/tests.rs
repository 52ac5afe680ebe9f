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

#[test]
fn what_peft_does_and_we_do_not_is_refused_by_name() {
    check_config("use_dora", &json!(true), "sets `use_dora` to true, which is not supported");
    check_config("use_rslora", &json!(true), "sets `use_rslora` to true, which is not supported");
    check_config("bias", &json!("all"), "sets `bias` to \"all\", which is not supported");
    check_config("lora_bias", &json!(true), "sets `lora_bias` to true, which is not supported");
    check_config(
        "modules_to_save",
        &json!(["embed_tokens"]),
        "sets `modules_to_save` to [\"embed_tokens\"], which is not supported",
    );
    check_config(
        "rank_pattern",
        &json!({"q_proj": 4}),
        "sets `rank_pattern` to {\"q_proj\":4}, which is not supported",
    );
    check_config(
        "init_lora_weights",
        &json!("pissa"),
        "sets `init_lora_weights` to \"pissa\", which is not supported",
    );
    check_config("new_trick", &json!(7), "sets `new_trick` to 7, which is not supported");
    check_config("peft_type", &json!("IA3"), "has peft_type \"IA3\"; only \"LORA\" is supported");
    check_config("r", &json!(-1), "has no whole number `r`");
    check_config("lora_alpha", &json!(0), "has a `lora_alpha` that is not a positive number");
}

#[test]
fn files_and_tensors_are_checked() {
    let set = |key: &'static str, value: Value| {
        move |files: &mut Files| {
            let config = files.get_mut(CONFIG).unwrap();
            let mut json: Value = serde_json::from_slice(config).unwrap();
            json[key] = value.clone();
            *config = json.to_string().into_bytes();
        }
    };
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
