//! Every op against the reference, and every path and thread count against one another, to the bit.

#![expect(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "made-up numbers are small; a test says on which paths it ran, and may panic"
)]

mod program;
mod rounding;

use tinsmith_backend::{
    Dtype, ReferenceBackend,
    conformance::{self, Tolerances},
};
use tinsmith_backend_cpu::{Config, CpuBackend, KernelSet, Kernels};

use crate::program::{Output, SHAPES, program};

fn backend(kernels: Kernels, threads: usize) -> CpuBackend {
    CpuBackend::new(Config { threads, kernels }).unwrap()
}

/// The sets that this CPU has, each with all its paths; says which those are and which not.
fn sets() -> Vec<(KernelSet, Vec<Kernels>)> {
    let available = Kernels::available();
    let mut sets = Vec::new();
    for set in KernelSet::ALL {
        let paths = available.iter().copied().filter(|kernels| kernels.set() == set);
        let paths = paths.collect::<Vec<_>>();
        if paths.is_empty() {
            println!("not with {set}: this CPU lacks {}", set.missing().join(" and "));
        } else {
            println!("with {set}");
            sets.push((set, paths));
        }
    }
    sets
}

fn tolerances(set: KernelSet) -> Tolerances {
    match set {
        KernelSet::F32 => Tolerances::F32,
        KernelSet::W16Avx2 | KernelSet::Bf16Avx512 | KernelSet::Bf16Amx => Tolerances::BF16,
    }
}

/// The programs below show that the other paths give the same bits.
#[test]
fn conforms() {
    for (set, paths) in sets() {
        let best = *paths.last().unwrap();
        conformance::all(|| backend(best, 2), &tolerances(set));
    }
}

#[test]
fn every_op_is_near_the_reference() {
    for shape in &SHAPES {
        let want = program(&mut ReferenceBackend, shape, Dtype::F32);
        for path in sets().iter().filter(|(set, _)| *set == KernelSet::F32).flat_map(|(_, p)| p) {
            let got = program(&mut backend(*path, 1), shape, Dtype::F32);
            for (got, want) in got.iter().zip(&want) {
                compare(got, want, &format!("{path} {shape:?}"));
            }
        }
    }
}

#[test]
fn every_path_and_thread_count_gives_the_same_bits() {
    for shape in &SHAPES {
        for (set, paths) in sets() {
            let want = program(&mut backend(paths[0], 1), shape, Dtype::F32);
            for path in paths {
                for threads in [1, 2, 3] {
                    let got = program(&mut backend(path, threads), shape, Dtype::F32);
                    let same = |(got, want): (&Output, &Output)| same_bits(got, want);
                    let different = got.iter().zip(&want).find(|&pair| !same(pair));
                    let name = different.map(|(got, _)| got.name);
                    assert_eq!(name, None, "{set}: {path}, {threads} threads, {shape:?}");
                }
            }
        }
    }
}

fn same_bits(a: &Output, b: &Output) -> bool {
    let bits = |output: &Output| output.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

/// The error of an element, against its own size and the array's root mean square.
fn compare(got: &Output, want: &Output, context: &str) {
    assert_eq!(got.values.len(), want.values.len(), "{} {context}", got.name);
    let squares = want.values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let typical = (squares / want.values.len().max(1) as f64).sqrt();
    for (i, (&got_value, &want_value)) in got.values.iter().zip(&want.values).enumerate() {
        let error = (f64::from(got_value) - f64::from(want_value)).abs();
        let allowed = 1e-5 * (f64::from(want_value).abs() + typical + 1e-30);
        assert!(error <= allowed, "{}[{i}] {got_value} {want_value} {context}", got.name);
    }
}
