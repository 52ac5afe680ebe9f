//! `tinsmith bench rounds`: one measurement for each line of the standard input, so that others can take turns with it.
//!
//! A line is `train TOKENS…` (a datum of each length), `runs COUNT TOKENS` (a datum of a run each) or
//! `sample COUNT PROMPT NEW`; the answer is a line of JSON.

use std::{io::BufRead as _, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;
use tinsmith_backend::Dtype;

use super::{
    Computing, Model,
    engine::{RANK, Step, Subject},
    flops, now,
};
use crate::{device, host, models, terminal::say};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    computing: Computing,
    /// The model to run.
    #[arg(long, value_enum, default_value = "small")]
    model: Model,
}

/// What is measured; the first line.
#[derive(Debug, Serialize)]
struct Ready {
    cpu: String,
    kernels: String,
    set: String,
    path: String,
    threads: usize,
    /// Floating-point operations of a token through the layers, and through the unembedding too; without attention.
    layers_flops: usize,
    forward_flops: usize,
}

/// What one round took.
#[derive(Debug, Serialize)]
struct Round {
    seconds: f64,
    /// Of the processor, all threads together.
    cpu_seconds: f64,
    /// That were trained or drawn.
    tokens: usize,
    /// Floating-point operations of a training step; 0 for samples.
    flops: usize,
    /// In the steps where all sequences drew a token and no prompt was computed; 0 without such steps.
    decode_tokens_per_s: f64,
    /// Memory held before the round, and at its peak within it.
    resident_mib: f64,
    peak_mib: f64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let settings = super::settings(&arguments.computing, (super::NANO, &nano), folder.path())?;
    let dir: PathBuf = arguments.model.dir(&nano, folder.path())?;
    let mut subject = Subject::open(&settings, arguments.model.name(), &dir, |device| device)?;
    let description = device::open(&settings, Dtype::Bf16)?.describe();
    let layers_flops = flops::layers(subject.decoder());
    let ready = Ready {
        cpu: super::cpu(),
        kernels: description.to_string(),
        set: description.kernels.set().versioned().to_owned(),
        path: description.kernels.path().to_string(),
        threads: description.threads,
        layers_flops,
        forward_flops: layers_flops + flops::unembedding(subject.decoder()),
    };
    say(&serde_json::to_string(&ready).context("write what is measured")?);
    for line in std::io::stdin().lock().lines() {
        let line = line.context("read a line")?;
        let round = round(&mut subject, &line).with_context(|| format!("measure `{line}`"))?;
        say(&serde_json::to_string(&round).context("write the round")?);
    }
    Ok(())
}

fn round(subject: &mut Subject, line: &str) -> Result<Round> {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default();
    let numbers: Vec<usize> =
        words.map(str::parse).collect::<Result<_, _>>().context("read its numbers")?;
    let (work, tokens, flops) = match (name, numbers.as_slice()) {
        ("train", lengths @ [_, ..]) => {
            let flops = flops::training(subject.decoder(), lengths, RANK);
            (subject.training_step(lengths), lengths.iter().sum(), flops)
        }
        ("runs", &[count, tokens]) => {
            let lengths = vec![tokens; count];
            let flops = flops::training(subject.decoder(), &lengths, RANK);
            (subject.training_step_of_runs(count, tokens)?, count * tokens, flops)
        }
        ("sample", &[count, prompt, new]) => (subject.samples(count, prompt, new), count * new, 0),
        _ => bail!("know it: `train TOKENS…`, `runs COUNT TOKENS` or `sample COUNT PROMPT NEW`"),
    };
    let sequences = if name == "sample" { numbers[0] as u64 } else { u64::MAX };
    let (mut decode_tokens, mut decode_seconds) = (0, 0.0);
    host::forget_peak_memory();
    let resident_mib = mebibytes(host::resident_memory());
    let (start, spent) = (now(), host::processor_time());
    subject.complete_in_steps(work, |step: Step| {
        if step.prefill_tokens == 0 && step.decode_tokens >= sequences {
            decode_tokens += step.decode_tokens;
            decode_seconds += step.time.as_secs_f64();
        }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Round {
        seconds,
        cpu_seconds: host::processor_time().saturating_sub(spent).as_secs_f64(),
        tokens,
        flops,
        decode_tokens_per_s: rate(decode_tokens, decode_seconds),
        resident_mib,
        peak_mib: mebibytes(host::peak_memory()),
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(tokens: u64, seconds: f64) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / seconds }
}

/// 0 where the system does not tell.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn mebibytes(bytes: Option<u64>) -> f64 {
    bytes.unwrap_or(0) as f64 / f64::from(1 << 20)
}
