//! Draws from one row of a large vocabulary, with hardly any matrix product before them.
//!
//! `steep` logits are as far apart as a trained model's, `flat` ones as an untrained model's.

use divan::Bencher;
use tinsmith_backend::{Ask, Backend, Draw, Dtype, Query, RawMatrix, Unembedding, philox};
use tinsmith_backend_cpu::{Config, CpuBackend, Kernels};

const VOCABULARY: usize = 151_936;

const GREEDY: Draw = Draw { temperature: 0.0, top_k: None, top_p: 1.0, uniform: 0.0 };
const WARM: Draw = Draw { temperature: 0.8, ..GREEDY };

const DRAWS: [(&str, Draw); 6] = [
    ("greedy", GREEDY),
    ("temperature", WARM),
    ("top-k 50", Draw { top_k: Some(50), ..WARM }),
    ("top-k 1000", Draw { top_k: Some(1000), ..WARM }),
    ("top-p 0.95", Draw { top_p: 0.95, ..WARM }),
    ("top-k 50 top-p 0.95", Draw { top_k: Some(50), top_p: 0.95, ..WARM }),
];

fn main() {
    divan::main();
}

#[divan::bench(args = DRAWS.map(|(name, _)| name))]
fn steep(bencher: Bencher<'_, '_>, name: &str) {
    draw(bencher, 3.0, name);
}

#[divan::bench(args = DRAWS.map(|(name, _)| name))]
fn flat(bencher: Bencher<'_, '_>, name: &str) {
    draw(bencher, 0.3, name);
}

fn draw(bencher: Bencher<'_, '_>, deviation: f64, name: &str) {
    let config = Config { threads: 1, kernels: Kernels::f32() };
    let mut backend = CpuBackend::new(config).expect("the CPU has a path");
    let bytes: Vec<u8> = (0..).take(VOCABULARY).flat_map(|id| normal(id, deviation)).collect();
    let raw = RawMatrix { bytes: &bytes, dtype: Dtype::F32, rows: VOCABULARY, cols: 1 };
    let weight = backend.weight(&raw).expect("memory is enough");
    let mut x = backend.rows(1, 1).expect("memory is enough");
    backend.write_rows(&mut x, &[1.0]);
    let (_, draw) = DRAWS.into_iter().find(|(each, _)| *each == name).expect("it is listed");
    let (mut drawn, mut count) = (Vec::new(), 0);
    bencher.bench_local(|| {
        let unembedding = Unembedding { weight: &weight, softcap: None };
        count += 1;
        let words = philox::philox4x32_10([count, 0, 0, 0], [1, 2]);
        let uniform = philox::uniform_f64(words[0], words[1]);
        let query = Query::Draw(Draw { uniform, ..draw });
        backend.sample(&mut drawn, &x, unembedding, &[], &[Ask { row: 0, query }]);
    });
}

/// A normally distributed f32, by Box and Muller's method.
#[expect(clippy::cast_possible_truncation, reason = "it is rounded")]
fn normal(id: u32, deviation: f64) -> [u8; 4] {
    let words = philox::philox4x32_10([id, 0, 0, 1], [3, 4]);
    let (one, other) =
        (philox::uniform_f64(words[0], words[1]), philox::uniform_f64(words[2], words[3]));
    let radius = (-2.0 * (1.0 - one).ln()).sqrt();
    let value = deviation * radius * (std::f64::consts::TAU * other).cos();
    (value as f32).to_le_bytes()
}
