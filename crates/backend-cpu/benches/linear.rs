//! The linear op alone: GFLOP/s over rows, on every path that this CPU has.
//!
//! Divan's item counter counts FLOPs, so that its throughput column reads GFLOP/s ("Gitem/s").

use divan::{Bencher, counter::ItemsCount};
use tinsmith_backend::{Backend, Dtype, Linear, RawMatrix};
use tinsmith_backend_cpu::{Config, CpuBackend, KernelChoice, Path};

const INPUTS: usize = 512;
const OUTPUTS: usize = 1536;
const ROWS: [usize; 5] = [1, 8, 64, 512, 2048];

fn main() {
    divan::main();
}

#[divan::bench(args = ROWS)]
fn avx2_1_thread(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, Path::Avx2, 1, rows);
}

#[divan::bench(args = ROWS)]
fn avx512_1_thread(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, Path::Avx512, 1, rows);
}

#[divan::bench(args = ROWS)]
fn avx2_2_threads(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, Path::Avx2, 2, rows);
}

#[divan::bench(args = ROWS)]
fn avx512_2_threads(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, Path::Avx512, 2, rows);
}

/// A path that the CPU lacks is measured as nothing.
fn linear(bencher: Bencher<'_, '_>, path: Path, threads: usize, rows: usize) {
    let config = Config { threads, kernels: KernelChoice::Forced(path) };
    let Ok(mut backend) = CpuBackend::new(config) else { return };
    let bytes = vec![0x3d; 2 * INPUTS * OUTPUTS];
    let raw = RawMatrix { bytes: &bytes, dtype: Dtype::Bf16, rows: OUTPUTS, cols: INPUTS };
    let weight = backend.weight(&raw).expect("memory is enough");
    let mut x = backend.rows(rows, INPUTS).expect("memory is enough");
    backend.write_rows(&mut x, &vec![0.5; rows * INPUTS]);
    let mut out = backend.rows(rows, OUTPUTS).expect("memory is enough");
    bencher.counter(ItemsCount::new(2 * rows * INPUTS * OUTPUTS)).bench_local(|| {
        let linear = Linear { weight: &weight, bias: None, uses: &[], add: false };
        backend.linear(&mut out, &x, linear, None);
    });
}
