//! Everything beside the products of a step of the *small* model of `tinsmith bench`: one layer's ops on a
//! micro-batch of training, and on the newest token of 32 sequences.

use divan::Bencher;
use tinsmith_backend::{
    ATTENTION_TILE, Activation, AttentionForward, AttentionShape, Backend, Dtype, PagedSequence,
    Qkv, QkvGradients, RawMatrix, Rope, RopeTable,
};
use tinsmith_backend_cpu::{Config, CpuBackend, Kernels, Rows, Vector, physical_cores};

const HIDDEN: usize = 512;
const FFN: usize = 1536;
const SHAPE: AttentionShape = AttentionShape {
    heads: 8,
    kv_heads: 4,
    head_dim: 64,
    scale: 0.125,
    window: None,
    softcap: None,
};
const WIDE: usize = SHAPE.heads * SHAPE.head_dim;
const NARROW: usize = SHAPE.kv_heads * SHAPE.head_dim;

fn main() {
    divan::main();
}

/// Sets whose attention differs, by name, with one thread and with all.
fn settings() -> Vec<String> {
    let mut names = Vec::new();
    let available = Kernels::available();
    for name in ["f32:avx2", "f32:avx512", "bf16-amx"] {
        if available.iter().any(|kernels| kernels.to_string() == name) {
            names.extend([format!("{name} 1"), format!("{name} {}", physical_cores().max(2))]);
        }
    }
    names
}

fn backend(setting: &str) -> CpuBackend {
    let (name, threads) = setting.split_once(' ').expect("written above");
    let is_it = |kernels: &Kernels| kernels.to_string() == name;
    let kernels = Kernels::available().into_iter().find(is_it).expect("listed above");
    let threads = threads.parse().expect("written above");
    CpuBackend::new(Config { threads, kernels }).expect("the CPU has it")
}

fn rows(b: &mut CpuBackend, count: usize, features: usize) -> Rows {
    let mut rows = b.rows(count, features).expect("memory is enough");
    let mut state = 1_u32;
    let number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from_bits(0x3f80_0000 | state >> 9) * 2.0 - 3.0
    };
    let values: Vec<f32> = std::iter::repeat_with(number).take(count * features).collect();
    b.write_rows(&mut rows, &values);
    rows
}

fn vector(b: &mut CpuBackend, features: usize) -> Vector {
    let bytes: Vec<u8> = (0..features).flat_map(|_| 1.0_f32.to_le_bytes()).collect();
    let raw = RawMatrix { bytes: &bytes, dtype: Dtype::F32, rows: 1, cols: features };
    b.vector(&raw, 0.0).expect("memory is enough")
}

/// Two datums of 256 tokens, and one of 4,096.
const LENGTHS: [(&str, &[usize]); 2] = [("2 x 256", &[256, 256]), ("4096", &[4096])];

fn sequences(lengths: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut end = 0;
    lengths.iter().map(|length| (end..end + length, end += length).0).collect()
}

fn cases() -> Vec<String> {
    let lengths = |setting: String| LENGTHS.map(|(name, _)| format!("{setting}, {name}"));
    settings().into_iter().flat_map(lengths).collect()
}

#[divan::bench(args = cases())]
fn attention(bencher: Bencher<'_, '_>, case: &str) {
    let (setting, lengths) = case.split_once(", ").expect("written above");
    let lengths = LENGTHS.iter().find(|(name, _)| *name == lengths).expect("listed above").1;
    let (mut b, sequences, count) = (backend(setting), sequences(lengths), lengths.iter().sum());
    let (q, k, v) =
        (rows(&mut b, count, WIDE), rows(&mut b, count, NARROW), rows(&mut b, count, NARROW));
    let (mut out, mut lse) = (rows(&mut b, count, WIDE), rows(&mut b, 0, 1));
    bencher.bench_local(|| {
        let qkv = Qkv { q: &q, k: &k, v: &v };
        b.attention(&mut out, &mut lse, qkv, &sequences, &SHAPE);
    });
}

#[divan::bench(args = cases())]
fn attention_backward(bencher: Bencher<'_, '_>, case: &str) {
    let (setting, lengths) = case.split_once(", ").expect("written above");
    let lengths = LENGTHS.iter().find(|(name, _)| *name == lengths).expect("listed above").1;
    let (mut b, sequences, count) = (backend(setting), sequences(lengths), lengths.iter().sum());
    let (q, k, v) =
        (rows(&mut b, count, WIDE), rows(&mut b, count, NARROW), rows(&mut b, count, NARROW));
    let (mut out, mut lse) = (rows(&mut b, count, WIDE), rows(&mut b, 0, 1));
    b.attention(&mut out, &mut lse, Qkv { q: &q, k: &k, v: &v }, &sequences, &SHAPE);
    let dout = rows(&mut b, count, WIDE);
    let (mut dq, mut dk, mut dv) =
        (rows(&mut b, count, WIDE), rows(&mut b, count, NARROW), rows(&mut b, count, NARROW));
    bencher.bench_local(|| {
        let gradients = QkvGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let qkv = Qkv { q: &q, k: &k, v: &v };
        let forward = AttentionForward { qkv, out: &out, lse: &lse, dout: &dout };
        b.attention_backward(gradients, forward, &sequences, &SHAPE);
    });
}

/// The newest token of 32 sequences of 128 tokens, in eight layers: written, then attended from.
#[divan::bench(args = settings())]
fn decode(bencher: Bencher<'_, '_>, setting: &str) {
    const LAYERS: usize = 8;
    const TOKENS: usize = 128;
    let mut b = backend(setting);
    let per_sequence = TOKENS / ATTENTION_TILE;
    let mut cache = b.cache(32 * per_sequence, LAYERS, &SHAPE).expect("memory is enough");
    let blocks: Vec<u32> = (0..).take(32 * per_sequence).collect();
    let sequences: Vec<_> = (0..32)
        .map(|i| PagedSequence {
            rows: i..i + 1,
            position: TOKENS - 1,
            blocks: &blocks[i * per_sequence..][..per_sequence],
        })
        .collect();
    let (q, k, v) = (rows(&mut b, 32, WIDE), rows(&mut b, 32, NARROW), rows(&mut b, 32, NARROW));
    let mut out = rows(&mut b, 32, WIDE);
    bencher.bench_local(|| {
        for layer in 0..LAYERS {
            b.cache_write(&mut cache, layer, &k, &v, &sequences);
            b.attention_paged(&mut out, &q, &cache, layer, &sequences, &SHAPE);
        }
    });
}

const COUNTS: [usize; 2] = [32, 512];

fn counts() -> Vec<String> {
    let setting = |setting: &String| !setting.starts_with("bf16");
    let with_rows = |setting: String| COUNTS.map(|count| format!("{setting}, {count}"));
    settings().into_iter().filter(setting).flat_map(with_rows).collect()
}

fn counted(case: &str) -> (CpuBackend, usize) {
    let (setting, count) = case.split_once(", ").expect("written above");
    (backend(setting), count.parse().expect("written above"))
}

#[divan::bench(args = counts())]
fn rms_norm(bencher: Bencher<'_, '_>, case: &str) {
    let (mut b, count) = counted(case);
    let (x, mut out) = (rows(&mut b, count, HIDDEN), rows(&mut b, count, HIDDEN));
    let weight = vector(&mut b, HIDDEN);
    bencher.bench_local(|| b.rms_norm(&mut out, &x, &weight, 1e-6));
}

#[divan::bench(args = counts())]
fn rope(bencher: Bencher<'_, '_>, case: &str) {
    let (mut b, count) = counted(case);
    let (x, mut out) = (rows(&mut b, count, WIDE), rows(&mut b, count, WIDE));
    let weight = vector(&mut b, SHAPE.head_dim);
    let positions: Vec<u32> = (0..).take(count).collect();
    let inverse_frequencies = (0..32_u16).map(|i| 1.0 / f32::from(i + 1)).collect();
    let table = RopeTable { inverse_frequencies, amplitude: 1.0 };
    bencher.bench_local(|| {
        let norm = Some((&weight, 1e-6));
        let rope = Rope { norm, table: &table, positions: &positions, head_dim: SHAPE.head_dim };
        b.rope(&mut out, &x, rope);
    });
}

#[divan::bench(args = counts())]
fn gated(bencher: Bencher<'_, '_>, case: &str) {
    let (mut b, count) = counted(case);
    let (gate, up) = (rows(&mut b, count, FFN), rows(&mut b, count, FFN));
    let mut out = rows(&mut b, count, FFN);
    bencher.bench_local(|| b.gated(&mut out, &gate, &up, Activation::Silu));
}

#[divan::bench(args = counts())]
fn gated_backward(bencher: Bencher<'_, '_>, case: &str) {
    let (mut b, count) = counted(case);
    let (gate, up, dout) =
        (rows(&mut b, count, FFN), rows(&mut b, count, FFN), rows(&mut b, count, FFN));
    let (mut dgate, mut dup) = (rows(&mut b, count, FFN), rows(&mut b, count, FFN));
    bencher.bench_local(|| {
        b.gated_backward(&mut dgate, &mut dup, &dout, &gate, &up, Activation::Silu);
    });
}

#[divan::bench(args = counts())]
fn zero(bencher: Bencher<'_, '_>, case: &str) {
    let (mut b, count) = counted(case);
    let mut x = rows(&mut b, count, FFN);
    bencher.bench_local(|| b.zero(&mut x));
}
