//! Sampling in turns: ours, and llama.cpp at the same precision of weights.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bench, OURS};
use crate::{
    bench::{
        llama::{Llama, Setting},
        table::Measured,
    },
    say,
};

const SEQUENCES: [usize; 3] = [1, 8, 32];
const NAMES: [&str; 3] = ["decode 1", "decode 8", "decode 32"];
const PROMPT: usize = 64;
const NEW: usize = 64;
const PREFILLS: usize = 4;
const PREFILL_TOKENS: usize = 512;

/// The groups decode and prefill.
pub(super) fn measure(bench: &mut Bench<'_>, folder: &Path) -> Result<()> {
    let threads = bench.ready["threads"].as_u64().context("read the number of threads")?;
    let llama = Llama::ensure(bench.root, &bench.model, folder.join("gguf"), threads)?;
    let settings = settings(bench);
    rounds(bench, &llama, &settings)?;
    let flops = |name: &str| bench.ready[name].as_f64().unwrap_or(0.0);
    let (whole, layers) = (flops("forward_flops"), flops("layers_flops"));
    if bench.options.wants("decode") {
        for (name, count) in NAMES.into_iter().zip(SEQUENCES) {
            let own = |answer: &Value| answer["decode_tokens_per_s"].as_f64();
            let own = bench.samples.median(OURS, &decode(count), own);
            let best = best(bench, &settings, &decode(count), "speed_tg")?;
            rates(bench, name, own, &best, whole);
        }
    }
    if bench.options.wants("prefill") {
        let own = |answer: &Value| answer["seconds"].as_f64();
        let own = tokens(PREFILLS * PREFILL_TOKENS) / bench.samples.median(OURS, &prefill(), own);
        let best = best(bench, &settings, &prefill(), "speed_pp")?;
        rates(bench, "prefill", own, &best, layers);
    }
    Ok(())
}

/// Weights in as many bits as ours have, with and without fused attention.
fn settings(bench: &Bench<'_>) -> Vec<Setting> {
    let full = bench.ready["set"].as_str().is_some_and(|set| set.starts_with("f32"));
    let weights: &[&'static str] = if full { &["f32"] } else { &["f16", "bf16"] };
    let both = |weights: &&'static str| [false, true].map(|flash| Setting { weights, flash });
    weights.iter().flat_map(both).collect()
}

fn rounds(bench: &mut Bench<'_>, llama: &Llama, settings: &[Setting]) -> Result<()> {
    let mut ours = bench.peer(OURS, &[])?;
    for round in 0..=bench.options.rounds {
        say(&format!("sampling, round {round} of {}", bench.options.rounds));
        if bench.options.wants("decode") {
            for count in SEQUENCES {
                bench.samples.add(round, OURS, &decode(count), ours.ask(&decode(count))?);
            }
            for setting in settings {
                let answers = llama.round(bench.root, *setting, (&SEQUENCES, PROMPT, NEW))?;
                ensure!(answers.len() == SEQUENCES.len(), "hear from llama.cpp");
                for (count, answer) in SEQUENCES.into_iter().zip(answers) {
                    bench.samples.add(round, &setting.label(), &decode(count), answer);
                }
            }
        }
        if bench.options.wants("prefill") {
            bench.samples.add(round, OURS, &prefill(), ours.ask(&prefill())?);
            for setting in settings {
                let sizes = (&[PREFILLS][..], PREFILL_TOKENS, 1);
                for answer in llama.round(bench.root, *setting, sizes)? {
                    bench.samples.add(round, &setting.label(), &prefill(), answer);
                }
            }
        }
    }
    Ok(())
}

fn decode(count: usize) -> String {
    format!("sample {count} {PROMPT} {NEW}")
}

fn prefill() -> String {
    format!("sample {PREFILLS} {PREFILL_TOKENS} 1")
}

/// The best rate of llama.cpp, and its setting.
fn best(bench: &Bench<'_>, settings: &[Setting], case: &str, field: &str) -> Result<(f64, String)> {
    let rates = settings.iter().map(|setting| {
        let rate = |answer: &Value| answer[field].as_f64();
        (bench.samples.median(&setting.label(), case, rate), setting.label())
    });
    rates.max_by(|a, b| a.0.total_cmp(&b.0)).context("hear from llama.cpp")
}

/// Two rates of tokens, each worth so many floating-point operations.
fn rates(
    bench: &mut Bench<'_>,
    name: &'static str,
    own: f64,
    (theirs, label): &(f64, String),
    flops: f64,
) {
    let text = format!("{own:.0} against {theirs:.0} tokens/s (llama.cpp, {label})");
    let attainable = bench.share(own * flops / 1e9);
    bench.add(Measured { name, value: Some(own / theirs), text, attainable });
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn tokens(count: usize) -> f64 {
    count as f64
}
