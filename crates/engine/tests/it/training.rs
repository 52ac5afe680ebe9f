//! Losses, gradients and optimizer steps through the engine's queues.

use std::collections::BTreeMap;

use tinsmith_engine::{Config, Datum, Output, Parts, RunKey, SamplerKey, Ticket, Work};

use crate::tiny::{
    CpuEngine, adam, config, datum, datums, engine, forward, forward_backward, job, optim_step,
    run_all, run_one, sample, sampled, scored, spec,
};

const RUN: RunKey = RunKey(0);
const OTHER: RunKey = RunKey(1);

fn ready(config: Config) -> CpuEngine {
    let mut engine = engine(1, config);
    engine.create_run(RUN, spec(4, 0)).unwrap();
    engine.create_run(OTHER, spec(2, 1)).unwrap();
    engine
}

fn gradient(engine: &mut CpuEngine, run: RunKey) -> Vec<u8> {
    let parts = Parts { optimizer: false, gradient: true };
    engine.export_run(run, parts, "tiny").unwrap().remove("gradient.safetensors").unwrap()
}

fn importance_sampling(run: RunKey, datums: Vec<Datum>) -> Work {
    let loss = "importance_sampling".into();
    Work::ForwardBackward { run, datums, loss, config: BTreeMap::new(), forward_only: false }
}

fn optimized(result: Result<Output, tinsmith_engine::Failure>) -> BTreeMap<String, f64> {
    match result.unwrap() {
        Output::OptimStep { metrics } => metrics,
        other @ (Output::ForwardBackward { .. } | Output::Sample(_)) => panic!("{other:?}"),
    }
}

#[test]
fn the_loss_falls() {
    let mut engine = ready(config());
    let data: Vec<Datum> = datums(1, 4).into_iter().map(unweighted).collect();
    let mut losses = Vec::new();
    for _ in 0..30 {
        let works = vec![forward_backward(RUN, data.clone()), optim_step(RUN, adam(0.01))];
        let mut results = run_all(&mut engine, works).into_iter();
        let (logprobs, metrics) = scored(results.next().unwrap());
        let sum: f64 = logprobs.iter().flatten().map(|logprob| -f64::from(*logprob)).sum();
        assert_eq!(metrics["loss:sum"], sum);
        let tokens: u32 = data.iter().map(|datum| u32::try_from(datum.tokens.len()).unwrap()).sum();
        assert_eq!(metrics["tokens:sum"], f64::from(tokens));
        losses.push(metrics["loss:sum"]);
        assert!(optimized(results.next().unwrap())["grad_norm:max"] > 0.0);
    }
    assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
}

fn unweighted(mut datum: Datum) -> Datum {
    datum.values.clear();
    datum
}

#[test]
fn importance_sampling_on_the_samplers_own_logprobs_has_ratio_one() {
    let mut engine = ready(config());
    engine.snapshot_sampler(SamplerKey(0), "a", RUN).unwrap();
    let prompt = [5, 6, 7, 8];
    let output = sampled(run_one(&mut engine, sample(SamplerKey(0), job(&prompt, 20))));
    let sequence = &output.sequences[0];
    let mut datum = datum(&[prompt.as_slice(), &sequence.tokens].concat());
    let padding = vec![0.0; prompt.len() - 1];
    let logprobs = [padding.as_slice(), &sequence.logprobs].concat();
    datum.values.insert("logprobs".to_owned(), logprobs);
    let advantages = [padding.as_slice(), &[0.5; 20]].concat();
    datum.values.insert("advantages".to_owned(), advantages);
    let (_, metrics) = scored(run_one(&mut engine, importance_sampling(RUN, vec![datum.clone()])));
    assert_eq!(metrics["loss:sum"], -0.5 * 20.0);
    assert_eq!(metrics["ratio:max"], 1.0);
    assert_eq!(metrics["kl_sampler_learner:sum"], 0.0);
    // At ratio one its gradient is that of cross-entropy weighted by the advantages.
    let actual = gradient(&mut engine, RUN);
    optimized(run_one(&mut engine, optim_step(RUN, adam(0.0))));
    let weights = datum.values.remove("advantages").unwrap();
    datum.values = BTreeMap::from([("weights".to_owned(), weights)]);
    scored(run_one(&mut engine, forward_backward(RUN, vec![datum])));
    assert_eq!(gradient(&mut engine, RUN), actual);
}

#[test]
fn forward_leaves_the_gradient_alone() {
    let mut engine = ready(config());
    let (with_gradient, _) = scored(run_one(&mut engine, forward_backward(RUN, datums(1, 3))));
    let before = gradient(&mut engine, RUN);
    let (without, _) = scored(run_one(&mut engine, forward(RUN, datums(1, 3))));
    assert_eq!(without, with_gradient);
    assert_eq!(gradient(&mut engine, RUN), before);
}

#[test]
fn a_step_without_gradients_counts_and_changes_nothing() {
    let mut engine = ready(config());
    let before = engine.export_run(RUN, Parts::default(), "tiny").unwrap();
    let metrics = optimized(run_one(&mut engine, optim_step(RUN, adam(0.1))));
    assert_eq!(metrics["optim_steps:max"], 1.0);
    assert_eq!(metrics["grad_norm:max"], 0.0);
    assert_eq!(engine.export_run(RUN, Parts::default(), "tiny").unwrap(), before);
}

/// A request that overflows fails alone: its run's gradient is as it was, and requests that shared its
/// steps give the same bits as without it.
fn fails_alone(bad: &Work, expected: &str) {
    for train_tokens_max in [16, 4096] {
        let limits = Config { train_tokens_max, ..config() };
        let mut undisturbed = ready(limits);
        scored(run_one(&mut undisturbed, forward_backward(RUN, datums(1, 3))));
        let own = gradient(&mut undisturbed, RUN);
        let other_scored = scored(run_one(&mut undisturbed, forward_backward(OTHER, datums(2, 5))));
        let other = gradient(&mut undisturbed, OTHER);

        let mut engine = ready(limits);
        let works = vec![
            forward_backward(RUN, datums(1, 3)),
            bad.clone(),
            forward_backward(OTHER, datums(2, 5)),
        ];
        let mut results = run_all(&mut engine, works).into_iter();
        scored(results.next().unwrap());
        let failure = results.next().unwrap().unwrap_err();
        assert!(failure.user);
        assert!(failure.message.starts_with(expected), "{}", failure.message);
        assert_eq!(scored(results.next().unwrap()), other_scored);
        assert_eq!(gradient(&mut engine, RUN), own);
        assert_eq!(gradient(&mut engine, OTHER), other);
        scored(run_one(&mut engine, forward_backward(RUN, datums(3, 2))));
    }
}

#[test]
fn a_loss_that_overflows_fails_alone() {
    let good = datums(1, 3).into_iter().map(|mut datum| {
        let length = datum.tokens.len();
        datum.values.insert("logprobs".to_owned(), vec![-4.0; length]);
        datum.values.insert("advantages".to_owned(), vec![0.5; length]);
        datum
    });
    let mut data: Vec<Datum> = good.collect();
    *data[1].values.get_mut("logprobs").unwrap().last_mut().unwrap() = -10_000.0;
    let last = data[1].tokens.len() - 1;
    let expected = format!("datum 1: the loss is not finite at token {last}: logprob ");
    fails_alone(&importance_sampling(RUN, data), &expected);
}

#[test]
fn a_gradient_that_overflows_fails_alone() {
    let mut data = datums(1, 3);
    data[2].values.get_mut("weights").unwrap().fill(f32::MAX);
    fails_alone(&forward_backward(RUN, data), "the gradient is not finite");
}

#[test]
fn work_of_a_run_keeps_its_order() {
    let mut engine = ready(Config { train_tokens_max: 32, ..config() });
    let mut finished = Vec::new();
    for (ticket, work) in [
        (1, forward_backward(RUN, datums(1, 5))),
        (2, optim_step(RUN, adam(0.01))),
        (3, forward(RUN, datums(1, 1))),
        (4, forward_backward(OTHER, datums(1, 1))),
        (5, optim_step(OTHER, adam(0.01))),
        (6, optim_step(OTHER, adam(0.01))),
    ] {
        engine.submit(Ticket(ticket), work).unwrap();
    }
    assert!(engine.export_run(RUN, Parts::default(), "tiny").is_err(), "it is not idle");
    while !engine.is_idle() {
        finished.extend(engine.step().into_iter().map(|(ticket, _)| ticket.0));
    }
    let place = |ticket| finished.iter().position(|other| *other == ticket).unwrap();
    assert!(place(1) < place(2) && place(2) < place(3), "{finished:?}");
    assert!(place(4) < place(5) && place(5) < place(6), "{finished:?}");
    assert!(place(6) < place(3), "a short queue does not wait for a long one: {finished:?}");
}

#[test]
fn dropping_a_run_fails_its_work_alone() {
    let mut engine = ready(config());
    engine.submit(Ticket(1), forward_backward(RUN, datums(1, 2))).unwrap();
    engine.submit(Ticket(2), forward_backward(OTHER, datums(1, 2))).unwrap();
    engine.drop_run(RUN);
    let mut results = BTreeMap::new();
    while !engine.is_idle() {
        results.extend(engine.step());
    }
    let failure = results.remove(&Ticket(1)).unwrap().unwrap_err();
    assert_eq!(failure.message, "the training run was unloaded");
    scored(results.remove(&Ticket(2)).unwrap());
    assert!(engine.submit(Ticket(3), optim_step(RUN, adam(0.1))).is_err());
}
