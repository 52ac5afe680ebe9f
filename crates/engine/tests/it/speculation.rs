//! Tokens that are tried ahead of their draws leave no trace in what is drawn.

use tinsmith_engine::{Config, SampleJob, Stats, Stop, Work};

use crate::tiny::{
    BASE, SplitMix64, base, bits, config, engine_on, job, kernel_sets, run_all, sample, sampled,
    text_of,
};

const NEVER: usize = 0;

/// Jobs whose texts come to repeat, and jobs whose texts do not.
fn jobs() -> Vec<SampleJob> {
    let phrase = SplitMix64(5).tokens(7);
    let repeated: Vec<u32> = phrase.iter().copied().cycle().take(60).collect();
    let mut jobs = Vec::new();
    for (seed, temperature) in (0..).zip([0.0, 0.0, 0.05, 0.3, 1.0]) {
        for prompt in [&repeated, &SplitMix64(seed).tokens(9)] {
            let cool = SampleJob { temperature, seed: Some(seed), ..job(prompt, 150) };
            jobs.push(cool.clone());
            jobs.push(SampleJob { num_samples: 3, topk_sample_logprobs: 2, ..cool.clone() });
            jobs.push(SampleJob { max_tokens: Some(3), top_k: Some(1), ..cool });
        }
    }
    jobs
}

fn works(jobs: &[SampleJob]) -> Vec<Work> {
    jobs.iter().map(|job| sample(BASE, job.clone())).collect()
}

/// What the jobs give in an engine of their own, and what it did.
fn outputs(config: Config, jobs: &[SampleJob], together: bool) -> (Vec<Vec<Vec<u32>>>, Stats) {
    let mut engine = base(config);
    let works = works(jobs);
    let results = if together {
        run_all(&mut engine, works)
    } else {
        works.into_iter().flat_map(|work| run_all(&mut engine, vec![work])).collect()
    };
    (results.into_iter().map(|result| bits(&sampled(result))).collect(), engine.stats())
}

#[test]
fn tried_tokens_leave_no_trace() {
    let jobs = jobs();
    let (expected, plain) =
        outputs(Config { speculative_rows_max: NEVER, ..config() }, &jobs, true);
    assert_eq!((plain.tried_tokens, plain.tried_tokens_kept), (0, 0));
    for speculative_rows_max in [2, 16, 300] {
        for together in [true, false] {
            let limits = Config { speculative_rows_max, ..config() };
            let (actual, stats) = outputs(limits, &jobs, together);
            let how = format!("{speculative_rows_max} rows, together: {together}");
            assert_eq!(actual, expected, "{how}");
            assert_eq!(stats.decode_tokens, plain.decode_tokens, "{how}");
            assert!(stats.tried_tokens_kept > 0 || together, "{how}: {stats:?}");
            assert!(stats.tried_tokens > stats.tried_tokens_kept || together, "{how}: {stats:?}");
        }
    }
}

#[test]
fn a_text_that_repeats_takes_few_steps() {
    let greedy = SampleJob { temperature: 0.0, ..job(&SplitMix64(5).tokens(9), 300) };
    let (expected, plain) = outputs(
        Config { speculative_rows_max: NEVER, ..config() },
        std::slice::from_ref(&greedy),
        true,
    );
    let (actual, stats) = outputs(config(), &[greedy], true);
    assert_eq!(actual, expected);
    assert_eq!(
        stats.steps + stats.tried_tokens_kept,
        plain.steps,
        "a token that is kept saves a step"
    );
    assert!(stats.tried_tokens_kept > 100, "{stats:?}");
}

#[test]
fn every_kernel_set_verifies_to_the_bit() {
    for kernels in kernel_sets() {
        let mut of = [NEVER, 16].map(|speculative_rows_max| {
            let mut engine = engine_on(2, kernels, Config { speculative_rows_max, ..config() });
            engine.create_sampler(BASE, "tenant", None).unwrap();
            let results = works(&jobs()).into_iter();
            let results = results.flat_map(|work| run_all(&mut engine, vec![work]));
            results.map(|result| bits(&sampled(result))).collect::<Vec<_>>()
        });
        let [plain, tried] = &mut of;
        assert_eq!(tried, plain, "{kernels}");
    }
}

#[test]
fn a_stop_in_the_middle_of_tried_tokens_ends_the_sample() {
    let free = SampleJob { temperature: 0.0, ..job(&SplitMix64(5).tokens(9), 200) };
    let mut engine = base(config());
    let tokens = sampled(run_all(&mut engine, works(std::slice::from_ref(&free))).remove(0))
        .sequences[0]
        .tokens
        .clone();
    for place in [40, 41, 42, 43, 77] {
        let text: String =
            tokens[place - 1..=place].iter().map(|token| text_of(*token as usize)).collect();
        let stop = Stop::Strings(vec![text]);
        let job = SampleJob { stop, ..free.clone() };
        let plain = outputs(
            Config { speculative_rows_max: NEVER, ..config() },
            std::slice::from_ref(&job),
            true,
        );
        assert_eq!(outputs(config(), &[job], true).0, plain.0, "{place}");
    }
}

#[test]
fn few_blocks_bound_what_is_tried() {
    let jobs = jobs();
    let (expected, _) = outputs(Config { speculative_rows_max: NEVER, ..config() }, &jobs, true);
    for kv_blocks in [8, 9, 20] {
        let limits = Config { kv_blocks, max_model_len: 32 * 8, ..config() };
        assert_eq!(outputs(limits, &jobs, true).0, expected, "{kv_blocks} blocks");
    }
}
