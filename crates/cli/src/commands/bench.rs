//! `tinsmith bench`: training, sampling and latencies on this machine.
//!
//! Measured on the model that ships, and on one large enough that arithmetic is what takes the time.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use tinsmith_backend::Dtype;

use crate::{
    config::{Flags, Settings, Values},
    device, host, logs, models,
    terminal::{problem, say},
};

mod engine;
mod report;
mod server;
mod small;

use report::{Figure, Report};

const NANO: &str = "nano";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Little of everything, on the model that ships: shows that it works, not how fast.
    #[arg(long)]
    smoke: bool,
    /// What weights are kept in: auto, f32 or bf16.
    #[arg(long)]
    dtype: Option<String>,
    /// auto, or a kernel set, NAME or NAME:PATH: f32, w16-avx2, bf16-avx512, bf16-amx, f32:portable, …
    #[arg(long)]
    kernels: Option<String>,
    /// How the figures are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// How much is measured.
struct Counts {
    /// Rounds that count, after one that does not.
    repeats: usize,
    datums: usize,
    datum_tokens: usize,
    sequences: &'static [usize],
    prompt_tokens: usize,
    new_tokens: usize,
    prefill_prompts: usize,
    prefill_tokens: usize,
    optim_steps: usize,
    snapshots: usize,
    starts: usize,
}

const FULL: Counts = Counts {
    repeats: 5,
    datums: 8,
    datum_tokens: 256,
    sequences: &[1, 8, 32],
    prompt_tokens: 64,
    new_tokens: 64,
    prefill_prompts: 4,
    prefill_tokens: 512,
    optim_steps: 50,
    snapshots: 10,
    starts: 5,
};

const SMOKE: Counts = Counts {
    repeats: 1,
    datums: 2,
    datum_tokens: 64,
    sequences: &[1, 4],
    prompt_tokens: 16,
    new_tokens: 8,
    prefill_prompts: 1,
    prefill_tokens: 128,
    optim_steps: 5,
    snapshots: 2,
    starts: 1,
};

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let counts = if arguments.smoke { &SMOKE } else { &FULL };
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let settings = settings(arguments, &nano, folder.path())?;
    logs::start(&settings.log, settings.log_format)?;
    let mut figures = Vec::new();
    problem("measuring the engine on nano");
    figures.extend(engine::measure(&settings, NANO, &nano, counts)?);
    if !arguments.smoke {
        problem("measuring the engine on small (29.4 M parameters)");
        let small = folder.path().join("small");
        fs::create_dir(&small).context("make a directory for the small model")?;
        small::write(&small, &nano)?;
        figures.extend(engine::measure(&settings, "small", &small, counts)?);
    }
    problem("measuring the server on nano");
    figures.extend(serve(&settings, &nano, counts)?);
    figures.extend(peak_memory());
    // Both models are stored in bf16.
    let device = device::open(&settings, Dtype::Bf16)?;
    let report = Report { cpu: cpu(), kernels: device.describe().to_string(), figures };
    match arguments.format {
        Format::Table => report.print_table(),
        Format::Json => say(&serde_json::to_string_pretty(&report).context("write the report")?),
    }
    Ok(())
}

fn settings(arguments: &Arguments, model: &Path, folder: &Path) -> Result<Settings> {
    let flags: Flags = vec![
        ("dtype", arguments.dtype.clone()),
        ("kernels", arguments.kernels.clone()),
        ("models", Some(format!("{NANO}={}", model.display()))),
        ("host", Some("127.0.0.1".to_owned())),
        ("port", Some("0".to_owned())),
        ("data_dir", Some(folder.join("data").display().to_string())),
        ("log", Some("warn".to_owned())),
    ];
    Settings::new(&Values::load(&flags, None)?)
}

fn serve(settings: &Settings, nano: &Path, counts: &Counts) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let mut figures = server::latencies(settings, NANO, counts).await?;
        figures.push(server::start_up(NANO, nano, counts).await?);
        Ok(figures)
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn peak_memory() -> Option<Figure> {
    let bytes = host::peak_memory()?;
    Some(Figure::new(
        "all",
        "peak memory of this process",
        bytes as f64 / f64::from(1 << 20),
        "MiB",
    ))
}

/// The model name of the CPU, as Linux knows it.
fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH))
}

/// When something is timed here, it is the machine, not the program.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn now() -> Instant {
    Instant::now()
}
