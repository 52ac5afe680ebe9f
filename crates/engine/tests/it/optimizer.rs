//! Twenty `AdamW` steps on given gradients, against PyTorch (`tests/golden/adamw/make.py`).

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tinsmith_engine::{AdamParams, Files, LoraSpec, Parts, RunKey};

use crate::tiny::{config, engine, optim_step, run_one};

const STEPS: usize = 20;
/// Largest difference, as a share of the largest element.
const TOLERANCE: f64 = 1e-5;
const A: &str = "base_model.model.lm_head.lora_A.weight";
const B: &str = "base_model.model.lm_head.lora_B.weight";

fn check(case: &str, params: AdamParams) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adamw/adamw.safetensors");
    let bytes = fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let pair = |prefix: &str| {
        [A, B].map(|name| (name, golden.tensor(&format!("{prefix}.{name}")).unwrap()))
    };
    let mut engine = engine(1, config());
    let spec =
        LoraSpec { rank: 2, seed: 0, train_attn: false, train_mlp: false, train_unembed: true };
    engine.create_run(RunKey(0), spec).unwrap();
    let all = Parts { optimizer: true, gradient: true };
    let mut files = engine.export_run(RunKey(0), all, "tiny").unwrap();
    put(&mut files, "adapter_model.safetensors", pair("initial"));
    for step in 0..STEPS {
        put(&mut files, "gradient.safetensors", pair(&format!("gradient.{step}")));
        engine.drop_run(RunKey(0));
        engine.restore_run(RunKey(0), &files, all).unwrap();
        run_one(&mut engine, optim_step(RunKey(0), params)).unwrap();
        files = engine.export_run(RunKey(0), all, "tiny").unwrap();
        let actual = SafeTensors::deserialize(&files["adapter_model.safetensors"]).unwrap();
        for (name, expected) in pair(&format!("{case}.{step}")) {
            let error = difference(actual.tensor(name).unwrap().data(), expected.data());
            assert!(error < TOLERANCE, "{case}, step {step}, {name}: {error}");
        }
    }
}

fn put(files: &mut Files, file: &str, tensors: [(&str, TensorView<'_>); 2]) {
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let bytes = safetensors::serialize(BTreeMap::from(tensors), Some(metadata)).unwrap();
    files.insert(file.to_owned(), bytes);
}

fn difference(actual: &[u8], expected: &[u8]) -> f64 {
    let numbers = |bytes: &[u8]| -> Vec<f64> {
        let (words, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty() && words.len() * Dtype::F32.bitsize() / 8 == bytes.len());
        words.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect()
    };
    let (actual, expected) = (numbers(actual), numbers(expected));
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0.0, |most: f64, each| most.max(each.abs()));
    let pairs = actual.iter().zip(&expected);
    pairs.fold(0.0, |most: f64, (one, two)| most.max((one - two).abs())) / largest
}

const PLAIN: AdamParams = AdamParams {
    learning_rate: 0.01,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-12,
    weight_decay: 0.0,
    grad_clip_norm: 0.0,
};

#[test]
fn plain_steps() {
    check("plain", PLAIN);
}

#[test]
fn weight_decay_is_decoupled() {
    check("decay", AdamParams { weight_decay: 0.3, eps: 1e-3, ..PLAIN });
}

#[test]
fn gradients_are_clipped_by_their_norm_over_the_adapter() {
    check("clip", AdamParams { grad_clip_norm: 0.5, eps: 1e-3, beta2: 0.999, ..PLAIN });
}
