//! Training steps in turns: ours, ours on one thread, PyTorch's.

use anyhow::{Context as _, Result};

use super::{Bench, DATUMS, OURS, TOKENS};
use crate::{
    bench::{process::Peer, table::Measured},
    python, say,
};

/// As many tokens as all datums have.
const RAGGED: &str = "train 16 64 112 192 272 368 512 512";
/// Ours on one thread.
const ALONE: &str = "tinsmith, 1 thread";
/// A setting that is this many times slower than another on a small step is not tried again.
const HOPELESS: f64 = 4.0;

/// The groups train, runs, ragged and threads.
pub(super) fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let runs = format!("runs {DATUMS} {TOKENS}");
    let mut ours = bench.peer(OURS, &[])?;
    let mut alone = match bench.options.wants("threads") {
        true => Some(bench.peer(ALONE, &["--threads", "1"])?),
        false => None,
    };
    let mut torches = if bench.options.wants("train") { torches(bench)? } else { Vec::new() };
    let mut cases = vec![Bench::train()];
    cases.extend(bench.options.wants("runs").then(|| runs.clone()));
    cases.extend(bench.options.wants("ragged").then(|| RAGGED.to_owned()));
    for round in 0..=bench.options.rounds {
        say(&format!("training, round {round} of {}", bench.options.rounds));
        for case in &cases {
            let answer = ours.ask(case)?;
            bench.samples.add(round, OURS, case, answer);
        }
        let train = Bench::train();
        if let Some(alone) = &mut alone {
            bench.samples.add(round, ALONE, &train, alone.ask(&train)?);
        }
        for torch in &mut torches {
            let answer = torch.ask(&format!("train {DATUMS} {TOKENS}"))?;
            bench.samples.add(round, &torch.label, &train, answer);
        }
    }
    let labels: Vec<String> = torches.iter().map(|torch| torch.label.clone()).collect();
    if bench.options.wants("train") {
        against_torch(bench, &labels)?;
    }
    let own = rate(bench, OURS, &Bench::train(), "seconds");
    for (name, case) in [("runs", runs.as_str()), ("ragged", RAGGED)] {
        if bench.options.wants(name) {
            bench.ratio(name, (rate(bench, OURS, case, "seconds"), own), "");
        }
    }
    if bench.options.wants("threads") {
        bench.ratio("threads", (own, rate(bench, ALONE, &Bench::train(), "seconds")), "");
        let [ours, alone] =
            [OURS, ALONE].map(|who| rate(bench, who, &Bench::train(), "cpu_seconds"));
        bench.ratio("threads by CPU time", (ours, alone), " of the processor");
    }
    Ok(())
}

fn against_torch(bench: &mut Bench<'_>, labels: &[String]) -> Result<()> {
    let train = Bench::train();
    let own = rate(bench, OURS, &train, "seconds");
    let rates = labels.iter().map(|label| (rate(bench, label, &train, "seconds"), label));
    let (theirs, label) = rates.max_by(|a, b| a.0.total_cmp(&b.0)).context("hear from PyTorch")?;
    bench.ratio("train", (own, theirs), &format!(" ({label})"));
    let gflops = bench.samples.median(OURS, &train, |answer| {
        Some(answer["flops"].as_f64()? / answer["seconds"].as_f64()? / 1e9)
    });
    let text = format!("{gflops:.0} of {:.0} GFLOP/s", bench.attainable);
    let value = bench.share(gflops);
    bench.add(Measured { name: "attainable", value, text, attainable: value });
    Ok(())
}

/// Trained tokens a second, by one of the clocks.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(bench: &Bench<'_>, who: &str, case: &str, clock: &str) -> f64 {
    (DATUMS * TOKENS) as f64 / bench.samples.median(who, case, |answer| answer[clock].as_f64())
}

/// PyTorch in each dtype, without those that are hopeless here.
fn torches(bench: &Bench<'_>) -> Result<Vec<Peer>> {
    let python = python::GOLDEN.program(bench.root, "python")?;
    let script = bench.root.join("xtask/peers/pytorch.py");
    let script = script.to_str().context("read the script's name as UTF-8")?;
    let model = bench.model.to_str().context("read the model's name as UTF-8")?;
    let threads = bench.ready["threads"].to_string();
    let mut torches = Vec::new();
    for dtype in ["f32", "bf16"] {
        let label = format!("PyTorch, {dtype}");
        let arguments = [script, model, dtype, &threads];
        let mut torch = Peer::start(bench.root, &label, &python, &arguments)?;
        torch.ask("train 1 32")?;
        let seconds = torch.ask("train 1 32")?["seconds"].as_f64().unwrap_or(f64::MAX);
        torches.push((seconds, torch));
    }
    let best = torches.iter().map(|(seconds, _)| *seconds).fold(f64::MAX, f64::min);
    torches.retain(|(seconds, torch)| {
        let keep = *seconds < HOPELESS * best;
        if !keep {
            say(&format!("{} is left out: {:.0} times slower", torch.label, seconds / best));
        }
        keep
    });
    Ok(torches.into_iter().map(|(_, torch)| torch).collect())
}
