//! Rows that need no peer: Tinsmith against itself, or against a bound.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Bench, OURS};
use crate::bench::table::Measured;

const LONG: &str = "train 32768";
const SHORTER: &str = "train 1024 1024 1024 1024";
/// Memory is the same in every process, or nearly so.
const PROCESSES: usize = 3;

type Measure = fn(&mut Bench<'_>) -> Result<()>;

/// What `--only` calls them.
pub(super) const GROUPS: &[(&str, Measure)] = &[
    ("memory", memory),
    ("optimizer", optimizer),
    ("long", long),
    ("server", server),
    ("latency", latency),
    ("clients", clients),
];

/// In processes of their own: what earlier steps have left counts as theirs.
fn memory(bench: &mut Bench<'_>) -> Result<()> {
    let train = Bench::train();
    for _ in 0..bench.options.rounds.min(PROCESSES) {
        let mut ours = bench.peer(OURS, &[])?;
        // Makes all that an adapter has.
        ours.ask("train 1")?;
        let answer = ours.ask(&train)?;
        bench.samples.add(1, OURS, "memory", answer);
    }
    let over =
        |answer: &Value| Some(answer["peak_mib"].as_f64()? - answer["resident_mib"].as_f64()?);
    let value = bench.samples.median(OURS, "memory", over);
    bench.add(plain("memory", value, "MiB"));
    Ok(())
}

fn optimizer(bench: &mut Bench<'_>) -> Result<()> {
    let rounds = bench.options.rounds.to_string();
    let arguments =
        [&["profile", "--format", "json", "--rounds", &rounds], &bench.kernels()[..]].concat();
    let profile = bench.answer(&arguments)?;
    let ops = profile["kinds"][0]["ops"].as_array().context("read the ops of a step")?;
    let own = ["adamw", "sum_squares", "zero_pair", "copy_pair"];
    let own = ops.iter().filter(|op| own.iter().any(|name| op["op"] == *name));
    let value = own.filter_map(|op| op["percent"].as_f64()).sum();
    bench.add(plain("optimizer", value, "%"));
    Ok(())
}

fn long(bench: &mut Bench<'_>) -> Result<()> {
    let mut ours = bench.peer(OURS, &[])?;
    for round in 0..=bench.options.rounds {
        bench.samples.add(round, OURS, SHORTER, ours.ask(SHORTER)?);
    }
    let long = ours.ask(LONG)?;
    bench.samples.add(1, OURS, LONG, long);
    let rate = |case| {
        let gflops =
            |answer: &Value| Some(answer["flops"].as_f64()? / answer["seconds"].as_f64()? / 1e9);
        bench.samples.median(OURS, case, gflops)
    };
    let (long, short) = (rate(LONG), rate(SHORTER));
    let text = format!("{long:.0} against {short:.0} GFLOP/s");
    let attainable = bench.share(long);
    bench.add(Measured { name: "long", value: Some(long / short), text, attainable });
    Ok(())
}

fn server(bench: &mut Bench<'_>) -> Result<()> {
    let arguments = [&["server", "--format", "json"], &bench.kernels()[..]].concat();
    let report = bench.answer(&arguments)?;
    for (name, words) in [
        ("first token", "unnamed save to first token, p50"),
        ("start", "start-up until it answers, p50"),
        ("optim_step", "optim_step: submit to result, p50"),
    ] {
        let value = figure(&report, words)?;
        bench.add(plain(name, value, "ms"));
    }
    Ok(())
}

fn latency(bench: &mut Bench<'_>) -> Result<()> {
    let arguments = [&["latency", "--format", "json"], &bench.kernels()[..]].concat();
    let report = bench.answer(&arguments)?;
    for (name, words) in [
        ("beside training", "first token beside 8 x 256-token steps, p95"),
        ("beside a long datum", "first token beside a datum of 32768 tokens, p95"),
    ] {
        let value = figure(&report, words)?;
        bench.add(plain(name, value, "ms"));
    }
    Ok(())
}

fn clients(bench: &mut Bench<'_>) -> Result<()> {
    let rounds = bench.options.rounds.to_string();
    let arguments =
        [&["clients", "--format", "json", "--rounds", &rounds], &bench.kernels()[..]].concat();
    let report = bench.answer(&arguments)?;
    let share = figure(&report, "share of the engine alone")?;
    let text = format!(
        "{:.0} against {:.0} tokens/s",
        figure(&report, "over HTTP")?,
        figure(&report, "engine alone")?
    );
    bench.add(Measured { name: "clients", value: Some(share), text, attainable: None });
    Ok(())
}

fn plain(name: &'static str, value: f64, unit: &str) -> Measured {
    Measured { name, value: Some(value), text: format!("{value:.1} {unit}"), attainable: None }
}

/// The figure of a report whose name ends with `words`.
fn figure(report: &Value, words: &str) -> Result<f64> {
    let figures = report["figures"].as_array().context("read the figures")?;
    let named = |figure: &&Value| figure["what"].as_str().is_some_and(|what| what.ends_with(words));
    let found = figures.iter().find(named);
    found
        .and_then(|found| found["value"].as_f64())
        .with_context(|| format!("find a figure `{words}`"))
}
