//! What the sets that keep weights in bf16 compute, to the accuracy of f32 sums: exactly the products of
//! rounded factors.

use half::bf16;
use tinsmith_backend::{Backend, Dtype, Linear, RawMatrix, ReferenceBackend};
use tinsmith_backend_cpu::{KernelSet, Kernels};

use crate::{Output, backend, compare, program, same_bits, sets};

/// Rows, inputs and outputs: around tiles of 16 and 32, blocks of 256 and 512, and beyond.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 33, 17),
    (3, 64, 16),
    (7, 257, 40),
    (16, 31, 80),
    (17, 512, 130),
    (33, 545, 64),
    (100, 1100, 50),
    (300, 300, 300),
];

/// Numbers in -1..1, and one in eight of them a thousand times smaller.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut number = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
        if state >> 37 & 7 == 0 { 1e-3 * value } else { value }
    };
    (0..count).map(|_| number()).collect()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect()
}

fn weight<B: Backend>(b: &mut B, values: &[f32], rows: usize) -> B::Weight {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let cols = values.len() / rows;
    b.weight(&RawMatrix { bytes: &bytes, dtype: Dtype::F32, rows, cols }).unwrap()
}

fn rows<B: Backend>(b: &mut B, values: &[f32], count: usize) -> B::Rows {
    let mut rows = b.rows(count, values.len() / count).unwrap();
    b.write_rows(&mut rows, values);
    rows
}

/// `x W` and `dy Wᵀ`, and rows of W.
fn products<B: Backend>(
    b: &mut B,
    (x, dy, w): (&[f32], &[f32], &[f32]),
    (count, inputs, outputs): (usize, usize, usize),
) -> Vec<Output> {
    let weight = weight(b, w, outputs);
    let (x, dy) = (rows(b, x, count), rows(b, dy, count));
    let mut out = b.rows(count, outputs).unwrap();
    let mut hidden = b.rows(0, 1).unwrap();
    let linear = Linear { weight: &weight, bias: None, uses: &[], add: false };
    b.linear(&mut out, &x, linear, Some(&mut hidden));
    let mut dx = b.rows(count, inputs).unwrap();
    let tokens = (0..outputs as u32).rev().collect::<Vec<_>>();
    let mut table = b.rows(outputs, inputs).unwrap();
    b.embed(&mut table, &weight, &tokens, 1.0);
    let before = b.read_rows(&table);
    b.zero(&mut dx);
    b.linear_backward(Some(&mut dx), &dy, &x, &weight, &hidden, &mut []);
    b.embed(&mut table, &weight, &tokens, 1.0);
    vec![
        Output { name: "linear", values: b.read_rows(&out) },
        Output { name: "dx", values: b.read_rows(&dx) },
        Output { name: "embed before training", values: before },
        Output { name: "embed", values: b.read_rows(&table) },
    ]
}

#[test]
fn sums_are_those_of_rounded_factors() {
    for (set, paths) in sets() {
        if set == KernelSet::F32 {
            continue;
        }
        let rounds_rows = set != KernelSet::W16Avx2;
        for shape in SHAPES {
            let (count, inputs, outputs) = shape;
            let x = numbers(1, count * inputs);
            let dy = numbers(2, count * outputs);
            let w = numbers(3, inputs * outputs);
            let got = products(&mut backend(paths[0], 1), (&x, &dy, &w), shape);
            let near = |values: &[f32]| {
                if rounds_rows { rounded(values) } else { values.to_vec() }
            };
            let (x, dy, w) = (near(&x), near(&dy), rounded(&w));
            let want = products(&mut ReferenceBackend, (&x, &dy, &w), shape);
            for (got, want) in got.iter().zip(&want) {
                compare(got, want, &format!("{set} {shape:?}"));
            }
        }
    }
}

/// On a model stored in bf16, widened weights are `f32`'s.
#[test]
fn widened_weights_give_the_bits_of_f32() {
    for kernels in Kernels::available() {
        if kernels.set() != KernelSet::W16Avx2 {
            continue;
        }
        for shape in &crate::SHAPES {
            let got = program(&mut backend(kernels, 2), shape, Dtype::Bf16);
            let want = program(&mut backend(Kernels::f32(), 2), shape, Dtype::Bf16);
            for (got, want) in got.iter().zip(&want) {
                assert!(same_bits(got, want), "{} {kernels} {shape:?}", got.name);
            }
        }
    }
}
