//! Samples that are drawn while a training step is under way.

use std::collections::BTreeMap;

use tinsmith_engine::{Between, Failure, Output, Parts, RunKey, Ticket, Work};

use super::{all_bits, jobs, trained, trained_on};
use crate::tiny::{
    CpuEngine, adam, bits, config, datums, engine_on, forward_backward, kernel_sets, optim_step,
    run_all, sampled, scored,
};

type Results = BTreeMap<Ticket, Result<Output, Failure>>;

/// Makes a sampling step after every so many tasks of the ops of training.
struct Within<'a> {
    engine: &'a mut CpuEngine,
    results: &'a mut Results,
    tasks: usize,
    until_due: usize,
    /// Steps that were made so.
    steps: usize,
}

impl Between for Within<'_> {
    fn is_due(&mut self) -> bool {
        self.until_due = self.until_due.saturating_sub(1);
        self.until_due == 0
    }

    fn run(&mut self) {
        self.until_due = self.tasks;
        self.steps += usize::from(!self.engine.is_sampling_idle());
        self.results.extend(self.engine.sample());
    }
}

/// Two requests with a step of the optimizer between them.
fn training() -> Vec<Work> {
    vec![
        forward_backward(RunKey(0), datums(5, 9)),
        optim_step(RunKey(0), adam(0.01)),
        forward_backward(RunKey(0), datums(6, 2)),
    ]
}

fn gradient(engine: &mut CpuEngine) -> Vec<u8> {
    let parts = Parts { optimizer: false, gradient: true };
    engine.export_run(RunKey(0), parts, "tiny").unwrap().remove("gradient.safetensors").unwrap()
}

/// Trains, with the jobs' samples within every step; gives the samples' bits, what training gave, and how
/// many sampling steps were made within one of training.
fn both(mut engine: CpuEngine, count: usize, tasks: usize) -> (Vec<Vec<Vec<u32>>>, Trained, usize) {
    let works = jobs(count).into_iter().chain(training());
    for (ticket, work) in (0u64..).zip(works) {
        engine.submit(Ticket(ticket), work).unwrap();
    }
    let (mut results, mut steps) = (Results::new(), 0);
    while let Some(mut training) = engine.begin_training() {
        assert!(engine.begin_training().is_none(), "there is one");
        assert!(engine.submit(Ticket(1000), forward_backward(RunKey(0), datums(1, 1))).is_err());
        let mut within = Within {
            engine: &mut engine,
            results: &mut results,
            tasks,
            until_due: tasks,
            steps: 0,
        };
        training.step(&mut within);
        steps += within.steps;
        results.extend(engine.end_training(training));
    }
    while !engine.is_idle() {
        results.extend(engine.step());
    }
    let mut results: Vec<_> = results.into_values().collect();
    let trained = results.split_off(count);
    let samples = results.into_iter().map(|result| bits(&sampled(result))).collect();
    (samples, Trained::of(trained, &mut engine), steps)
}

/// What training gave.
#[derive(Debug, PartialEq)]
struct Trained {
    first: (Vec<Vec<f32>>, BTreeMap<String, f64>),
    last: (Vec<Vec<f32>>, BTreeMap<String, f64>),
    gradient: Vec<u8>,
}

impl Trained {
    fn of(mut results: Vec<Result<Output, Failure>>, engine: &mut CpuEngine) -> Self {
        let last = scored(results.pop().unwrap());
        results.pop().unwrap().unwrap();
        let first = scored(results.pop().unwrap());
        Self { first, last, gradient: gradient(engine) }
    }
}

#[test]
fn samples_within_training_steps_change_neither() {
    const JOBS: usize = 12;
    for kernels in kernel_sets() {
        let mut alone = trained_on(engine_on(1, kernels, config()));
        let expected: Vec<_> =
            jobs(JOBS).into_iter().flat_map(|work| all_bits(&mut alone, vec![work])).collect();
        let results = run_all(&mut alone, training());
        let expected_training = Trained::of(results, &mut alone);
        for (threads, tasks) in [(1, 1), (2, 1), (2, 17)] {
            let engine = trained_on(engine_on(threads, kernels, config()));
            let (samples, training, steps) = both(engine, JOBS, tasks);
            assert!(steps > 10, "{kernels}: {steps} sampling steps were made within training");
            assert_eq!(samples, expected, "{kernels}, {threads} threads, every {tasks} tasks");
            assert_eq!(training, expected_training, "{kernels}, {threads} threads, {tasks} tasks");
        }
    }
}

/// While the training half is out, its gauges stay as they were, and nothing finds a run.
#[test]
fn an_engine_without_its_training_half_samples() {
    let mut engine = trained(1, config());
    engine.submit(Ticket(0), training().remove(0)).unwrap();
    let before = engine.stats();
    let training = engine.begin_training().unwrap();
    let during = engine.stats();
    assert_eq!((during.runs, during.training_queue), (before.runs, 1));
    assert!(gradient_of(&mut engine).is_err());
    assert!(engine.is_idle(), "there is nothing to sample");
    assert!(engine.end_training(training).is_empty(), "no step was made");
    while !engine.is_idle() {
        engine.step();
    }
    assert!(gradient_of(&mut engine).is_ok());
}

fn gradient_of(engine: &mut CpuEngine) -> tinsmith_engine::Result<tinsmith_engine::Files> {
    engine.export_run(RunKey(0), Parts::default(), "tiny")
}
