//! What a sequence computes never depends on what runs beside it: every comparison is of bits.

mod plan;
mod random;
mod within;

use tinsmith_backend_cpu::{Config as CpuConfig, CpuBackend, KernelSet, Kernels};
use tinsmith_engine::{Config, Parts, RunKey, SamplerKey, Stop, Work, training_step_bytes};

use crate::tiny::{
    CpuEngine, SplitMix64, bits, config, datum, datums, engine, engine_on, forward,
    forward_backward, job, kernel_sets, run_all, run_one, sample, sampled, scored, spec,
    train_a_little,
};

const RUNS: u64 = 3;

/// An engine with three trained runs, each with a sampler of the same key, and a sampler of the base model.
fn trained(threads: usize, config: Config) -> CpuEngine {
    trained_on(engine(threads, config))
}

fn trained_on(mut engine: CpuEngine) -> CpuEngine {
    for run in 0..RUNS {
        engine
            .create_run(RunKey(run), spec([4, 7, 1][usize::try_from(run).unwrap()], run))
            .unwrap();
        train_a_little(&mut engine, RunKey(run));
        engine.snapshot_sampler(SamplerKey(run), "a", RunKey(run)).unwrap();
    }
    engine.create_sampler(SamplerKey(RUNS), "a", None).unwrap();
    engine
}

/// Jobs of all kinds and lengths, with any of the samplers.
fn jobs(count: usize) -> Vec<Work> {
    let mut random = SplitMix64(99);
    let one = |number: usize| {
        let length = 1 + random.below(90);
        let mut job = job(&random.tokens(length), 1 + random.below(60));
        job.num_samples = 1 + random.below(3);
        job.seed = Some(random.next());
        job.temperature = [0.0, 0.7, 1.0, 1.3][number % 4];
        job.top_k = [None, Some(20)][number % 2];
        job.top_p = [1.0, 0.9, 1.0][number % 3];
        job.prompt_logprobs = number.is_multiple_of(2);
        job.stop = [Stop::Default, Stop::Tokens(Vec::new())][number % 2].clone();
        sample(SamplerKey(random.next() % (RUNS + 1)), job)
    };
    (0..count).map(one).collect()
}

fn all_bits(engine: &mut CpuEngine, works: Vec<Work>) -> Vec<Vec<Vec<u32>>> {
    run_all(engine, works).into_iter().map(|result| bits(&sampled(result))).collect()
}

/// The reference: each job alone, one thread, prompts in one chunk.
fn one_at_a_time(count: usize) -> Vec<Vec<Vec<u32>>> {
    let mut engine = trained(1, config());
    jobs(count).into_iter().flat_map(|work| all_bits(&mut engine, vec![work])).collect()
}

#[test]
fn samples_alone_equal_samples_among_strangers() {
    let expected = one_at_a_time(64);
    for threads in [1, 2] {
        let mut engine = trained(threads, config());
        assert_eq!(all_bits(&mut engine, jobs(64)), expected, "{threads} threads");
    }
    let mut reversed = trained(2, config());
    let works = jobs(64).into_iter().rev().collect();
    let mut actual = all_bits(&mut reversed, works);
    actual.reverse();
    assert_eq!(actual, expected, "in another order");
}

#[test]
fn every_kernel_set_draws_the_same_on_all_its_paths() {
    for set in KernelSet::ALL.into_iter().filter(|set| set.is_available()) {
        let best = Kernels::best(set).unwrap();
        let mut engine = trained_on(engine_on(1, best, config()));
        let alone = jobs(16).into_iter().flat_map(|work| all_bits(&mut engine, vec![work]));
        let expected = alone.collect::<Vec<_>>();
        for kernels in kernel_sets().into_iter().filter(|kernels| kernels.set() == set) {
            let mut engine = trained_on(engine_on(2, kernels, config()));
            assert_eq!(all_bits(&mut engine, jobs(16)), expected, "{kernels}");
        }
    }
}

#[test]
fn chunked_prompts_equal_whole_ones() {
    let expected = one_at_a_time(24);
    for prefill_tokens_max in [1, 7, 33] {
        let mut engine = trained(1, Config { prefill_tokens_max, ..config() });
        assert_eq!(all_bits(&mut engine, jobs(24)), expected, "chunks of {prefill_tokens_max}");
    }
}

#[test]
fn preempted_samples_equal_undisturbed_ones() {
    let expected = one_at_a_time(24);
    let mut engine = trained(1, Config { kv_blocks: 6, ..config() });
    assert_eq!(all_bits(&mut engine, jobs(24)), expected);
    assert!(engine.stats().preemptions > 0, "the cache was meant to be too small");
    let mut engine = trained(1, Config { max_num_seqs: 2, ..config() });
    assert_eq!(all_bits(&mut engine, jobs(24)), expected);
}

#[test]
fn training_beside_sampling_changes_neither() {
    let expected = one_at_a_time(16);
    let mut engine = trained(1, config());
    let alone = scored(run_one(&mut engine, forward_backward(RunKey(0), datums(5, 9))));
    let mut engine = trained(1, config());
    let mut works = jobs(16);
    works.push(forward_backward(RunKey(0), datums(5, 9)));
    let mut results = run_all(&mut engine, works);
    assert_eq!(scored(results.pop().unwrap()), alone);
    let samples: Vec<_> = results.into_iter().map(|result| bits(&sampled(result))).collect();
    assert_eq!(samples, expected);
}

#[test]
fn sampler_logprobs_equal_trainer_logprobs() {
    let mut engine = trained(2, config());
    for key in 0..RUNS {
        let prompt = SplitMix64(key).tokens(41);
        let mut request = job(&prompt, 90);
        request.num_samples = 3;
        request.prompt_logprobs = true;
        let output = sampled(run_one(&mut engine, sample(SamplerKey(key), request)));
        for sequence in &output.sequences {
            let whole = [prompt.as_slice(), &sequence.tokens].concat();
            for work in [forward(RunKey(key), vec![datum(&whole)]), {
                let mut datum = datum(&whole);
                datum.values.insert("weights".to_owned(), vec![1.0; whole.len() - 1]);
                forward_backward(RunKey(key), vec![datum])
            }] {
                let (logprobs, _) = scored(run_one(&mut engine, work));
                let of_prompt = &output.prompt_logprobs.as_ref().unwrap()[1..];
                assert_eq!(logprobs[0], [of_prompt, &sequence.logprobs].concat());
            }
        }
    }
}

/// The gradient file of run 0 after the works, with run 0 and two strangers resident.
fn gradient(threads: usize, config: Config, works: Vec<Work>) -> Vec<u8> {
    let mut engine = trained(threads, config);
    for result in run_all(&mut engine, works) {
        scored(result);
    }
    let parts = Parts { optimizer: false, gradient: true };
    engine.export_run(RunKey(0), parts, "tiny").unwrap().remove("gradient.safetensors").unwrap()
}

#[test]
fn gradients_do_not_depend_on_how_a_batch_is_split() {
    let all = datums(3, 12);
    let whole = || vec![forward_backward(RunKey(0), all.clone())];
    let expected = gradient(1, config(), whole());
    let split = [all[..5].to_vec(), all[5..6].to_vec(), all[6..].to_vec()]
        .map(|part| forward_backward(RunKey(0), part));
    assert_eq!(gradient(1, config(), split.to_vec()), expected, "three requests");
    for train_tokens_max in [1, 100, 10_000] {
        let config = Config { train_tokens_max, ..config() };
        assert_eq!(gradient(2, config, whole()), expected, "steps of {train_tokens_max} tokens");
    }
    let mut strangers = split.to_vec();
    strangers.insert(1, forward_backward(RunKey(1), datums(8, 7)));
    strangers.insert(0, forward_backward(RunKey(2), datums(9, 9)));
    strangers.push(forward(RunKey(2), datums(10, 4)));
    assert_eq!(gradient(2, config(), strangers), expected, "among strangers");
}

#[test]
fn gradients_do_not_depend_on_layers_being_computed_again() {
    let mut random = SplitMix64(4);
    let all = [30, 500, 2, 400].map(|length| datum(&random.tokens(length)));
    let whole = || vec![forward_backward(RunKey(0), all.to_vec())];
    let backend = CpuBackend::new(CpuConfig { threads: 1, kernels: Kernels::f32() }).unwrap();
    let decoder = engine(1, config()).decoder_config().clone();
    // The state of 499 tokens does not fit, that of 399 does.
    let activation_bytes_max = training_step_bytes(&backend, &decoder, 499, 4) - 1;
    let tight = Config { activation_bytes_max, ..config() };
    assert_eq!(gradient(1, tight, whole()), gradient(1, config(), whole()));
}

#[test]
fn more_samples_leave_the_first_ones_as_they_were() {
    let mut engine = trained(1, config());
    let mut request = job(&SplitMix64(5).tokens(37), 40);
    request.num_samples = 2;
    let two = sampled(run_one(&mut engine, sample(SamplerKey(0), request.clone())));
    request.num_samples = 6;
    let six = sampled(run_one(&mut engine, sample(SamplerKey(0), request.clone())));
    assert_eq!(six.sequences[..2], two.sequences);
    assert_ne!(six.sequences[0].tokens, six.sequences[1].tokens);
    request.seed = Some(8);
    let other = sampled(run_one(&mut engine, sample(SamplerKey(0), request)));
    assert_ne!(other.sequences[0].tokens, six.sequences[0].tokens);
}
