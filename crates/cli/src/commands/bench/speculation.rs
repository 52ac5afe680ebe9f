//! `tinsmith bench speculation`: sampling with and without tokens that are tried ahead.
//!
//! Four kinds of text, each from an adapter that was taught it first: one that is said again word for word, one that is
//! said again with changes, one whose beginnings mislead, and one that never repeats.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Serialize;
use tinsmith_engine::{
    AdamParams, Engine, Files, Output, Parts, RunKey, SampleJob, SamplerKey, Ticket, Work,
};

use super::{
    Computing, Format, Model,
    engine::{self, Subject},
    now,
    report::median,
};
use crate::{
    device::Device,
    models,
    random::Random,
    terminal::{problem, say},
};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    computing: Computing,
    /// The model that samples.
    #[arg(long, value_enum, default_value = "small")]
    model: Model,
    /// Rounds that count, after one that does not.
    #[arg(long, default_value = "5")]
    rounds: usize,
    /// How the figures are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Tokens of a text before it is said again.
const TEXT: usize = 160;
/// Tokens of the second time that the prompt gives.
const BEGUN: usize = 8;
const NEW: usize = 128;
/// Optimizer steps until a text is known.
const LESSONS: usize = 80;
/// Every so many tokens one is another the second time.
const CHANGED: usize = 12;
/// Tokens of the text that misleads: any three of them were there before, and say nothing of the next.
const SYMBOLS: u32 = 4;

/// A kind of text, and how it is sampled.
struct Kind {
    name: &'static str,
    prompt: Vec<u32>,
    temperature: f32,
    /// What the adapter learns, one datum each lesson; none: the base model samples.
    lessons: Vec<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct Row {
    text: &'static str,
    sequences: usize,
    /// Tokens a second.
    plain: f64,
    speculative: f64,
    ratio: f64,
    tried: u64,
    kept: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let settings = super::settings(&arguments.computing, (super::NANO, &nano), folder.path())?;
    let dir = arguments.model.dir(&nano, folder.path())?;
    let mut without = settings.clone();
    without.speculative_rows = 0;
    let name = arguments.model.name();
    let mut subjects = [
        Subject::open(&without, name, &dir, |device| device)?,
        Subject::open(&settings, name, &dir, |device| device)?,
    ];
    let vocabulary = subjects[0].decoder().vocab_size;
    let vocabulary = u32::try_from(vocabulary).context("draw tokens of the vocabulary")?;
    let mut rows = Vec::new();
    for (number, kind) in (1..).zip(kinds(vocabulary)) {
        problem(&format!("measuring text that is {}", kind.name));
        let sampler = SamplerKey(number);
        let files = teach(subjects[0].engine_mut(), RunKey(number), &kind.lessons)?;
        for subject in &mut subjects {
            let engine = subject.engine_mut();
            engine.create_sampler(sampler, "bench", files.as_ref()).context("make a sampler")?;
        }
        for sequences in [1, 4, 8] {
            rows.push(measure(&mut subjects, (sampler, &kind), sequences, arguments.rounds)?);
        }
    }
    match arguments.format {
        Format::Table => print_table(&rows),
        Format::Json => say(&serde_json::to_string_pretty(&rows).context("write the figures")?),
    }
    Ok(())
}

fn kinds(vocabulary: u32) -> Vec<Kind> {
    let mut random = Random::new(7);
    let mut draw = |count: usize, below: u32| -> Vec<u32> {
        (0..count).map(|_| random.below(below)).collect()
    };
    let text = draw(TEXT, vocabulary);
    let mut changed = text.clone();
    for token in changed.iter_mut().step_by(CHANGED) {
        *token = (*token + 1) % vocabulary;
    }
    let twice = |second: &[u32]| [&text[..], second].concat();
    let begun = |second: &[u32]| [&text[..], &second[..BEGUN]].concat();
    let symbols = (0..LESSONS).map(|_| draw(2 * TEXT, SYMBOLS)).collect();
    let (misleading, fresh) = (draw(TEXT, SYMBOLS), draw(TEXT, vocabulary));
    let kind = |name, prompt, temperature, lessons| Kind { name, prompt, temperature, lessons };
    vec![
        kind("said again", begun(&text), 0.0, vec![twice(&text); LESSONS]),
        kind("said again with changes", begun(&changed), 0.0, vec![twice(&changed); LESSONS]),
        kind("misleading", misleading, 1.0, symbols),
        kind("never repeated", fresh, 1.0, Vec::new()),
    ]
}

/// The files of an adapter that has had the lessons.
fn teach(engine: &mut Engine<Device>, run: RunKey, lessons: &[Vec<u32>]) -> Result<Option<Files>> {
    if lessons.is_empty() {
        return Ok(None);
    }
    engine.create_run(run, engine::spec(engine::RANK)).context("make a run")?;
    for lesson in lessons {
        let (loss, config) = ("cross_entropy".into(), BTreeMap::new());
        let datums = vec![engine::datum(lesson)];
        let learn = Work::ForwardBackward { run, datums, loss, config, forward_only: false };
        let params = AdamParams { learning_rate: 3e-3, ..engine::adam() };
        complete(engine, vec![learn, Work::OptimStep { run, params }])?;
    }
    let parts = Parts { optimizer: false, gradient: false };
    let files = engine.export_run(run, parts, "bench").context("write the adapter")?;
    engine.drop_run(run);
    Ok(Some(files))
}

/// Without and with, in turns; what comes out must be the same.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn measure(
    subjects: &mut [Subject; 2],
    (sampler, kind): (SamplerKey, &Kind),
    sequences: usize,
    rounds: usize,
) -> Result<Row> {
    let before = subjects[1].engine_mut().stats();
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=rounds.max(1) {
        let mut outputs = Vec::new();
        for (subject, rates) in subjects.iter_mut().zip(&mut rates) {
            let seeds = (0..sequences as u64).map(|sequence| 1000 * round as u64 + sequence);
            let works = seeds.map(|seed| Work::Sample { sampler, job: job(kind, seed) }).collect();
            let start = now();
            outputs.push(complete(subject.engine_mut(), works)?);
            if round > 0 {
                rates.push((sequences * NEW) as f64 / start.elapsed().as_secs_f64());
            }
        }
        let [plain, speculative] = &outputs[..] else { bail!("two engines") };
        ensure!(
            format!("{plain:?}") == format!("{speculative:?}"),
            "the tokens of {} text differ with speculation",
            kind.name
        );
    }
    let after = subjects[1].engine_mut().stats();
    let [plain, speculative] = rates.map(|rates| median(&rates));
    Ok(Row {
        text: kind.name,
        sequences,
        plain,
        speculative,
        ratio: speculative / plain,
        tried: after.tried_tokens - before.tried_tokens,
        kept: after.tried_tokens_kept - before.tried_tokens_kept,
    })
}

fn job(kind: &Kind, seed: u64) -> SampleJob {
    SampleJob { temperature: kind.temperature, ..engine::job(kind.prompt.clone(), NEW, seed) }
}

/// What the work gives, in order of the samples' ends.
fn complete(engine: &mut Engine<Device>, work: Vec<Work>) -> Result<BTreeMap<u64, Output>> {
    let count = work.len();
    for (ticket, work) in (0..).zip(work) {
        engine.submit(Ticket(ticket), work).context("submit work")?;
    }
    let mut outputs = BTreeMap::new();
    while outputs.len() < count {
        for (Ticket(ticket), result) in engine.step() {
            match result {
                Ok(output) => drop(outputs.insert(ticket, output)),
                Err(failure) => bail!("do the work: {}", failure.message),
            }
        }
    }
    Ok(outputs)
}

fn print_table(rows: &[Row]) {
    say("| text | sequences | without, tokens/s | with | ratio | tried | kept |");
    say("|---|---|---|---|---|---|---|");
    for Row { text, sequences, plain, speculative, ratio, tried, kept } in rows {
        say(&format!(
            "| {text} | {sequences} | {plain:.0} | {speculative:.0} | {ratio:.2} | {tried} | {kept} |"
        ));
    }
}
