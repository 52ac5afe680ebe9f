//! Every op against the reference, and every path and thread count against one another, to the bit.

#![expect(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "made-up numbers are small; a test says on which paths it ran, and may panic"
)]

mod program;

use tinsmith_backend::{
    ReferenceBackend,
    conformance::{self, Tolerances},
};
use tinsmith_backend_cpu::{Config, CpuBackend, Error, KernelChoice, Path};

use crate::program::{Output, SHAPES, program};

fn backend(path: Path, threads: usize) -> CpuBackend {
    CpuBackend::new(Config { threads, kernels: KernelChoice::Forced(path) }).unwrap()
}

/// Every path that this CPU has; says which it lacks.
fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|path| {
        println!("{} {path}", if path.is_available() { "on" } else { "this CPU lacks" });
        path.is_available()
    })
}

/// The programs below show that the other paths give the same bits.
#[test]
fn conforms() {
    let best = paths().last().unwrap();
    for threads in [1, 2] {
        conformance::all(|| backend(best, threads), &Tolerances::F32);
    }
}

#[test]
fn every_op_is_near_the_reference() {
    for shape in &SHAPES {
        let want = program(&mut ReferenceBackend, shape);
        for path in paths() {
            let got = program(&mut backend(path, 1), shape);
            for (got, want) in got.iter().zip(&want) {
                compare(got, want, &format!("{path} {shape:?}"));
            }
        }
    }
}

#[test]
fn every_path_and_thread_count_gives_the_same_bits() {
    for shape in &SHAPES {
        let want = program(&mut backend(Path::Portable, 1), shape);
        for path in paths() {
            for threads in [1, 2, 3] {
                let got = program(&mut backend(path, threads), shape);
                let same = |(got, want): (&Output, &Output)| same_bits(got, want);
                let different = got.iter().zip(&want).find(|&pair| !same(pair));
                let name = different.map(|(got, _)| got.name);
                assert_eq!(name, None, "{path}, {threads} threads, {shape:?}");
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

#[test]
fn kernels_are_chosen_by_name() {
    assert_eq!(KernelChoice::parse("auto"), Some(KernelChoice::Auto));
    assert_eq!(KernelChoice::parse("f32:avx2"), Some(KernelChoice::Forced(Path::Avx2)));
    assert_eq!(KernelChoice::parse("f32:sse"), None);
    let automatic = CpuBackend::new(Config { threads: 1, kernels: KernelChoice::Auto }).unwrap();
    let description = automatic.describe();
    assert_eq!(Some(&description.path), description.available.last());
    for path in Path::ALL.into_iter().filter(|path| !path.is_available()) {
        let forced = Config { threads: 1, kernels: KernelChoice::Forced(path) };
        assert!(matches!(CpuBackend::new(forced), Err(Error::KernelsUnavailable(p)) if p == path));
    }
}
