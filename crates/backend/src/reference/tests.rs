//! Hand-computed values.

use super::*;
use crate::RopeTable;

fn rows_of(features: usize, values: &[f64]) -> Rows {
    let mut rows = Rows::unwritten(values.len() / features, features);
    rows.values_mut().copy_from_slice(values);
    rows
}

fn weight_of(inputs: usize, values: &[f64]) -> Weight {
    Weight { outputs: values.len() / inputs, inputs, values: values.to_vec() }
}

fn assert_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert!(
            (actual - expected).abs() <= 1e-12 * expected.abs().max(1.0),
            "{actual} {expected}"
        );
    }
}

#[test]
fn every_dtype_is_read() {
    use crate::Dtype;
    for (dtype, bytes) in [
        (Dtype::F32, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0][..]),
        (Dtype::F16, &[0, 0x3e, 0, 0xc0]),
        (Dtype::Bf16, &[0xc0, 0x3f, 0, 0xc0]),
    ] {
        let raw = RawMatrix { bytes, dtype, rows: 1, cols: 2 };
        assert_eq!(ReferenceBackend.vector(&raw).unwrap().values, [1.5, -2.0]);
    }
}

#[test]
fn rms_norm_by_hand() {
    let mut out = Rows::unwritten(1, 2);
    let weight = Vector { values: vec![2.0, 1.0] };
    rms_norm::forward(&mut out, &rows_of(2, &[3.0, 4.0]), &weight, 0.0);
    let root = 12.5_f64.sqrt();
    assert_close(out.values(), &[6.0 / root, 4.0 / root]);
}

#[test]
fn linear_by_hand() {
    let lora = Lora { rank: 1, a: vec![1.0, -1.0], b: vec![2.0, 0.0] };
    let uses = [crate::LoraUse { rows: 1..2, lora: &lora, scale: 0.5 }];
    let weight = weight_of(2, &[1.0, 2.0, 3.0, 4.0]);
    let bias = Vector { values: vec![10.0, 20.0] };
    let linear = Linear { weight: &weight, bias: Some(&bias), uses: &uses, add: true };
    let mut out = rows_of(2, &[100.0; 4]);
    let mut hidden = Rows::unwritten(0, 0);
    linear::forward(&mut out, &rows_of(2, &[1.0, 1.0, 5.0, 2.0]), &linear, Some(&mut hidden));
    assert_eq!(out.values(), [113.0, 127.0, 119.0 + 3.0, 143.0]);
    assert_eq!((hidden.len(), hidden.features(), hidden.row(1)), (2, 1, &[3.0][..]));
}

#[test]
fn rope_turns_pairs_half_a_head_apart() {
    let table = RopeTable { inverse_frequencies: vec![1.0, 0.1], amplitude: 2.0 };
    let rope = Rope { norm: None, table: &table, positions: &[3], head_dim: 4 };
    let mut out = Rows::unwritten(1, 4);
    rope::forward(&mut out, &rows_of(4, &[1.0, 0.0, 0.0, 1.0]), &rope);
    // transformers multiplies in f32, and 3 * 0.1f32 is not 0.3f32.
    let angle = f64::from(3.0 * 0.1_f32);
    let expected =
        [2.0 * 3.0_f64.cos(), -2.0 * angle.sin(), 2.0 * 3.0_f64.sin(), 2.0 * angle.cos()];
    assert_close(out.values(), &expected);
}

#[test]
fn attention_sees_its_own_past_alone() {
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 1, scale: 1.0 };
    let q = rows_of(2, &[9.0, 9.0, 0.0, 1.0, 7.0, 7.0]);
    let k = rows_of(1, &[0.0, 1.0, 5.0]);
    let v = rows_of(1, &[1.0, 3.0, 5.0]);
    let (mut out, mut lse) = (Rows::unwritten(3, 2), Rows::unwritten(0, 2));
    let qkv = Qkv { q: &q, k: &k, v: &v };
    attention::forward(&mut out, &mut lse, &qkv, &[0..2, 2..2, 2..3], &shape);
    let e = 1.0_f64.exp();
    assert_close(out.values(), &[1.0, 1.0, 2.0, 3.0f64.mul_add(e, 1.0) / (1.0 + e), 5.0, 5.0]);
    assert_close(lse.values(), &[0.0, 0.0, 2.0_f64.ln(), (1.0 + e).ln(), 35.0, 35.0]);
}

#[test]
fn draws_follow_top_k_and_top_p() {
    // Probabilities 0.1, 0.4, 0.1, 0.4, exactly representable as logarithms of integers.
    let weight = weight_of(1, &[0.0, 4.0_f64.ln(), 0.0, 4.0_f64.ln()]);
    let drawn = |temperature, top_k, top_p, uniform| {
        let linear = Linear { weight: &weight, bias: None, uses: &[], add: false };
        let mut drawn = Vec::new();
        let draw = Draw { temperature, top_k, top_p, uniform };
        sample::sample(&mut drawn, &rows_of(1, &[1.0]), &linear, &[draw]);
        (drawn[0].token, f64::from(drawn[0].logprob.exp()))
    };
    let tokens = |uniforms: &[f64], top_k, top_p| -> Vec<u32> {
        uniforms.iter().map(|&uniform| drawn(1.0, top_k, top_p, uniform).0).collect()
    };
    assert_eq!(drawn(0.0, None, 1.0, 0.9).0, 1);
    assert_eq!(
        tokens(&[0.0, 0.09, 0.11, 0.49, 0.51, 0.59, 0.61, 0.99], None, 1.0),
        [0, 0, 1, 1, 2, 2, 3, 3]
    );
    assert_eq!(tokens(&[0.0, 0.49, 0.51, 0.99], Some(2), 1.0), [1, 1, 3, 3]);
    // Of the two last, the lower id stays: 1/9, 4/9, 4/9.
    assert_eq!(tokens(&[0.1, 0.12, 0.54, 0.56, 0.99], Some(3), 1.0), [0, 1, 1, 3, 3]);
    assert_eq!(tokens(&[0.0, 0.99], None, 0.35), [1, 1]);
    assert_eq!(tokens(&[0.0, 0.49, 0.51, 0.99], None, 0.75), [1, 1, 3, 3]);
    assert!((drawn(1.0, Some(1), 1.0, 0.5).1 - 0.4).abs() < 1e-6);
    assert!((drawn(0.5, None, 1.0, 0.4).1 - 16.0 / 34.0).abs() < 1e-6);
}

#[test]
fn adamw_by_hand() {
    let mut lora = Lora { rank: 1, a: vec![1.0], b: vec![-2.0] };
    let gradient = Pair { a: vec![5.0], b: vec![0.0] };
    let zeros = Pair { a: vec![0.0], b: vec![0.0] };
    let (mut first, mut second) = (zeros.clone(), zeros);
    let mut step = AdamW {
        learning_rate: 0.1,
        beta1: 0.5,
        beta2: 0.75,
        eps: 0.5,
        weight_decay: 1.0,
        step: 1,
        gradient_scale: 0.1,
    };
    adamw::adamw(&mut lora, &gradient, &mut first, &mut second, &step);
    // The bias corrections undo the decay on the first step: 0.5 / (0.5 + eps).
    let g = 5.0 * f64::from(0.1_f32);
    let once = 0.9 - 0.1 * g / (g + 0.5);
    assert_close(&lora.a, &[once]);
    assert_close(&lora.b, &[-1.8]);
    step.step = 2;
    adamw::adamw(&mut lora, &gradient, &mut first, &mut second, &step);
    assert_close(&first.a, &[0.75 * g]);
    assert_close(&second.a, &[0.4375 * g * g]);
    assert_close(&lora.a, &[0.9 * once - 0.1 * g / (g + 0.5)]);
}
