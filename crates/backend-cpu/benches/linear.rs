//! The linear ops alone: GFLOP/s over rows, on one thread, with every kernel set that this CPU has.
//!
//! `plain` is one frozen matrix; `adapted` is two maps of the same rows with an adapter of rank 32 on each,
//! forward, and `backward` their gradient. Divan's item counter counts FLOPs, so that its throughput column
//! reads GFLOP/s ("Gitem/s").

use divan::{Bencher, counter::ItemsCount};
use tinsmith_backend::{
    Backend, Dtype, Linear, LinearGradientPart, LinearPart, LoraGradientUse, LoraUse, RawMatrix,
};
use tinsmith_backend_cpu::{Config, CpuBackend, Kernels, Lora, Rows, Weight};

const INPUTS: usize = 512;
const OUTPUTS: usize = 1536;
const RANK: usize = 32;
const ROWS: [usize; 6] = [1, 8, 32, 64, 512, 2048];
const KERNELS: [&str; 6] =
    ["f32:avx2", "f32:avx512", "w16-avx2:avx2", "w16-avx2:avx512", "bf16-avx512", "bf16-amx"];

fn main() {
    divan::main();
}

#[divan::bench(args = ROWS, consts = [0, 1, 2, 3, 4, 5])]
fn plain<const KERNEL: usize>(bencher: Bencher<'_, '_>, rows: usize) {
    let Some(mut bench) = Bench::new(KERNEL, rows) else { return };
    let [weight, _] = &bench.weights;
    let [out, _] = &mut bench.outs;
    bencher.counter(ItemsCount::new(2 * rows * INPUTS * OUTPUTS)).bench_local(|| {
        let linear = Linear { weight, bias: None, uses: &[], add: false };
        bench.backend.linear(out, &bench.x, linear, None);
    });
}

#[divan::bench(args = ROWS, consts = [0, 1, 2, 3, 4, 5])]
fn adapted<const KERNEL: usize>(bencher: Bencher<'_, '_>, rows: usize) {
    let Some(mut bench) = Bench::new(KERNEL, rows) else { return };
    bencher.counter(ItemsCount::new(flops(rows))).bench_local(|| bench.forward());
}

#[divan::bench(args = ROWS, consts = [0, 1, 2, 3, 4, 5])]
fn backward<const KERNEL: usize>(bencher: Bencher<'_, '_>, rows: usize) {
    let Some(mut bench) = Bench::new(KERNEL, rows) else { return };
    bench.forward();
    let Bench { backend, x, weights, loras, outs, hidden, .. } = &mut bench;
    let [mut gradient, mut other] =
        loras.each_ref().map(|lora| backend.pair(lora).expect("memory is enough"));
    let mut dx = backend.rows(rows, INPUTS).expect("memory is enough");
    // The adapters' gradients are as much work again as the adapters.
    let work = flops(rows) + 2 * 2 * rows * RANK * (INPUTS + OUTPUTS);
    let datum = 0..rows;
    bencher.counter(ItemsCount::new(work)).bench_local(|| {
        let mut uses =
            [(&loras[0], &mut gradient), (&loras[1], &mut other)].map(|(lora, gradient)| {
                let datums = std::slice::from_ref(&datum);
                [LoraGradientUse { rows: 0..rows, datums, lora, gradient, scale: 1.0 }]
            });
        let [first, second] = &mut uses;
        let part = |i: usize| (&outs[i], &weights[i], &hidden[i]);
        let parts = [(part(0), first), (part(1), second)];
        let mut parts = parts.map(|((dy, weight, hidden), uses)| LinearGradientPart {
            dy,
            weight,
            hidden,
            uses,
        });
        backend.linears_backward(Some(&mut dx), x, &mut parts);
    });
}

/// Two maps with adapters, forward.
const fn flops(rows: usize) -> usize {
    2 * 2 * rows * (INPUTS * OUTPUTS + RANK * (INPUTS + OUTPUTS))
}

/// Two maps of the same rows.
struct Bench {
    backend: CpuBackend,
    x: Rows,
    weights: [Weight; 2],
    loras: [Lora; 2],
    outs: [Rows; 2],
    hidden: [Rows; 2],
    rows: usize,
}

impl Bench {
    /// On one thread. What the CPU lacks is measured as nothing.
    fn new(kernel: usize, rows: usize) -> Option<Self> {
        let choice = tinsmith_backend_cpu::KernelChoice::parse(KERNELS[kernel])?;
        let choose = tinsmith_backend_cpu::choose;
        let auto = tinsmith_backend_cpu::DtypeChoice::Auto;
        let kernels: Kernels = choose(auto, choice, Dtype::Bf16).ok()?;
        let mut backend = CpuBackend::new(Config { threads: 1, kernels }).ok()?;
        let bytes = vec![0x3d; 2 * INPUTS * OUTPUTS];
        let raw = RawMatrix { bytes: &bytes, dtype: Dtype::Bf16, rows: OUTPUTS, cols: INPUTS };
        let weights = [0, 1].map(|_| backend.weight(&raw).expect("memory is enough"));
        let (a, b) = (vec![0.01; RANK * INPUTS], vec![0.01; RANK * OUTPUTS]);
        let loras = [0, 1].map(|_| backend.lora(&a, &b, RANK).expect("memory is enough"));
        let mut x = backend.rows(rows, INPUTS).expect("memory is enough");
        backend.write_rows(&mut x, &vec![0.5; rows * INPUTS]);
        let outs = [0, 1].map(|_| backend.rows(rows, OUTPUTS).expect("memory is enough"));
        let hidden = [0, 1].map(|_| backend.rows(0, 1).expect("memory is enough"));
        Some(Self { backend, x, weights, loras, outs, hidden, rows })
    }

    fn forward(&mut self) {
        let Self { backend, x, weights, loras, outs, hidden, rows } = self;
        let rows = 0..*rows;
        let uses = loras.each_ref().map(|lora| [LoraUse { rows: rows.clone(), lora, scale: 1.0 }]);
        let part = |((out, hidden), (weight, uses))| LinearPart {
            out,
            linear: Linear { weight, bias: None, uses, add: false },
            hidden: Some(hidden),
        };
        let [first, second] = outs;
        let [hidden, other] = hidden;
        let mut parts = [
            part(((first, hidden), (&weights[0], &uses[0][..]))),
            part(((second, other), (&weights[1], &uses[1][..]))),
        ];
        backend.linears(x, &mut parts);
    }
}
