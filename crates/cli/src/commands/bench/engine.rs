//! What the engine reaches by itself: no HTTP, no disk.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, bail};
use tinsmith_engine::{
    AdamParams, Datum, Decoder, Engine, LoraSpec, ModelDir, Output, RunKey, SampleJob, SamplerKey,
    Stop, Ticket, Work,
};

use super::{
    Counts, now,
    report::{Figure, median},
};
use crate::{
    config::Settings,
    device::{self, Device},
    memory::{self, Room, Wish},
    random::Random,
};

const RUN: RunKey = RunKey(0);
const BASE: SamplerKey = SamplerKey(0);
const RANK: usize = 32;

/// A model in its engine, and what it is fed.
struct Subject {
    name: &'static str,
    engine: Engine<Device>,
    vocabulary: u32,
    random: Random,
}

/// Training, sampling and prefill of the model in `dir`.
pub(super) fn measure(
    settings: &Settings,
    name: &'static str,
    dir: &Path,
    counts: &Counts,
) -> Result<Vec<Figure>> {
    let mut subject = Subject::open(settings, name, dir)?;
    let mut figures = vec![subject.training(counts)?];
    for &sequences in counts.sequences {
        figures.push(subject.sampling(counts, sequences)?);
    }
    figures.push(subject.prefill(counts)?);
    Ok(figures)
}

impl Subject {
    fn open(settings: &Settings, name: &'static str, dir: &Path) -> Result<Self> {
        let files = ModelDir::open(dir).with_context(|| format!("open {}", dir.display()))?;
        let mut device = device::open(settings, files.stored_dtype())?;
        let wish = Wish { name, dir: &files, device: &device };
        let limits = memory::share(settings, &Room::of(settings), &[wish])?[0].config;
        let decoder = Decoder::load(&mut device, &files).context("load the model")?;
        let end_tokens = files.end_tokens().to_vec();
        let mut engine =
            Engine::new(device, decoder, end_tokens, None, limits).context("start the engine")?;
        let spec = LoraSpec {
            rank: RANK,
            seed: 1,
            train_attn: true,
            train_mlp: true,
            train_unembed: true,
        };
        engine.create_run(RUN, spec).context("make a run")?;
        engine.create_sampler(BASE, "bench", None).context("make a sampler")?;
        let vocabulary = u32::try_from(engine.decoder_config().vocab_size)
            .context("draw tokens of the vocabulary")?;
        Ok(Self { name, engine, vocabulary, random: Random::new(1) })
    }

    fn training(&mut self, counts: &Counts) -> Result<Figure> {
        let (datums, tokens) = (counts.datums, counts.datum_tokens);
        let rate = self.rate(counts.repeats, datums * tokens, |subject| {
            let datums = (0..datums).map(|_| subject.datum(tokens)).collect();
            let loss = "cross_entropy".into();
            let config = BTreeMap::new();
            vec![
                Work::ForwardBackward { run: RUN, datums, loss, config, forward_only: false },
                Work::OptimStep { run: RUN, params: adam() },
            ]
        })?;
        let what = format!("train: {datums} x {tokens} tokens, LoRA rank {RANK}, one step");
        Ok(Figure::new(self.name, what, rate, "tokens/s"))
    }

    /// The prompts' time counts, their tokens do not.
    fn sampling(&mut self, counts: &Counts, sequences: usize) -> Result<Figure> {
        let (prompt, new) = (counts.prompt_tokens, counts.new_tokens);
        let rate = self.rate(counts.repeats, sequences * new, |subject| {
            (0..sequences as u64).map(|seed| subject.sample(prompt, new, seed)).collect()
        })?;
        let plural = if sequences == 1 { "" } else { "s" };
        let what =
            format!("sample: {sequences} sequence{plural}, {prompt} prompt + {new} new tokens");
        Ok(Figure::new(self.name, what, rate, "tokens/s"))
    }

    fn prefill(&mut self, counts: &Counts) -> Result<Figure> {
        let (prompts, tokens) = (counts.prefill_prompts, counts.prefill_tokens);
        let rate = self.rate(counts.repeats, prompts * tokens, |subject| {
            (0..prompts as u64).map(|seed| subject.sample(tokens, 1, seed)).collect()
        })?;
        let what = format!("prefill: {prompts} prompts of {tokens} tokens");
        Ok(Figure::new(self.name, what, rate, "tokens/s"))
    }

    /// The median of `tokens` a second, after one round that does not count.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn rate(
        &mut self,
        repeats: usize,
        tokens: usize,
        mut make: impl FnMut(&mut Self) -> Vec<Work>,
    ) -> Result<f64> {
        let mut rates = Vec::new();
        for round in 0..=repeats {
            let work = make(self);
            let start = now();
            self.complete(work)?;
            if round > 0 {
                rates.push(tokens as f64 / start.elapsed().as_secs_f64());
            }
        }
        Ok(median(&rates))
    }

    fn complete(&mut self, work: Vec<Work>) -> Result<()> {
        let mut open = work.len();
        for (ticket, work) in (0..).zip(work) {
            self.engine.submit(Ticket(ticket), work).context("submit work")?;
        }
        while open > 0 {
            for (_, result) in self.engine.step() {
                match result {
                    Ok(
                        Output::ForwardBackward { .. }
                        | Output::OptimStep { .. }
                        | Output::Sample(_),
                    ) => open -= 1,
                    Err(failure) => bail!("do the work: {}", failure.message),
                }
            }
        }
        Ok(())
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.random.below(self.vocabulary)).collect()
    }

    fn datum(&mut self, length: usize) -> Datum {
        let tokens = self.tokens(length + 1);
        Datum {
            tokens: tokens[..length].to_vec(),
            targets: tokens[1..].to_vec(),
            per_row: 1,
            values: BTreeMap::from([("weights".to_owned(), vec![1.0; length])]),
            arrays: Vec::new(),
        }
    }

    fn sample(&mut self, prompt: usize, new: usize, seed: u64) -> Work {
        let job = SampleJob {
            prompt: self.tokens(prompt),
            num_samples: 1,
            max_tokens: Some(new),
            seed: Some(seed),
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            stop: Stop::Tokens(Vec::new()),
            prompt_logprobs: false,
            prompt_logprobs_last_n: None,
            topk_prompt_logprobs: 0,
            topk_sample_logprobs: 0,
            target_prompt_logprobs: None,
            prompt_alt_tokens: 0,
        };
        Work::Sample { sampler: BASE, job }
    }
}

fn adam() -> AdamParams {
    AdamParams {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-12,
        weight_decay: 0.0,
        grad_clip_norm: 0.0,
    }
}
