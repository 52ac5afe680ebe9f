//! What is drawn, against the exact probabilities: chi-square tests at fixed seeds, p above 1e-4.

use tinsmith_engine::{Drawn, PromptTargets, SampleJob};

use crate::tiny::{
    BASE, CpuEngine, SplitMix64, VOCAB, base, config, job, run_one, sample, sampled,
};

/// Samples of one job.
const SAMPLES: usize = 128;
/// So that there are more than 20,000 draws.
const JOBS: u64 = 160;
/// The normal deviate that is exceeded with a probability of 1e-4.
const DEVIATE_MAX: f64 = 3.719;

fn prompt() -> Vec<u32> {
    SplitMix64(21).tokens(12)
}

/// The probability of every token after the prompt, at temperature 1.
fn plain(engine: &mut CpuEngine) -> Vec<f64> {
    let prompt = [prompt(), vec![1]].concat();
    let rows = (0..prompt.len()).map(|row| if row + 1 < prompt.len() { 0 } else { VOCAB });
    let targets = PromptTargets {
        rows: rows.collect(),
        ids: (0..u32::try_from(VOCAB).unwrap()).map(Some).collect(),
        columns: VOCAB,
        column_of: Some((0..VOCAB).collect()),
    };
    let request = SampleJob { target_prompt_logprobs: Some(targets), ..job(&prompt, 0) };
    let output = sampled(run_one(engine, sample(BASE, request)));
    let (_, logprobs) = output.target_prompt_logprobs.unwrap();
    logprobs.into_iter().map(|logprob| f64::from(logprob).exp()).collect()
}

/// The distribution that a job draws from, in f64.
fn exact(plain: &[f64], job: &SampleJob) -> Vec<f64> {
    let tempered = |p: f64| p.powf(1.0 / f64::from(job.temperature));
    let mut p: Vec<f64> = plain.iter().copied().map(tempered).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    order.truncate(job.top_k.unwrap_or(VOCAB));
    let wanted = f64::from(job.top_p) * order.iter().map(|&id| p[id]).sum::<f64>();
    let mut sum = 0.0;
    let reaches = |&id: &usize| {
        sum += p[id];
        sum >= wanted
    };
    let last = order.iter().position(reaches).unwrap_or(order.len() - 1);
    let kept = &order[..=last];
    let total: f64 = kept.iter().map(|&id| p[id]).sum();
    for (id, p) in p.iter_mut().enumerate() {
        *p = if kept.contains(&id) { *p / total } else { 0.0 };
    }
    p
}

/// The first token of every sample of many jobs.
fn draws(engine: &mut CpuEngine, request: &SampleJob) -> Vec<usize> {
    let mut drawn = Vec::new();
    for seed in 0..JOBS {
        let request = SampleJob { seed: Some(seed), num_samples: SAMPLES, ..request.clone() };
        let output = sampled(run_one(engine, sample(BASE, request)));
        drawn.extend(output.sequences.iter().map(|sequence| sequence.tokens[0] as usize));
    }
    drawn
}

/// Fails if the counts are further from the expected ones than chance allows.
fn check(what: &str, cells: impl Iterator<Item = usize>, p: &[f64]) {
    let mut counts = vec![0.0; p.len()];
    let mut total = 0.0;
    for cell in cells {
        counts[cell] += 1.0;
        total += 1.0;
    }
    // Cells that are seldom hit are taken together.
    let (mut statistic, mut classes, mut rest) = (0.0, 0.0, (0.0, 0.0));
    let mut class = |count: f64, expected: f64| {
        statistic += (count - expected).powi(2) / expected;
        classes += 1.0;
    };
    for (count, p) in counts.into_iter().zip(p) {
        let expected = p * total;
        if expected >= 8.0 {
            class(count, expected);
        } else if *p == 0.0 {
            assert_eq!(count, 0.0, "{what}: a token that cannot be drawn");
        } else {
            rest = (rest.0 + count, rest.1 + expected);
        }
    }
    if rest.1 > 0.0 {
        class(rest.0, rest.1);
    }
    // Wilson and Hilferty's normal approximation of the chi-square distribution (1931).
    let freedom: f64 = classes - 1.0;
    assert!(freedom >= 1.0, "{what}: more than one token can be drawn");
    let spread = 2.0 / (9.0 * freedom);
    let deviate = ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt();
    assert!(deviate < DEVIATE_MAX, "{what}: chi-square {statistic} of {freedom}");
}

#[test]
fn draws_follow_temperature_top_k_and_top_p() {
    let mut engine = base(config());
    let plain = plain(&mut engine);
    let free = job(&prompt(), 1);
    let cases = [
        ("plain", free.clone()),
        ("cold", SampleJob { temperature: 0.6, ..free.clone() }),
        ("hot", SampleJob { temperature: 1.7, ..free.clone() }),
        ("top-k", SampleJob { top_k: Some(7), ..free.clone() }),
        ("top-p", SampleJob { top_p: 0.7, ..free.clone() }),
        ("all", SampleJob { temperature: 1.3, top_k: Some(20), top_p: 0.8, ..free }),
    ];
    for (what, request) in cases {
        let drawn = draws(&mut engine, &request);
        assert!(drawn.len() > 20_000);
        check(what, drawn.into_iter(), &exact(&plain, &request));
    }
}

#[test]
fn samples_of_one_job_are_independent() {
    let mut engine = base(config());
    let request = SampleJob { top_k: Some(4), ..job(&prompt(), 1) };
    let p = exact(&plain(&mut engine), &request);
    let drawn = draws(&mut engine, &request);
    let joint: Vec<f64> = p.iter().flat_map(|one| p.iter().map(move |other| one * other)).collect();
    let pairs = drawn.chunks_exact(2).map(|pair| pair[0] * VOCAB + pair[1]);
    check("neighbours", pairs, &joint);
    // The same sample of jobs whose seeds follow on each other.
    let pairs = drawn.chunks_exact(2 * SAMPLES).flat_map(|jobs| {
        let (one, other) = jobs.split_at(SAMPLES);
        one.iter().zip(other).map(|(one, other)| one * VOCAB + other).collect::<Vec<_>>()
    });
    check("seeds", pairs, &joint);
    assert_eq!(drawn, draws(&mut engine, &request));
}

#[test]
fn alternatives_follow_the_temperature_alone() {
    let mut engine = base(config());
    let plain = plain(&mut engine);
    let prompt = [prompt(), vec![1]].concat();
    let (k, positions) = (128, prompt.len() - 1);
    let mut drawn: Vec<Drawn> = Vec::new();
    let request = SampleJob { temperature: 1.4, top_k: Some(2), top_p: 0.5, ..job(&prompt, 1) };
    for seed in 0..JOBS {
        let request = SampleJob { seed: Some(seed), prompt_alt_tokens: k, ..request.clone() };
        let output = sampled(run_one(&mut engine, sample(BASE, request)));
        let all = output.prompt_alt_tokens.unwrap();
        assert_eq!(all.len(), positions * k);
        drawn.extend(&all[(positions - 1) * k..]);
    }
    let free = SampleJob { top_k: None, top_p: 1.0, ..request };
    let p = exact(&plain, &free);
    check("alternatives", drawn.iter().map(|each| each.token as usize), &p);
    for each in drawn {
        let expected = p[each.token as usize].ln();
        assert!((f64::from(each.logprob) - expected).abs() < 1e-4, "{each:?} for {expected}");
    }
}
