//! `tinsmith doctor`: what this machine can do, and whether a model fits; each problem with its fix.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args;
use tinsmith_backend_cpu::{DtypeChoice, KernelChoice, KernelSet, Kernels};
use tinsmith_engine::ModelDir;
use tinsmith_tokenizer::Tokenizer;

use super::bench::Machine;
use crate::{
    config::{Settings, Values},
    device::{self, Device},
    host,
    memory::{self, Room, Wish},
    models,
    terminal::say,
};

const FSYNCS: usize = 32;
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
    /// Measure what the processor, the memory and the disk reach at best; takes half a minute.
    #[arg(long)]
    bench: bool,
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
        Ok(offers) => check_models(&settings, &offers, &mut report),
        Err(error) => report.problem(
            "models",
            &format!("{error:#}"),
            "name a directory in Hugging Face format, or a hub id",
        ),
    }
    if arguments.bench {
        say("");
        Machine::measure(&settings.data_dir)?.print_tables();
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
    match host::fsync_times(data_dir, FSYNCS).map(|times| times[times.len() / 2]) {
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

fn check_models(settings: &Settings, offers: &[models::Offer], report: &mut Report) {
    let mut opened = Vec::new();
    for offer in offers {
        match open_model(settings, offer, report) {
            Ok((dir, device)) => opened.push((offer, dir, device)),
            Err(error) => bad_model(offer, &error, report),
        }
    }
    let wishes: Vec<Wish<'_>> = opened
        .iter()
        .map(|(offer, dir, device)| Wish { name: &offer.names[0], dir, device })
        .collect();
    if wishes.is_empty() || !check_plan(settings, &wishes, report) {
        return;
    }
    for (offer, dir, _) in &opened {
        let (millions, tenths) = (dir.parameters() / 1_000_000, dir.parameters() / 100_000 % 10);
        match dir.check_finite() {
            Ok(()) => report.good(
                &format!("model {}", offer.names.join(", ")),
                &format!("{} with {millions}.{tenths} M parameters", dir.config().family),
            ),
            Err(error) => bad_model(offer, &error.into(), report),
        }
    }
}

fn bad_model(offer: &models::Offer, error: &anyhow::Error, report: &mut Report) {
    let what = format!("model {}", offer.names.join(", "));
    report.problem(&what, &format!("{error:#}"), "see the message: it names the file");
}

/// Whether the models fit into the memory; says how it is shared out.
fn check_plan(settings: &Settings, wishes: &[Wish<'_>], report: &mut Report) -> bool {
    let room = Room::of(settings);
    match memory::share(settings, &room, wishes) {
        Ok(plans) => {
            for line in memory::lines(&room, &plans) {
                say(&format!("      {line}"));
            }
            let available = host::memory().map_or(u64::MAX, |memory| memory.available);
            let needed: usize = plans.iter().map(|planned| planned.plan.at_once()).sum();
            if needed as u64 > available {
                let found = format!("weights and caches take {}", memory::amount(needed));
                let fix = "end other programs, set kv_cache_mb lower, or serve a smaller model";
                report.problem("memory for the models", &found, fix);
                return false;
            }
            true
        }
        Err(error) => {
            let fix = "see the message: it says what takes most";
            report.problem("memory for the models", &format!("{error:#}"), fix);
            false
        }
    }
}

/// Looks at the files of a model, but not at its weights, and at the kernels that it would get.
fn open_model(
    settings: &Settings,
    offer: &models::Offer,
    report: &Report,
) -> Result<(ModelDir, Device)> {
    let dir = ModelDir::open(&offer.dir)?;
    Tokenizer::open(&offer.dir)?;
    let (kernels, why) = chosen_kernels(settings, &dir)?;
    let (set, path) = (kernels.set().versioned(), kernels.path());
    let found = format!("kernel set {set}, f32 ops on {path}: {why}");
    report.good(&format!("model {}", offer.names.join(", ")), &found);
    let device = device::open(settings, dir.stored_dtype())?;
    Ok((dir, device))
}
