//! What the engine reaches by itself: no HTTP, no disk.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tinsmith_engine::{
    AdamParams, Backend, Datum, Decoder, DecoderConfig, Engine, LoraSpec, ModelDir, Output, RunKey,
    SampleJob, SamplerKey, Stop, Ticket, Work,
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
/// Of another rank than the others.
const RANKED: RunKey = RunKey(u64::MAX);
const BASE: SamplerKey = SamplerKey(0);
/// Of the adapters that are trained.
pub(super) const RANK: usize = 32;

/// A model in its engine, and what it is fed.
pub(super) struct Subject<B: Backend = Device> {
    name: &'static str,
    engine: Engine<B>,
    vocabulary: u32,
    random: Random,
    /// Runs beside the first.
    others: u64,
    /// Rank of the run `RANKED`, if there is one.
    ranked: Option<usize>,
}

/// What one step of the engine did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) time: Duration,
    /// Prompt tokens that it computed.
    pub(super) prefill_tokens: u64,
    /// Tokens that it drew.
    pub(super) decode_tokens: u64,
}

/// Training, sampling and prefill of the model in `dir`.
pub(super) fn measure(
    settings: &Settings,
    name: &'static str,
    dir: &Path,
    counts: &Counts,
) -> Result<Vec<Figure>> {
    let mut subject = Subject::open(settings, name, dir, |device| device)?;
    let mut figures = vec![subject.training(counts)?];
    for &sequences in counts.sequences {
        figures.push(subject.sampling(counts, sequences)?);
    }
    figures.push(subject.prefill(counts)?);
    Ok(figures)
}

impl<B: Backend> Subject<B> {
    /// The model in `dir` on the device of the settings, or on what `wrap` makes of that.
    pub(super) fn open(
        settings: &Settings,
        name: &'static str,
        dir: &Path,
        wrap: impl FnOnce(Device) -> B,
    ) -> Result<Self> {
        let files = ModelDir::open(dir).with_context(|| format!("open {}", dir.display()))?;
        let device = device::open(settings, files.stored_dtype())?;
        let wish = Wish { name, dir: &files, device: &device };
        let limits = memory::share(settings, &Room::of(settings), &[wish])?[0].config;
        let mut backend = wrap(device);
        let decoder = Decoder::load(&mut backend, &files).context("load the model")?;
        let end_tokens = files.end_tokens().to_vec();
        let mut engine =
            Engine::new(backend, decoder, end_tokens, None, limits).context("start the engine")?;
        engine.create_run(RUN, spec(RANK)).context("make a run")?;
        engine.create_sampler(BASE, "bench", None).context("make a sampler")?;
        let vocabulary = u32::try_from(engine.decoder_config().vocab_size)
            .context("draw tokens of the vocabulary")?;
        Ok(Self { name, engine, vocabulary, random: Random::new(1), others: 0, ranked: None })
    }

    pub(super) fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    fn training(&mut self, counts: &Counts) -> Result<Figure> {
        let (datums, tokens) = (counts.datums, counts.datum_tokens);
        let rate = self.rate(counts.repeats, datums * tokens, |subject| {
            subject.training_step(&vec![tokens; datums])
        })?;
        let what = format!("train: {datums} x {tokens} tokens, LoRA rank {RANK}, one step");
        Ok(Figure::new(self.name, what, rate, "tokens/s"))
    }

    /// Submits some sequences with prompts of so many tokens, and steps until each has drawn a token.
    pub(super) fn prefill_all(
        &mut self,
        (sequences, prompt): (usize, usize),
        new: usize,
    ) -> Result<()> {
        for seed in 0..sequences as u64 {
            let work = self.sample(prompt, new, seed);
            self.engine.submit(Ticket(seed), work).context("submit a sample")?;
        }
        while self.engine.stats().decode_tokens < sequences as u64 {
            self.steps(1)?;
        }
        Ok(())
    }

    /// Steps that finish nothing.
    pub(super) fn steps(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            ensure!(self.engine.step().is_empty(), "decode: a sequence ended early");
        }
        Ok(())
    }

    /// The prompts' time counts, their tokens do not.
    fn sampling(&mut self, counts: &Counts, sequences: usize) -> Result<Figure> {
        let (prompt, new) = (counts.prompt_tokens, counts.new_tokens);
        let rate = self.rate(counts.repeats, sequences * new, |subject| {
            subject.samples(sequences, prompt, new)
        })?;
        let plural = if sequences == 1 { "" } else { "s" };
        let what =
            format!("sample: {sequences} sequence{plural}, {prompt} prompt + {new} new tokens");
        Ok(Figure::new(self.name, what, rate, "tokens/s"))
    }

    /// Tokens a second of `count` samples for each of some clients: who gets one asks for the next at once.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) fn closed_loop(
        &mut self,
        (clients, count): (usize, usize),
        prompt: usize,
        new: usize,
    ) -> Result<f64> {
        let total = (clients * count) as u64;
        let mut waiting: Vec<Work> = (0..total).map(|at| self.sample(prompt, new, at)).collect();
        let start = now();
        let (mut open, mut tokens) = (0, 0);
        while open > 0 || !waiting.is_empty() {
            while open < clients
                && let Some(work) = waiting.pop()
            {
                let ticket = Ticket(waiting.len() as u64);
                self.engine.submit(ticket, work).context("submit a sample")?;
                open += 1;
            }
            for (_, result) in self.engine.step() {
                let Ok(Output::Sample(output)) = result else { bail!("sample: it failed") };
                tokens += output.sequences.iter().map(|each| each.tokens.len()).sum::<usize>();
                open -= 1;
            }
        }
        Ok(tokens as f64 / start.elapsed().as_secs_f64())
    }

    fn prefill(&mut self, counts: &Counts) -> Result<Figure> {
        let (prompts, tokens) = (counts.prefill_prompts, counts.prefill_tokens);
        let rate = self.rate(counts.repeats, prompts * tokens, |subject| {
            subject.samples(prompts, tokens, 1)
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

    /// Does the work.
    pub(super) fn complete(&mut self, work: Vec<Work>) -> Result<()> {
        self.complete_in_steps(work, |_| {})
    }

    /// Does the work; `after` sees each step of the engine.
    pub(super) fn complete_in_steps(
        &mut self,
        work: Vec<Work>,
        mut after: impl FnMut(Step),
    ) -> Result<()> {
        let mut open = work.len();
        for (ticket, work) in (0..).zip(work) {
            self.engine.submit(Ticket(ticket), work).context("submit work")?;
        }
        while open > 0 {
            let before = self.engine.stats();
            let start = now();
            let results = self.engine.step();
            let time = start.elapsed();
            let stats = self.engine.stats();
            after(Step {
                time,
                prefill_tokens: stats.prefill_tokens - before.prefill_tokens,
                decode_tokens: stats.decode_tokens - before.decode_tokens,
            });
            for (_, result) in results {
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

    /// Gradients of one datum of each of the `lengths`, and the optimizer's step.
    pub(super) fn training_step(&mut self, lengths: &[usize]) -> Vec<Work> {
        self.update(RUN, lengths)
    }

    /// The same of `count` runs, each with a datum of its own.
    pub(super) fn training_step_of_runs(
        &mut self,
        count: usize,
        tokens: usize,
    ) -> Result<Vec<Work>> {
        while self.others < count as u64 {
            self.others += 1;
            self.engine.create_run(RunKey(self.others), spec(RANK)).context("make a run")?;
        }
        Ok((1..=count as u64).flat_map(|run| self.update(RunKey(run), &[tokens])).collect())
    }

    /// The same of a new run, whose adapter has another rank; the one before goes.
    pub(super) fn training_step_at_rank(
        &mut self,
        rank: usize,
        lengths: &[usize],
    ) -> Result<Vec<Work>> {
        if self.ranked != Some(rank) {
            if self.ranked.take().is_some() {
                self.engine.drop_run(RANKED);
            }
            self.engine.create_run(RANKED, spec(rank)).context("make a run")?;
            self.ranked = Some(rank);
        }
        Ok(self.update(RANKED, lengths))
    }

    fn update(&mut self, run: RunKey, lengths: &[usize]) -> Vec<Work> {
        let datums = lengths.iter().map(|length| self.datum(*length)).collect();
        let loss = "cross_entropy".into();
        let config = BTreeMap::new();
        vec![
            Work::ForwardBackward { run, datums, loss, config, forward_only: false },
            Work::OptimStep { run, params: adam() },
        ]
    }

    pub(super) fn engine_mut(&mut self) -> &mut Engine<B> {
        &mut self.engine
    }

    /// The model that runs.
    pub(super) fn decoder(&self) -> &DecoderConfig {
        self.engine.decoder_config()
    }

    /// `count` samples of `new` tokens each, from different prompts.
    pub(super) fn samples(&mut self, count: usize, prompt: usize, new: usize) -> Vec<Work> {
        (0..count as u64).map(|seed| self.sample(prompt, new, seed)).collect()
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.random.below(self.vocabulary)).collect()
    }

    fn datum(&mut self, length: usize) -> Datum {
        datum(&self.tokens(length + 1))
    }

    fn sample(&mut self, prompt: usize, new: usize, seed: u64) -> Work {
        let job = job(self.tokens(prompt), new, seed);
        Work::Sample { sampler: BASE, job }
    }
}

/// One sample of `new` tokens, at temperature 1.
pub(super) fn job(prompt: Vec<u32>, new: usize, seed: u64) -> SampleJob {
    SampleJob {
        prompt,
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
    }
}

/// A datum that predicts each token from those before it.
pub(super) fn datum(tokens: &[u32]) -> Datum {
    let length = tokens.len() - 1;
    Datum {
        tokens: tokens[..length].to_vec(),
        targets: tokens[1..].to_vec(),
        per_row: 1,
        values: BTreeMap::from([("weights".to_owned(), vec![1.0; length])]),
        arrays: Vec::new(),
    }
}

pub(super) fn spec(rank: usize) -> LoraSpec {
    LoraSpec { rank, seed: 1, train_attn: true, train_mlp: true, train_unembed: true }
}

pub(super) fn adam() -> AdamParams {
    AdamParams {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-12,
        weight_decay: 0.0,
        grad_clip_norm: 0.0,
    }
}
