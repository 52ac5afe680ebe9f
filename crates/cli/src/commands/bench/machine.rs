//! `tinsmith doctor --bench` and `tinsmith bench machine`: what the machine reaches at best, to hold figures against.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;
use tinsmith_backend::{Backend as _, Dtype, Linear, RawMatrix};
use tinsmith_backend_cpu::{Config, CpuBackend, KernelSet, Kernels, Path as KernelPath};

use super::{Format, now};
use crate::{host, terminal::say};

const INPUTS: usize = 512;
const OUTPUTS: usize = 1536;
const ROWS: [usize; 5] = [1, 8, 64, 512, 2048];
/// Each rate is the best of many slices of this time at least.
const SLICE: Duration = Duration::from_millis(3);
const SLICES: usize = 40;
/// Floats read for the bandwidth: 256 MiB, more than caches hold.
const MEMORY: usize = 64 << 20;
const MEMORY_READS: usize = 5;
const FSYNCS: usize = 100;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// How the figures are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    /// Physical cores that this process may use.
    cores: usize,
    kernels: Vec<KernelRates>,
    memory: Vec<Bandwidth>,
    fsync_p50_us: f64,
    fsync_p95_us: f64,
}

/// A kernel set on one path, with so many threads.
#[derive(Debug, Serialize)]
struct KernelRates {
    set: String,
    path: String,
    threads: usize,
    /// Of multiply-adds on registers alone.
    peak_gflops: f64,
    /// Of `linear`, 512 → 1536 features, by rows.
    linear_gflops: Vec<Rate>,
    /// The best of these.
    attainable_gflops: f64,
}

#[derive(Debug, Serialize)]
struct Rate {
    rows: usize,
    gflops: f64,
}

#[derive(Debug, Serialize)]
struct Bandwidth {
    threads: usize,
    /// Reading more than the caches hold, in order.
    gb_per_s: f64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let machine = Machine::measure(folder.path())?;
    match arguments.format {
        Format::Table => machine.print_tables(),
        Format::Json => {
            say(&serde_json::to_string_pretty(&machine).context("write the figures")?);
        }
    }
    Ok(())
}

impl Machine {
    /// Takes a quarter of a minute or so; writes a small file into `data_dir`.
    pub(crate) fn measure(data_dir: &Path) -> Result<Self> {
        let cores = tinsmith_backend_cpu::physical_cores();
        let mut counts = vec![1, cores];
        counts.dedup();
        let mut kernels = Vec::new();
        let mut memory = Vec::new();
        for &threads in &counts {
            for set in KernelSet::ALL {
                // A path that the set or the CPU lacks is nothing to measure.
                let known = |path| Kernels::new(set, path).ok();
                let vectors = [KernelPath::Avx2, KernelPath::Avx512].into_iter().filter_map(known);
                for chosen in vectors {
                    kernels.push(KernelRates::measure(chosen, threads)?);
                }
            }
            memory.push(Bandwidth::measure(threads)?);
        }
        let times = host::fsync_times(data_dir, FSYNCS)?;
        let at = |percent: usize| 1e6 * times[times.len() * percent / 100].as_secs_f64();
        Ok(Self {
            cpu: super::cpu(),
            cores,
            kernels,
            memory,
            fsync_p50_us: at(50),
            fsync_p95_us: at(95),
        })
    }

    /// Markdown.
    pub(crate) fn print_tables(&self) {
        let Self { cpu, cores, kernels, memory, fsync_p50_us, fsync_p95_us } = self;
        say(&format!("{cpu}, {cores} cores; GFLOP/s of `linear`, {INPUTS} → {OUTPUTS} features\n"));
        let rows = ROWS.map(|rows| format!("{rows} rows")).join(" | ");
        say(&format!("| kernel set, path | threads | registers alone | {rows} | attainable |"));
        say(&format!("|---|---|---|{}---|", "---|".repeat(ROWS.len())));
        for KernelRates { set, path, threads, peak_gflops, linear_gflops, attainable_gflops } in
            kernels
        {
            let by_rows: Vec<String> =
                linear_gflops.iter().map(|rate| format!("{:.0}", rate.gflops)).collect();
            say(&format!(
                "| {set}, {path} | {threads} | {peak_gflops:.0} | {} | {attainable_gflops:.0} |",
                by_rows.join(" | ")
            ));
        }
        say("");
        for Bandwidth { threads, gb_per_s } in memory {
            say(&format!("memory, {threads} threads reading: {gb_per_s:.1} GB/s"));
        }
        say(&format!("fsync of 4 KiB: p50 {fsync_p50_us:.0} µs, p95 {fsync_p95_us:.0} µs"));
    }
}

impl KernelRates {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn measure(kernels: Kernels, threads: usize) -> Result<Self> {
        let mut cpu = open(kernels, threads)?;
        let flops = cpu.multiply_add(1) as f64;
        let peak = best_rate(|| {
            cpu.multiply_add(1000);
        });
        let bytes = vec![0x3d; 2 * INPUTS * OUTPUTS];
        let raw = RawMatrix { bytes: &bytes, dtype: Dtype::Bf16, rows: OUTPUTS, cols: INPUTS };
        let weight = cpu.weight(&raw).context("pack a matrix")?;
        let mut linear_gflops = Vec::new();
        for rows in ROWS {
            let mut x = cpu.rows(rows, INPUTS).context("make rows")?;
            cpu.write_rows(&mut x, &vec![0.5; rows * INPUTS]);
            let mut out = cpu.rows(rows, OUTPUTS).context("make rows")?;
            let rate = best_rate(|| {
                let linear = Linear { weight: &weight, bias: None, uses: &[], add: false };
                cpu.linear(&mut out, &x, linear, None);
            });
            linear_gflops
                .push(Rate { rows, gflops: rate * (2 * rows * INPUTS * OUTPUTS) as f64 / 1e9 });
        }
        let attainable_gflops = linear_gflops.iter().map(|rate| rate.gflops).fold(0.0, f64::max);
        Ok(Self {
            set: kernels.set().versioned().to_owned(),
            path: kernels.path().to_string(),
            threads,
            peak_gflops: peak * 1000.0 * flops / 1e9,
            linear_gflops,
            attainable_gflops,
        })
    }
}

impl Bandwidth {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn measure(threads: usize) -> Result<Self> {
        let auto = tinsmith_backend_cpu::choose(
            tinsmith_backend_cpu::DtypeChoice::F32,
            tinsmith_backend_cpu::KernelChoice::Auto,
            Dtype::F32,
        )?;
        let cpu = open(auto, threads)?;
        let memory = vec![1.0; MEMORY];
        let mut best = 0.0_f64;
        for _ in 0..MEMORY_READS {
            let start = now();
            cpu.read_memory(&memory);
            best = best.max((4 * MEMORY) as f64 / start.elapsed().as_secs_f64());
        }
        Ok(Self { threads, gb_per_s: best / 1e9 })
    }
}

fn open(kernels: Kernels, threads: usize) -> Result<CpuBackend> {
    CpuBackend::new(Config { threads, kernels }).context("open the CPU")
}

/// Calls a second, in the best of many slices of time.
fn best_rate(mut call: impl FnMut()) -> f64 {
    let mut best = 0.0_f64;
    for _ in 0..SLICES {
        let start = now();
        let mut calls = 0.0;
        while start.elapsed() < SLICE {
            call();
            calls += 1.0;
        }
        best = best.max(calls / start.elapsed().as_secs_f64());
    }
    best
}
