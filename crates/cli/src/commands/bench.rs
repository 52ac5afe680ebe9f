//! `tinsmith bench`: training, sampling and latencies on this machine.
//!
//! Measured on the model that ships, and on one large enough that arithmetic is what takes the time.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use tinsmith_backend::Dtype;

use crate::{
    config::{Flags, Settings, Values},
    device, host, logs, models,
    terminal::problem,
};

mod clients;
mod engine;
mod flops;
mod growth;
mod latency;
mod machine;
mod profile;
mod random_model;
mod report;
mod rounds;
mod server;
mod speculation;
mod work;

pub(super) use machine::Machine;
use report::{Figure, Report};

const NANO: &str = "nano";

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Little of everything, on the model that ships: shows that it works, not how fast.
    #[arg(long)]
    smoke: bool,
    #[command(flatten)]
    computing: Computing,
    /// How the figures are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// One thing looked at closely.
#[derive(Debug, Subcommand)]
enum Part {
    /// How long a sample's first token takes while the server trains.
    Latency(latency::Arguments),
    /// What each op takes of a training step, of prefill and of decode steps.
    Profile(profile::Arguments),
    /// What the processor, the memory and the disk reach at best; as `doctor --bench`.
    Machine(machine::Arguments),
    /// Many clients that sample over HTTP, beside the engine alone.
    Clients(clients::Arguments),
    /// Small fixed work for an instruction counter.
    #[command(hide = true)]
    Work(work::Arguments),
    /// How rates change as one thing grows, as SVG pictures.
    Growth(growth::Arguments),
    /// Sampling with and without tokens that are tried ahead.
    Speculation(speculation::Arguments),
    /// Latencies of the server alone.
    Server(ServerArguments),
    /// Measurements that the standard input asks for, one at a time.
    #[command(hide = true)]
    Rounds(rounds::Arguments),
    /// Write a model with random weights.
    #[command(hide = true)]
    WriteModel { model: Model, dir: PathBuf },
}

#[derive(Args, Debug)]
struct ServerArguments {
    #[command(flatten)]
    computing: Computing,
    /// The model that is served.
    #[arg(long, value_enum, default_value = "small")]
    model: Model,
    /// How the figures are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// What to compute with.
#[derive(Args, Debug)]
struct Computing {
    /// What weights are kept in: auto, f32 or bf16.
    #[arg(long)]
    dtype: Option<String>,
    /// auto, or a kernel set, NAME or NAME:PATH: f32, w16-avx2, bf16-avx512, bf16-amx, f32:portable, …
    #[arg(long)]
    kernels: Option<String>,
    /// Compute threads; 0: one a physical core.
    #[arg(long)]
    threads: Option<usize>,
}

/// The model that ships, or one with random weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Model {
    Nano,
    /// Qwen3 with 29.4 M parameters.
    Small,
    /// Qwen3 with 474 M parameters.
    Large,
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
    match &arguments.part {
        None => all(arguments),
        Some(Part::Latency(arguments)) => latency::run(arguments),
        Some(Part::Profile(arguments)) => profile::run(arguments),
        Some(Part::Machine(arguments)) => machine::run(arguments),
        Some(Part::Clients(arguments)) => clients::run(arguments),
        Some(Part::Work(arguments)) => work::run(arguments),
        Some(Part::Speculation(arguments)) => speculation::run(arguments),
        Some(Part::Growth(arguments)) => growth::run(arguments),
        Some(Part::Server(arguments)) => server_alone(arguments),
        Some(Part::Rounds(arguments)) => rounds::run(arguments),
        Some(Part::WriteModel { model, dir }) => write_model(*model, dir),
    }
}

fn server_alone(arguments: &ServerArguments) -> Result<()> {
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let dir = arguments.model.dir(&nano, folder.path())?;
    let name = arguments.model.name();
    let settings = settings(&arguments.computing, (name, &dir), folder.path())?;
    let figures = serve(&settings, (name, &dir), &FULL)?;
    let kernels = device::open(&settings, Dtype::Bf16)?.describe().to_string();
    Report { cpu: cpu(), kernels, figures }.print(arguments.format)
}

fn write_model(model: Model, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    match model.size() {
        Some(size) => random_model::write(size, dir, &models::shipped()?),
        None => bail!("write nano: it is in {}", models::shipped()?.display()),
    }
}

/// Everything that has no command of its own.
fn all(arguments: &Arguments) -> Result<()> {
    let counts = if arguments.smoke { &SMOKE } else { &FULL };
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let settings = settings(&arguments.computing, (NANO, &nano), folder.path())?;
    let mut figures = Vec::new();
    problem("measuring the engine on nano");
    figures.extend(engine::measure(&settings, NANO, &nano, counts)?);
    if !arguments.smoke {
        problem("measuring the engine on small (29.4 M parameters)");
        let small = Model::Small.dir(&nano, folder.path())?;
        figures.extend(engine::measure(&settings, "small", &small, counts)?);
    }
    problem("measuring the server on nano");
    figures.extend(serve(&settings, (NANO, &nano), counts)?);
    figures.extend(peak_memory());
    // Both models are stored in bf16.
    let device = device::open(&settings, Dtype::Bf16)?;
    Report { cpu: cpu(), kernels: device.describe().to_string(), figures }.print(arguments.format)
}

impl Computing {
    fn flags(&self) -> Flags {
        vec![
            ("dtype", self.dtype.clone()),
            ("kernels", self.kernels.clone()),
            ("threads", self.threads.map(|threads| threads.to_string())),
        ]
    }
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Nano => NANO,
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    /// Of a random one.
    fn size(self) -> Option<&'static random_model::Size> {
        match self {
            Self::Nano => None,
            Self::Small => Some(&random_model::SMALL),
            Self::Large => Some(&random_model::LARGE),
        }
    }

    /// Where its files are; those of a random one are written into `folder` first.
    fn dir(self, nano: &Path, folder: &Path) -> Result<PathBuf> {
        let Some(size) = self.size() else { return Ok(nano.to_owned()) };
        let dir = folder.join(self.name());
        if !dir.exists() {
            fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
            random_model::write(size, &dir, nano)?;
        }
        Ok(dir)
    }
}

/// The settings of a bench, whose data go into `folder`. Starts the log.
fn settings(
    computing: &Computing,
    (name, model): (&str, &Path),
    folder: &Path,
) -> Result<Settings> {
    let mut flags = computing.flags();
    flags.extend([
        ("models", Some(format!("{name}={}", model.display()))),
        ("host", Some("127.0.0.1".to_owned())),
        ("port", Some("0".to_owned())),
        ("data_dir", Some(folder.join("data").display().to_string())),
        ("log", Some("warn".to_owned())),
    ]);
    let settings = Settings::new(&Values::load(&flags, None)?)?;
    logs::start(&settings.log, settings.log_format)?;
    Ok(settings)
}

fn serve(
    settings: &Settings,
    (name, model): (&str, &Path),
    counts: &Counts,
) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let mut figures = server::latencies(settings, name, counts).await?;
        figures.push(server::start_up(name, model, counts).await?);
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
