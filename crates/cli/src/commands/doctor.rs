//! `tinsmith doctor`: what this machine can do, and whether a model fits; each problem with its fix.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tinsmith_backend_cpu::{DtypeChoice, KernelChoice, KernelSet, Kernels};
use tinsmith_engine::ModelDir;
use tinsmith_tokenizer::Tokenizer;

use crate::{
    config::{Settings, Values},
    device, host, models,
    terminal::say,
};

const FSYNCS: u32 = 32;
/// Slower than this, and every training request is felt to wait for the disk.
const FSYNC_SLOW: Duration = Duration::from_millis(10);
const GIBIBYTE: f64 = 1_073_741_824.0;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Model directories and hub ids to check; none: the model that ships.
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// What weights are kept in: auto, f32 or bf16.
    #[arg(long)]
    dtype: Option<String>,
    /// auto, or a kernel set, NAME or NAME:PATH: f32, w16-avx2, bf16-avx512, bf16-amx, f32:portable, …
    #[arg(long)]
    kernels: Option<String>,
    /// Settings file; without it `$TINSMITH_CONFIG`, else `./tinsmith.toml`.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Lines of the report, and how many of them are problems.
#[derive(Default)]
struct Report {
    problems: usize,
}

impl Report {
    #[expect(clippy::unused_self, reason = "reads as the twin of `problem`")]
    fn good(&self, what: &str, found: &str) {
        say(&format!("  ok  {what}: {found}"));
    }

    fn problem(&mut self, what: &str, found: &str, fix: &str) {
        self.problems += 1;
        say(&format!(" bad  {what}: {found}"));
        say(&format!("      fix: {fix}"));
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let flags = vec![
        ("models", (!arguments.models.is_empty()).then(|| arguments.models.join(","))),
        ("dtype", arguments.dtype.clone()),
        ("kernels", arguments.kernels.clone()),
    ];
    let settings = Settings::new(&Values::load(&flags, arguments.config.as_deref())?)?;
    let mut report = Report::default();
    check_kernels(&report);
    check_memory(&report);
    check_disk(&settings.data_dir, &mut report);
    check_port(&settings, &mut report);
    match models::offers(&settings) {
        Ok(offers) => {
            for offer in offers {
                check_model(&settings, &offer, &mut report);
            }
        }
        Err(error) => report.problem(
            "models",
            &format!("{error:#}"),
            "name a directory in Hugging Face format, or a hub id",
        ),
    }
    if report.problems > 0 {
        bail!("find this machine ready: {} of the lines above are bad", report.problems);
    }
    Ok(())
}

fn check_kernels(report: &Report) {
    for set in KernelSet::ALL {
        let missing = set.missing();
        let what = format!("kernel set {}", set.versioned());
        if missing.is_empty() {
            let on = set.paths().iter().filter(|path| path.is_available());
            let on = on.map(ToString::to_string).collect::<Vec<_>>().join(", ");
            report.good(&what, &format!("can run here, f32 ops on {on}"));
        } else {
            report
                .good(&what, &format!("cannot run here: the CPU lacks {}", missing.join(" and ")));
        }
    }
}

/// The kernels that a model would get, and why.
fn chosen_kernels(settings: &Settings, dir: &ModelDir) -> Result<(Kernels, String)> {
    let stored = dir.stored_dtype();
    let kernels = device::kernels(settings, stored)?;
    let why = match (settings.kernels, settings.dtype) {
        (KernelChoice::Set(_) | KernelChoice::Exact(..), _) => "as kernels says".to_owned(),
        (KernelChoice::Auto, DtypeChoice::F32) => "as dtype = f32 says".to_owned(),
        (KernelChoice::Auto, DtypeChoice::Bf16) => {
            "the best for bf16 here, as dtype = bf16 says".to_owned()
        }
        (KernelChoice::Auto, DtypeChoice::Auto) => {
            format!("the best here for files in {}", tinsmith_backend_cpu::dtype_name(stored))
        }
    };
    Ok((kernels, why))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn check_memory(report: &Report) {
    match host::memory() {
        Some(memory) => {
            let total = memory.total as f64 / GIBIBYTE;
            let available = memory.available as f64 / GIBIBYTE;
            report.good("memory", &format!("{available:.1} GiB available of {total:.1}"));
        }
        None => report.good("memory", "unknown (no /proc/meminfo)"),
    }
}

fn check_disk(data_dir: &Path, report: &mut Report) {
    let what = format!("data directory {}", data_dir.display());
    if let Some((kind, point)) = host::file_system(data_dir) {
        if matches!(kind.as_str(), "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "fuse.sshfs") {
            let found = format!("{point} is a network file system ({kind})");
            report.problem(
                &what,
                &found,
                "give --data-dir on a local disk: SQLite's locks need one",
            );
        } else {
            report.good("file system", &format!("{kind} at {point}"));
        }
    }
    match fsync_time(data_dir) {
        Ok(time) if time <= FSYNC_SLOW => {
            report.good(&what, &format!("writable, one fsync takes {} µs", time.as_micros()));
        }
        Ok(time) => {
            let found = format!("one fsync takes {} ms", time.as_millis());
            report.problem(
                &what,
                &found,
                "give --data-dir on a faster disk: training requests wait for it",
            );
        }
        Err(error) => {
            report.problem(&what, &format!("{error:#}"), "give --data-dir where you may write");
        }
    }
}

/// The median of a few small writes with fsync.
#[expect(clippy::disallowed_methods, reason = "times the disk, not the program")]
fn fsync_time(data_dir: &Path) -> Result<Duration> {
    fs::create_dir_all(data_dir).with_context(|| format!("make {}", data_dir.display()))?;
    let mut file = tempfile::tempfile_in(data_dir)
        .with_context(|| format!("write into {}", data_dir.display()))?;
    let mut times = Vec::new();
    for _ in 0..FSYNCS {
        let start = Instant::now();
        file.write_all(&[0; 4096]).context("write a block")?;
        file.sync_data().context("sync a block")?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

fn check_port(settings: &Settings, report: &mut Report) {
    let address = format!("{}:{}", settings.host, settings.port);
    match TcpListener::bind(&address) {
        Ok(_) => report.good("port", &format!("{address} is free")),
        Err(error) => {
            let found = format!("{address}: {error}");
            report.problem("port", &found, "stop the server that runs there, or give --port 0");
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn check_model(settings: &Settings, offer: &models::Offer, report: &mut Report) {
    let what = format!("model {}", offer.names.join(", "));
    let dir = match sound_model(&offer.dir) {
        Ok(dir) => dir,
        Err(error) => {
            return report.problem(
                &what,
                &format!("{error:#}"),
                "see the message: it names the file",
            );
        }
    };
    let (kernels, why) = match chosen_kernels(settings, &dir) {
        Ok(chosen) => chosen,
        Err(error) => {
            let fix = "use --kernels auto and --dtype auto";
            return report.problem(&what, &format!("{error:#}"), fix);
        }
    };
    let (set, path) = (kernels.set().versioned(), kernels.path());
    report.good(&what, &format!("kernel set {set}, f32 ops on {path}: {why}"));
    let limits = models::limits(settings, &dir);
    // Packed, and once more transposed when it is trained.
    let weights = (dir.parameters() * 2) as f64 * kernels.set().weights().size() as f64 / GIBIBYTE;
    let cache = settings.kv_cache_bytes as f64 / GIBIBYTE;
    let found = format!(
        "{} with {:.1} M parameters, context {}: {:.2} GiB when trained, {:.2} GiB of cache",
        dir.config().family,
        dir.parameters() as f64 / 1e6,
        limits.max_model_len,
        weights,
        cache,
    );
    let available = host::memory().map_or(f64::MAX, |memory| memory.available as f64 / GIBIBYTE);
    if weights + cache > available {
        let found = format!("{found}; only {available:.1} GiB are available");
        report.problem(&what, &found, "set kv_cache_mb lower, or use a machine with more memory");
    } else {
        report.good(&what, &found);
    }
}

/// A model that `serve` would take.
fn sound_model(path: &Path) -> Result<ModelDir> {
    let dir = ModelDir::open(path)?;
    dir.check_finite()?;
    Tokenizer::open(path)?;
    Ok(dir)
}
