//! Random schedules: whatever shares the engine with it, in whatever order and sizes of steps, every job
//! gives the bits that it gives alone.
//!
//! A few dozen cases as a rule; `PROPTEST_CASES` asks for more. A failure prints the case with its seed.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use tinsmith_engine::{
    Config, Failure, Files, Output, Parts, RunKey, SampleJob, SamplerKey, Ticket, Work,
};

use super::plan::{DRAWN_TOKENS_MAX, Planner, RunPlan, SEQUENCE_TOKENS_MAX, Scoring, Step};
use crate::tiny::{
    CpuEngine, Kernels, SplitMix64, bits, config, datum, engine_on, forward, kernel_sets,
    optim_step, run_one, sample, sampled, scored, spec,
};

const CASES: u32 = 24;
const BLOCK_TOKENS: usize = 32;
const ALL: Parts = Parts { optimizer: true, gradient: true };
/// The sampler of the base model, and the run that nobody compares.
const BASE: SamplerKey = SamplerKey(1000);
const STRANGER: RunKey = RunKey(1000);

/// How large a case is; everything else comes from the seed.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    runs: usize,
    steps: usize,
    /// Samples of the base model.
    samples: usize,
    /// Pieces of work that are not looked at: some fail, some are cancelled.
    strangers: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    (any::<u64>(), 0..4_usize, 1..8_usize, 0..6_usize, prop_oneof![0..4_usize, 32..33_usize])
        .prop_map(|(seed, runs, steps, samples, strangers)| Case {
            seed,
            runs,
            steps,
            samples,
            strangers,
        })
}

fn proptest_config() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default =
        ProptestConfig { max_shrink_iters: 200, failure_persistence: None, ..Default::default() };
    if asked { default } else { ProptestConfig { cases: CASES, ..default } }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn jobs_give_the_bits_that_they_give_alone(case in cases()) {
        check(&case);
    }
}

/// What a piece of work gave, as bits. Metrics are of a whole request: none where it was sent in parts.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Given {
    Scores(Vec<Vec<u32>>, Option<BTreeMap<String, u64>>),
    Step(BTreeMap<String, u64>),
    Samples(Vec<Vec<u32>>),
}

/// Everything that a case gives: by the place of the work, and each run's files in the end.
#[derive(Debug, Default)]
struct Outcome {
    given: BTreeMap<Place, Given>,
    files: Vec<Files>,
}

/// Which piece of a case's work.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Place {
    /// Of a run's steps, with the number of the part or of the sample.
    Step {
        run: usize,
        step: usize,
        part: usize,
    },
    /// Sample of the base model.
    Base(usize),
    Stranger,
}

fn check(case: &Case) {
    let mut planner = Planner::new(case.seed);
    let runs: Vec<_> = (0..case.runs).map(|_| planner.run(case.steps)).collect();
    let base: Vec<_> = (0..case.samples).map(|_| planner.job()).collect();
    let sets = kernel_sets();
    let kernels = sets[planner.random.below(sets.len())];

    let mut expected = Outcome::default();
    for (number, plan) in runs.iter().enumerate() {
        run_alone(kernels, number, plan, &mut expected);
    }
    let mut alone = engine_on(1, kernels, roomy());
    alone.create_sampler(BASE, "a", None).unwrap();
    for (number, job) in base.iter().enumerate() {
        let given = given(run_one(&mut alone, sample(BASE, job.clone())));
        expected.given.insert(Place::Base(number), given);
    }

    let mut party = Party::new(kernels, &runs, base, planner);
    party.go(case.strangers);
    let actual = party.end();
    for (place, expected) in &expected.given {
        assert_eq!(actual.given.get(place), Some(expected), "{place:?} on {kernels:?}");
    }
    assert_eq!(actual.given.len(), expected.given.len());
    assert!(actual.files == expected.files, "the runs' files differ on {kernels:?}");
}

/// Room for everything at once, prompts in one chunk, whole requests in one step.
fn roomy() -> Config {
    Config { train_tokens_max: 4096, prefill_tokens_max: 4096, ..config() }
}

/// A run without company, one piece of work after another, on one thread.
fn run_alone(kernels: Kernels, number: usize, plan: &RunPlan, outcome: &mut Outcome) {
    let (key, sampler) = (RunKey(number as u64), SamplerKey(0));
    let mut engine = engine_on(1, kernels, roomy());
    engine.create_run(key, plan.spec).unwrap();
    for (step, what) in plan.steps.iter().enumerate() {
        let place = |part| Place::Step { run: number, step, part };
        match what {
            Step::Score(scoring) => {
                let whole = given(run_one(&mut engine, scoring.work(key, scoring.parts.concat())));
                outcome.given.extend(in_parts(scoring, whole, place));
            }
            Step::Optimize(params) => {
                let given = given(run_one(&mut engine, optim_step(key, *params)));
                outcome.given.insert(place(0), given);
            }
            Step::Snapshot(jobs) => {
                engine.snapshot_sampler(sampler, "a", key).unwrap();
                for (part, job) in jobs.iter().enumerate() {
                    let given = sample_and_score(&mut engine, sampler, key, job);
                    outcome.given.insert(place(part), given);
                }
                engine.drop_sampler(sampler);
            }
        }
    }
    outcome.files.push(engine.export_run(key, ALL, "tiny").unwrap());
}

/// A whole request's scores as its parts would give them.
fn in_parts(
    scoring: &Scoring,
    whole: Given,
    place: impl Fn(usize) -> Place,
) -> Vec<(Place, Given)> {
    let Given::Scores(mut logprobs, metrics) = whole else { panic!("{whole:?}") };
    let metrics = metrics.filter(|_| scoring.parts.len() == 1);
    let part = |(part, datums): (usize, &Vec<_>)| {
        let rest = logprobs.split_off(datums.len());
        let own = std::mem::replace(&mut logprobs, rest);
        (place(part), Given::Scores(own, metrics.clone()))
    };
    scoring.parts.iter().enumerate().map(part).collect()
}

/// Samples, and compares the logprobs with those of the run that the sampler was made of.
fn sample_and_score(
    engine: &mut CpuEngine,
    sampler: SamplerKey,
    run: RunKey,
    job: &SampleJob,
) -> Given {
    let output = sampled(run_one(engine, sample(sampler, job.clone())));
    for sequence in &output.sequences {
        let whole = [job.prompt.as_slice(), &sequence.tokens].concat();
        let (logprobs, _) = scored(run_one(engine, forward(run, vec![datum(&whole)])));
        let (of_prompt, drawn) = logprobs[0].split_at(job.prompt.len() - 1);
        if [0.0, 1.0].contains(&job.temperature) && job.top_k.is_none() && job.top_p == 1.0 {
            assert_eq!(drawn, sequence.logprobs, "the trainer's, {job:?}");
        }
        if let Some(scored) = &output.prompt_logprobs {
            assert_eq!(of_prompt, &scored[1..], "the trainer's, {job:?}");
        }
    }
    Given::Samples(bits(&output))
}

fn given(result: Result<Output, Failure>) -> Given {
    let metric = |(name, value): (String, f64)| (name, value.to_bits());
    match result.unwrap() {
        Output::ForwardBackward { logprobs, metrics } => {
            let of = |datum: Vec<f32>| datum.into_iter().map(f32::to_bits).collect();
            let metrics = metrics.into_iter().map(metric).collect();
            Given::Scores(logprobs.into_iter().map(of).collect(), Some(metrics))
        }
        Output::OptimStep { metrics } => Given::Step(metrics.into_iter().map(metric).collect()),
        Output::Sample(output) => Given::Samples(bits(&output)),
    }
}

/// One engine for all of a case's work, in a random order.
struct Party<'a> {
    engine: CpuEngine,
    runs: &'a [RunPlan],
    /// Each run's next step.
    next: Vec<usize>,
    /// Samples that have a sampler.
    samples: Vec<(Place, SamplerKey, SampleJob)>,
    samplers: u64,
    planner: Planner,
    tickets: u64,
    waiting: BTreeMap<Ticket, Place>,
    outcome: Outcome,
}

impl<'a> Party<'a> {
    fn new(
        kernels: Kernels,
        runs: &'a [RunPlan],
        base: Vec<SampleJob>,
        mut planner: Planner,
    ) -> Self {
        let random = &mut planner.random;
        let threads = 1 + random.below(2);
        let mut engine = engine_on(threads, kernels, tight(random));
        engine.spill_to(Box::new(tempfile::tempfile().unwrap()));
        for (number, plan) in runs.iter().enumerate() {
            engine.create_run(RunKey(number as u64), plan.spec).unwrap();
        }
        engine.create_run(STRANGER, spec(3, 5)).unwrap();
        engine.create_sampler(BASE, "a", None).unwrap();
        let base = base.into_iter().enumerate();
        let samples = base.map(|(number, job)| (Place::Base(number), BASE, job)).collect();
        Self {
            engine,
            runs,
            next: vec![0; runs.len()],
            samples,
            samplers: 0,
            planner,
            tickets: 0,
            waiting: BTreeMap::new(),
            outcome: Outcome::default(),
        }
    }

    /// Submits everything in a random order, with steps in between.
    fn go(&mut self, strangers: usize) {
        let mut strangers: VecDeque<usize> = (0..strangers).collect();
        loop {
            let open: Vec<_> = (0..self.runs.len())
                .filter(|run| self.next[*run] < self.runs[*run].steps.len())
                .collect();
            if open.is_empty() && self.samples.is_empty() && strangers.is_empty() {
                return;
            }
            match self.planner.random.below(8) {
                0..3 if !open.is_empty() => {
                    let run = open[self.planner.random.below(open.len())];
                    self.advance(run);
                }
                3 | 4 if !self.samples.is_empty() => {
                    let at = self.planner.random.below(self.samples.len());
                    let (place, sampler, job) = self.samples.swap_remove(at);
                    self.submit(place, sample(sampler, job));
                }
                5 => {
                    if let Some(number) = strangers.pop_front() {
                        self.strange(number);
                    }
                }
                6 if !self.runs.is_empty() => {
                    let run = self.planner.random.below(self.runs.len());
                    self.rest(run);
                }
                _ => {
                    for _ in 0..self.planner.random.below(5) {
                        self.step();
                    }
                }
            }
        }
    }

    fn advance(&mut self, run: usize) {
        let (key, step) = (RunKey(run as u64), self.next[run]);
        self.next[run] += 1;
        let place = |part| Place::Step { run, step, part };
        match &self.runs[run].steps[step] {
            Step::Score(scoring) => {
                for (part, datums) in scoring.parts.iter().enumerate() {
                    self.submit(place(part), scoring.work(key, datums.clone()));
                }
            }
            Step::Optimize(params) => self.submit(place(0), optim_step(key, *params)),
            Step::Snapshot(jobs) => {
                self.settle(run);
                let sampler = SamplerKey(self.samplers);
                self.samplers += 1;
                self.engine.snapshot_sampler(sampler, "a", key).unwrap();
                for (part, job) in jobs.iter().enumerate() {
                    self.samples.push((place(part), sampler, job.clone()));
                }
            }
        }
    }

    /// Work that others must not notice.
    fn strange(&mut self, number: usize) {
        let work = match number % 4 {
            0 => {
                let mut scoring = self.planner.scoring();
                scoring.parts.truncate(1);
                scoring.work(STRANGER, scoring.parts[0].clone())
            }
            1 => {
                let mut bad = datum(&[5, 6, 7, 8]);
                bad.values.insert("weights".to_owned(), vec![f32::MAX; 3]);
                crate::tiny::forward_backward(STRANGER, vec![datum(&[1; 20]), bad])
            }
            _ => sample(BASE, self.planner.job()),
        };
        self.submit(Place::Stranger, work);
        if number % 4 == 3 {
            for _ in 0..self.planner.random.below(DRAWN_TOKENS_MAX) {
                self.step();
            }
            let ticket = Ticket(self.tickets - 1);
            self.engine.cancel(ticket);
            self.waiting.remove(&ticket);
        }
    }

    /// Takes a run out of the engine and brings it back from its files.
    fn rest(&mut self, run: usize) {
        self.settle(run);
        let key = RunKey(run as u64);
        let files = self.engine.export_run(key, ALL, "tiny").unwrap();
        self.engine.drop_run(key);
        for _ in 0..self.planner.random.below(3) {
            self.step();
        }
        self.engine.restore_run(key, &files, ALL).unwrap();
    }

    /// Steps until nothing of a run waits.
    fn settle(&mut self, run: usize) {
        let training = |runs: &[RunPlan], place: &Place| match *place {
            Place::Step { run: of, step, .. } => {
                of == run && !matches!(runs[of].steps[step], Step::Snapshot(_))
            }
            Place::Base(_) | Place::Stranger => false,
        };
        while self.waiting.values().any(|place| training(self.runs, place)) {
            self.step();
        }
    }

    fn submit(&mut self, place: Place, work: Work) {
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        self.engine.submit(ticket, work).unwrap();
        self.waiting.insert(ticket, place);
    }

    fn step(&mut self) {
        for (ticket, result) in self.engine.step() {
            let place = self.waiting.remove(&ticket).expect("what was submitted comes back once");
            if place == Place::Stranger {
                continue;
            }
            let mut given = given(result);
            if let (Given::Scores(_, metrics), Place::Step { run, step, .. }) = (&mut given, place)
                && let Step::Score(scoring) = &self.runs[run].steps[step]
                && scoring.parts.len() > 1
            {
                *metrics = None;
            }
            assert!(self.outcome.given.insert(place, given).is_none(), "{place:?} came twice");
        }
    }

    fn end(mut self) -> Outcome {
        while !self.engine.is_idle() {
            self.step();
        }
        assert!(self.waiting.is_empty(), "{:?}", self.waiting);
        for run in 0..self.runs.len() {
            let files = self.engine.export_run(RunKey(run as u64), ALL, "tiny").unwrap();
            self.outcome.files.push(files);
        }
        self.outcome
    }
}

/// Limits that make steps small and sequences wait, or not.
fn tight(random: &mut SplitMix64) -> Config {
    let mut pick = |choices: &[usize]| choices[random.below(choices.len())];
    let blocks_min = SEQUENCE_TOKENS_MAX.div_ceil(BLOCK_TOKENS);
    Config {
        train_tokens_max: pick(&[1, 40, 128, 4096]),
        prefill_tokens_max: pick(&[1, 5, 17, 64, 4096]),
        max_num_seqs: pick(&[1, 2, 5, 64]),
        speculative_rows_max: pick(&[0, 3, 16, 4096]),
        kv_blocks: pick(&[blocks_min, blocks_min + 1, 2 * blocks_min, 1024]),
        kv_spill_bytes: pick(&[0, 1 << 16, 16 << 20]),
        training_queue_max: 1024,
        samplers_max: 64,
        ..config()
    }
}
