//! `tinsmith bench growth`: how rates change as one thing grows, a line for each kernel set, as SVG pictures.
//!
//! A new curve is an entry of `CURVES`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Serialize;
use tinsmith_backend_cpu::KernelSet;
use tinsmith_engine::Work;

use super::{
    Computing, Model, NANO,
    engine::Subject,
    now,
    random_model::{self, SMALL, Size},
    report::median,
};
use crate::{models, terminal::problem};

mod svg;

use svg::{Chart, Line};

/// A line ends before a point that would take longer, as its last points foretell.
const POINT_TIME_MAX: Duration = Duration::from_secs(40);
/// Tokens of a training step where something else grows.
const TOKENS: usize = 2048;
const DATUM_TOKENS: usize = 256;
/// Sequences that decode where something else grows.
const SEQUENCES: usize = 8;
const PROMPT: usize = 64;
const NEW: usize = 32;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Where the pictures go.
    dir: PathBuf,
    /// Names of the curves to draw, such as `context-training`; none: all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Kernel sets to draw lines of; none: all that run here.
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    /// Rounds of each point that count, after one that does not.
    #[arg(long, default_value = "3")]
    rounds: usize,
}

/// What grows, and what is measured meanwhile.
struct Curve {
    name: &'static str,
    title: &'static str,
    across: &'static str,
    grows: Grows,
    point: Point,
}

/// What is another at each point, with the values in ascending order.
#[derive(Clone, Copy)]
enum Grows {
    /// The work alone; the small model does it.
    Work(&'static [usize]),
    /// The vocabulary of the small model.
    Vocabulary(&'static [usize]),
    /// From one to all cores.
    Threads,
    /// The model: parameters, about.
    Model(&'static [(usize, Model)]),
}

/// Does the work of a point once: tokens a second, and how long all of it took.
type Point = fn(&mut Subject, usize) -> Result<(f64, Duration)>;

const fn curve(
    (name, title): (&'static str, &'static str),
    across: &'static str,
    grows: Grows,
    point: Point,
) -> Curve {
    Curve { name, title, across, grows, point }
}

const CONTEXTS: &[usize] = &[256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768];
const PROMPTS: &[usize] = &[256, 512, 1024, 2048, 4096, 8192];
const BATCHES: &[usize] = &[16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];
const RANKS: &[usize] = &[1, 2, 4, 8, 16, 32, 64, 128, 256];
const VOCABULARIES: &[usize] = &[8192, 16_384, 32_768, 65_536, 131_072, 262_144];
const MODELS: &[(usize, Model)] =
    &[(1_100_000, Model::Nano), (29_400_000, Model::Small), (474_000_000, Model::Large)];

const CURVES: &[Curve] = &[
    curve(
        ("context-training", "training by context length"),
        "tokens of a datum",
        Grows::Work(CONTEXTS),
        |subject, value| train(subject, &vec![value; (TOKENS / value).max(1)]),
    ),
    curve(
        ("context-decode", "decoding by context length, 8 sequences"),
        "tokens of each prompt",
        Grows::Work(PROMPTS),
        |subject, value| decode(subject, SEQUENCES, value),
    ),
    curve(
        ("batch", "training by tokens of a step"),
        "tokens of a step",
        Grows::Work(BATCHES),
        |subject, value| {
            train(subject, &vec![value.min(DATUM_TOKENS); value.div_ceil(DATUM_TOKENS)])
        },
    ),
    curve(
        ("rank", "training by rank of the adapter"),
        "rank",
        Grows::Work(RANKS),
        |subject, value| {
            let lengths = [DATUM_TOKENS; TOKENS / DATUM_TOKENS];
            let work = subject.training_step_at_rank(value, &lengths)?;
            complete(subject, work, TOKENS)
        },
    ),
    curve(
        ("adapters", "training of several runs, 2,048 tokens together"),
        "runs",
        Grows::Work(&[1, 2, 4, 8, 16, 32]),
        |subject, value| {
            let work = subject.training_step_of_runs(value, TOKENS / value)?;
            complete(subject, work, TOKENS)
        },
    ),
    curve(
        ("sequences", "decoding by number of sequences"),
        "sequences",
        Grows::Work(&[1, 2, 4, 8, 16, 32, 64]),
        |subject, value| decode(subject, value, PROMPT),
    ),
    curve(
        ("vocabulary-training", "training by vocabulary"),
        "vocabulary",
        Grows::Vocabulary(VOCABULARIES),
        |subject, _| train(subject, &[DATUM_TOKENS; TOKENS / DATUM_TOKENS]),
    ),
    curve(
        ("vocabulary-decode", "decoding by vocabulary, 8 sequences"),
        "vocabulary",
        Grows::Vocabulary(VOCABULARIES),
        |subject, _| decode(subject, SEQUENCES, PROMPT),
    ),
    curve(("threads", "training by threads"), "threads", Grows::Threads, |subject, _| {
        train(subject, &[DATUM_TOKENS; TOKENS / DATUM_TOKENS])
    }),
    curve(
        ("parameters", "training by model size (nano, small, large)"),
        "parameters",
        Grows::Model(MODELS),
        |subject, _| train(subject, &[DATUM_TOKENS; 2]),
    ),
];

/// Everything that was measured, and where.
#[derive(Debug, Serialize)]
struct Growth {
    cpu: String,
    threads: usize,
    charts: Vec<Chart>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    for name in &arguments.only {
        let known: Vec<&str> = CURVES.iter().map(|curve| curve.name).collect();
        ensure!(known.contains(&name.as_str()), "draw {name}: give some of {}", known.join(", "));
    }
    fs::create_dir_all(&arguments.dir)
        .with_context(|| format!("make {}", arguments.dir.display()))?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let bench = Bench { arguments, nano: models::shipped()?, folder: folder.path() };
    let mut growth = Growth {
        cpu: super::cpu(),
        threads: tinsmith_backend_cpu::physical_cores(),
        charts: Vec::new(),
    };
    let wanted = |curve: &&Curve| {
        arguments.only.is_empty() || arguments.only.iter().any(|name| name == curve.name)
    };
    for curve in CURVES.iter().filter(wanted) {
        let chart = bench.chart(curve, &growth)?;
        let file = arguments.dir.join(format!("{}.svg", curve.name));
        fs::write(&file, chart.draw()).with_context(|| format!("write {}", file.display()))?;
        growth.charts.push(chart);
    }
    let file = arguments.dir.join("growth.json");
    let text = serde_json::to_string_pretty(&growth).context("write the points")? + "\n";
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

struct Bench<'a> {
    arguments: &'a Arguments,
    nano: PathBuf,
    folder: &'a Path,
}

impl Bench<'_> {
    fn chart(&self, curve: &Curve, growth: &Growth) -> Result<Chart> {
        let mut lines = Vec::new();
        let sets = KernelSet::ALL.into_iter().filter(|set| set.missing().is_empty());
        let wanted = |set: &KernelSet| {
            let chosen = &self.arguments.kernels;
            chosen.is_empty() || chosen.iter().any(|name| *name == set.to_string())
        };
        for set in sets.filter(wanted) {
            problem(&format!("{}: {set}", curve.name));
            let points = self.points(curve, set)?;
            lines.push(Line { label: set.versioned().to_owned(), points });
        }
        let model = if curve.is_of_models() { "" } else { "small, " };
        Ok(Chart {
            name: curve.name,
            title: format!("{} ({model}{}, {} cores)", curve.title, growth.cpu, growth.threads),
            across: curve.across,
            upwards: "tokens/s",
            logarithmic: curve.is_of_models(),
            lines,
        })
    }

    /// As far as the line goes.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn points(&self, curve: &Curve, set: KernelSet) -> Result<Vec<(f64, f64)>> {
        let mut points = Vec::new();
        let mut subject: Option<Subject> = None;
        for value in curve.values() {
            let mut one = match subject.take() {
                Some(subject) => subject,
                None => self.open(curve, set, value)?,
            };
            let start = now();
            match self.rate(&mut one, curve.point, value) {
                Ok(rate) => points.push((value as f64, rate)),
                // What does not fit is where the line ends.
                Err(error) => {
                    problem(&format!("{} ends at {value}: {error:#}", curve.name));
                    break;
                }
            }
            if start.elapsed() > POINT_TIME_MAX {
                problem(&format!("{} ends at {value}: more would take long", curve.name));
                break;
            }
            if matches!(curve.grows, Grows::Work(_)) {
                subject = Some(one);
            }
        }
        Ok(points)
    }

    fn open(&self, curve: &Curve, set: KernelSet, value: usize) -> Result<Subject> {
        let mut computing =
            Computing { dtype: None, kernels: Some(set.to_string()), threads: None };
        let dir = match curve.grows {
            Grows::Work(_) => Model::Small.dir(&self.nano, self.folder)?,
            Grows::Vocabulary(_) => self.random(value)?,
            Grows::Threads => {
                computing.threads = Some(value);
                Model::Small.dir(&self.nano, self.folder)?
            }
            Grows::Model(models) => {
                let model = models.iter().find(|(parameters, _)| *parameters == value);
                let (_, model) = model.context("find the model of this size")?;
                model.dir(&self.nano, self.folder)?
            }
        };
        let settings = super::settings(&computing, (NANO, &self.nano), self.folder)?;
        Subject::open(&settings, "growth", &dir, |device| device)
    }

    /// The small model with another vocabulary.
    fn random(&self, vocabulary: usize) -> Result<PathBuf> {
        let dir = self.folder.join(format!("vocabulary-{vocabulary}"));
        if !dir.exists() {
            fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
            random_model::write(&Size { vocabulary, ..SMALL }, &dir, &self.nano)?;
        }
        Ok(dir)
    }

    /// Tokens a second, the median of rounds; of long ones there is only one.
    fn rate(&self, subject: &mut Subject, point: Point, value: usize) -> Result<f64> {
        let mut rates = Vec::new();
        for round in 0..=self.arguments.rounds {
            let (rate, time) = point(subject, value)?;
            let long = time > POINT_TIME_MAX / 8;
            if round > 0 || long {
                rates.push(rate);
            }
            if long {
                break;
            }
        }
        ensure!(!rates.is_empty(), "measure no rounds");
        Ok(median(&rates))
    }
}

impl Curve {
    fn values(&self) -> Vec<usize> {
        match self.grows {
            Grows::Work(values) | Grows::Vocabulary(values) => values.to_vec(),
            Grows::Threads => (1..=tinsmith_backend_cpu::physical_cores()).collect(),
            Grows::Model(models) => models.iter().map(|(parameters, _)| *parameters).collect(),
        }
    }

    fn is_of_models(&self) -> bool {
        matches!(self.grows, Grows::Model(_))
    }
}

fn train(subject: &mut Subject, lengths: &[usize]) -> Result<(f64, Duration)> {
    let work = subject.training_step(lengths);
    complete(subject, work, lengths.iter().sum())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn complete(subject: &mut Subject, work: Vec<Work>, tokens: usize) -> Result<(f64, Duration)> {
    let start = now();
    subject.complete_in_steps(work, |_| {})?;
    let time = start.elapsed();
    Ok((tokens as f64 / time.as_secs_f64(), time))
}

/// Tokens a second of the steps in which all sequences draw and no prompt is computed, and the time of all.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn decode(subject: &mut Subject, sequences: usize, prompt: usize) -> Result<(f64, Duration)> {
    let work = subject.samples(sequences, prompt, NEW);
    let (mut tokens, mut seconds) = (0, 0.0);
    let start = now();
    subject.complete_in_steps(work, |step| {
        if step.prefill_tokens == 0 && step.decode_tokens >= sequences as u64 {
            tokens += step.decode_tokens;
            seconds += step.time.as_secs_f64();
        }
    })?;
    ensure!(tokens > 0, "see {sequences} sequences decode at the same time");
    Ok((tokens as f64 / seconds, start.elapsed()))
}
