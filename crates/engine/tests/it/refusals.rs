//! Bad input is refused at submission, with the place named, and nothing is queued.

use std::collections::BTreeMap;

use tinsmith_engine::{
    Config, Datum, Error, LoraSpec, RunKey, SampleJob, SamplerKey, Stop, Ticket, Work,
};

use crate::tiny::{
    CpuEngine, adam, config, datum, engine, forward_backward, job, optim_step, run_one, sample,
    spec,
};

fn ready(config: Config) -> CpuEngine {
    let mut engine = engine(1, config);
    engine.create_run(RunKey(0), spec(4, 0)).unwrap();
    engine.create_sampler(SamplerKey(0), "a", None).unwrap();
    engine
}

/// Refused as the caller's fault with this message; the engine has nothing to do and goes on.
fn check(engine: &mut CpuEngine, work: Work, expected: &str) {
    let error = engine.submit(Ticket(9), work).unwrap_err();
    assert!(matches!(error, Error::User { .. }), "{error:?}");
    assert_eq!(error.to_string(), expected);
    assert!(engine.is_idle());
}

#[test]
fn sampling_jobs() {
    let mut engine = ready(config());
    let good = job(&[1, 2, 3], 5);
    let mut refuse = |job: SampleJob, expected: &str| {
        check(&mut engine, sample(SamplerKey(0), job), expected);
    };
    let prompt = vec![1, 2, 3, 99_999];
    refuse(
        SampleJob { prompt, ..good.clone() },
        "prompt[3] = 99999 is outside the vocabulary of 64 tokens",
    );
    refuse(
        SampleJob { prompt: Vec::new(), ..good.clone() },
        "prompt has no tokens; give at least one",
    );
    refuse(
        SampleJob { max_tokens: Some(510), ..good.clone() },
        "Prompt length plus max_tokens exceeds the model's context window: 3 prompt tokens + 510 \
         max_tokens > 512.",
    );
    refuse(
        SampleJob { max_tokens: Some(usize::MAX), ..good.clone() },
        "Prompt length plus max_tokens exceeds the model's context window: 3 prompt tokens + \
         18446744073709551615 max_tokens > 512.",
    );
    refuse(
        SampleJob { prompt: vec![1; 512], max_tokens: None, ..good.clone() },
        "Prompt length plus max_tokens exceeds the model's context window: 512 prompt tokens + 1 \
         max_tokens > 512.",
    );
    refuse(
        SampleJob { max_tokens: Some(0), ..good.clone() },
        "max_tokens = 0 asks for nothing; give at least 1, or ask for prompt_logprobs",
    );
    refuse(
        SampleJob { num_samples: 0, ..good.clone() },
        "num_samples = 0 is not between 1 and 128",
    );
    refuse(
        SampleJob { temperature: -0.5, ..good.clone() },
        "temperature = -0.5 must be a number of at least 0",
    );
    refuse(
        SampleJob { top_p: f32::NAN, ..good.clone() },
        "top_p = NaN must be above 0 and at most 1",
    );
    refuse(
        SampleJob { top_k: Some(0), ..good.clone() },
        "top_k = 0 leaves no token; give at least 1, or -1 for all",
    );
    let stop = Stop::Strings(vec!["a".to_owned(), String::new()]);
    refuse(SampleJob { stop, ..good.clone() }, "stop[1] is an empty string");
    let stop = Stop::Tokens(vec![1; 9]);
    refuse(SampleJob { stop, ..good }, "stop has 9 entries; at most 8 are allowed");
}

#[test]
fn samples_that_can_never_fit() {
    let mut engine = ready(Config { kv_blocks: 2, ..config() });
    check(
        &mut engine,
        sample(SamplerKey(0), job(&[1; 60], 6)),
        "60 prompt tokens + 6 max_tokens do not fit this server's key-value cache, which holds 65",
    );
    run_one(&mut engine, sample(SamplerKey(0), job(&[1; 60], 5))).unwrap();
}

#[test]
fn training_work() {
    let mut engine = ready(config());
    let good = datum(&[1, 2, 3, 4]);
    let works = |datums: Vec<Datum>, loss: &str| Work::ForwardBackward {
        run: RunKey(0),
        datums,
        loss: loss.into(),
        config: BTreeMap::new(),
        forward_only: false,
    };
    check(
        &mut engine,
        works(Vec::new(), "cross_entropy"),
        "the data is empty; give at least one datum",
    );
    check(
        &mut engine,
        works(vec![good.clone()], "ppo2"),
        "unknown loss \"ppo2\"; the known ones are cross_entropy, importance_sampling, ppo, cispo, dro, gspo, \
         stable_reinforce",
    );
    check(
        &mut engine,
        works(
            vec![good.clone(), Datum { targets: vec![1, 64, 3], ..good.clone() }],
            "cross_entropy",
        ),
        "datum 1: target_tokens[1] = 64 is outside the vocabulary of 64 tokens",
    );
    let two = Datum { targets: vec![1; 6], per_row: 2, ..good };
    check(
        &mut engine,
        works(vec![two], "importance_sampling"),
        "datum 0: importance_sampling takes one target a token, not 2",
    );
    let params = tinsmith_engine::AdamParams { beta1: -0.1, ..adam(0.1) };
    check(
        &mut engine,
        optim_step(RunKey(0), params),
        "adam_params: beta1 = -0.1 must be in [0, 1)",
    );
    let spec = LoraSpec { rank: 0, ..spec(1, 0) };
    let error = engine.create_run(RunKey(1), spec).unwrap_err();
    assert!(matches!(error, Error::User { .. }), "{error:?}");
}

#[test]
fn datums_beyond_the_memory() {
    let mut engine = ready(Config { activation_bytes_max: 1 << 20, ..config() });
    let error = engine
        .submit(Ticket(0), forward_backward(RunKey(0), vec![datum(&[1; 500])]))
        .unwrap_err()
        .to_string();
    let most = error
        .strip_prefix("datum 0: 499 tokens do not fit this server's memory; ")
        .and_then(|rest| rest.strip_suffix(" do"))
        .unwrap_or_else(|| panic!("{error}"));
    let most: usize = most.parse().unwrap();
    run_one(&mut engine, forward_backward(RunKey(0), vec![datum(&vec![1; most + 1])])).unwrap();
    let longer = forward_backward(RunKey(0), vec![datum(&vec![1; most + 2])]);
    assert!(engine.submit(Ticket(0), longer).is_err());
}

#[test]
fn limits_ask_to_come_back() {
    let mut engine =
        ready(Config { runs_max: 1, samplers_max: 1, training_queue_max: 1, ..config() });
    let full = |error: Error| {
        assert!(matches!(error, Error::Full { .. }), "{error:?}");
        error.to_string()
    };
    let error = full(engine.create_run(RunKey(1), spec(4, 0)).unwrap_err());
    assert_eq!(error, "take on more work: runs_max = 1 runs are resident");
    let error = full(engine.create_sampler(SamplerKey(1), "a", None).unwrap_err());
    assert_eq!(error, "take on more work: samplers_max = 1 samplers are resident");
    engine.submit(Ticket(0), optim_step(RunKey(0), adam(0.1))).unwrap();
    let error = full(engine.submit(Ticket(1), optim_step(RunKey(0), adam(0.1))).unwrap_err());
    assert_eq!(error, "take on more work: training_queue_max = 1 pieces of training work wait");
}
