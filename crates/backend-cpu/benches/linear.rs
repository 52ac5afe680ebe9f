//! The linear op alone: GFLOP/s over rows, on one thread, with every kernel set that this CPU has.
//!
//! Divan's item counter counts FLOPs, so that its throughput column reads GFLOP/s ("Gitem/s").

use divan::{Bencher, counter::ItemsCount};
use tinsmith_backend::{Backend, Dtype, Linear, RawMatrix};
use tinsmith_backend_cpu::{Config, CpuBackend, KernelSet, Kernels, Path};

const INPUTS: usize = 512;
const OUTPUTS: usize = 1536;
const ROWS: [usize; 5] = [1, 8, 64, 512, 2048];

fn main() {
    divan::main();
}

#[divan::bench(args = ROWS)]
fn f32_avx2(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, KernelSet::F32, Path::Avx2, rows);
}

#[divan::bench(args = ROWS)]
fn f32_avx512(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, KernelSet::F32, Path::Avx512, rows);
}

#[divan::bench(args = ROWS)]
fn w16_avx2(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, KernelSet::W16Avx2, Path::Avx2, rows);
}

#[divan::bench(args = ROWS)]
fn w16_avx512(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, KernelSet::W16Avx2, Path::Avx512, rows);
}

#[divan::bench(args = ROWS)]
fn bf16_avx512(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, KernelSet::Bf16Avx512, Path::Avx512, rows);
}

#[divan::bench(args = ROWS)]
fn bf16_amx(bencher: Bencher<'_, '_>, rows: usize) {
    linear(bencher, KernelSet::Bf16Amx, Path::Avx512, rows);
}

/// On one thread. What the CPU lacks is measured as nothing.
fn linear(bencher: Bencher<'_, '_>, set: KernelSet, path: Path, rows: usize) {
    let Ok(kernels) = Kernels::new(set, path) else { return };
    let mut backend =
        CpuBackend::new(Config { threads: 1, kernels }).expect("no thread is started");
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
