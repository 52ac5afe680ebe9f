//! What ends a sample, and what it may ask for.

use tinsmith_engine::{Config, Engine, SampleJob, SamplerKey, Stop, StopReason, Ticket, Work};

use crate::tiny::{
    BASE, CONTEXT, CpuEngine, END, SplitMix64, VOCAB, base, bits, config, draw, engine_ended_by,
    job, sample, sampled, text_of,
};

fn free_run(engine: &mut CpuEngine) -> (SampleJob, Vec<u32>) {
    let request = job(&SplitMix64(11).tokens(9), 120);
    let tokens = draw(engine, request.clone()).sequences[0].tokens.clone();
    assert_eq!(tokens.len(), 120);
    (request, tokens)
}

/// The place of the first token that is not among those before it, from `from` on.
fn first_new(tokens: &[u32], from: usize) -> usize {
    (from..tokens.len()).find(|&place| !tokens[..place].contains(&tokens[place])).unwrap()
}

#[test]
fn stop_tokens_end_a_sample_and_are_returned() {
    let mut engine = base(config());
    let (request, free) = free_run(&mut engine);
    let place = first_new(&free, 5);
    let stop = Stop::Tokens(vec![free[place]]);
    let output = draw(&mut engine, SampleJob { stop, ..request });
    assert_eq!(output.sequences[0].tokens, free[..=place]);
    assert_eq!(output.sequences[0].logprobs.len(), place + 1);
    assert_eq!(output.sequences[0].stop_reason, StopReason::Stop);
}

#[test]
fn the_models_end_token_stops_unless_the_list_is_empty() {
    let mut engine = base(config());
    // A temperature at which every token comes up.
    let hot = SampleJob { temperature: 50.0, ..job(&SplitMix64(11).tokens(9), 400) };
    let free = draw(&mut engine, hot.clone()).sequences[0].clone();
    assert_eq!((free.tokens.len(), free.stop_reason), (400, StopReason::Length));
    let place = free.tokens.iter().position(|&token| token == END).unwrap();
    let never = Stop::Tokens(vec![u32::try_from(VOCAB).unwrap()]);
    for stop in [Stop::Default, never, Stop::Strings(vec!["never".to_owned()])] {
        let output = draw(&mut engine, SampleJob { stop: stop.clone(), ..hot.clone() });
        assert_eq!(output.sequences[0].tokens, free.tokens[..=place], "{stop:?}");
        assert_eq!(output.sequences[0].stop_reason, StopReason::Stop);
    }
}

/// The rest of the generation configuration is Hugging Face's defaults: the API has its own.
#[test]
fn each_end_token_of_the_generation_configuration_stops() {
    let hot = SampleJob { temperature: 50.0, ..job(&SplitMix64(11).tokens(9), 400) };
    let free = draw(&mut base(config()), hot.clone()).sequences[0].tokens.clone();
    let place = first_new(&free, 5);
    let later = (place + 1..free.len()).find(|at| !free[..*at].contains(&free[*at])).unwrap();
    for (ends, place) in [
        (vec![free[later], free[place]], place),
        (vec![free[place], free[later]], place),
        (vec![free[later], u32::try_from(VOCAB).unwrap()], later),
    ] {
        let mut engine = engine_ended_by(&ends, config());
        engine.create_sampler(BASE, "a", None).unwrap();
        let output = draw(&mut engine, SampleJob { stop: Stop::Default, ..hot.clone() });
        assert_eq!(output.sequences[0].tokens, free[..=place], "{ends:?}");
        assert_eq!(output.sequences[0].stop_reason, StopReason::Stop);
    }
}

#[test]
fn stop_strings_match_across_token_borders() {
    let mut engine = base(config());
    let (request, free) = free_run(&mut engine);
    let text = |place: usize| text_of(free[place] as usize);
    let place = first_new(&free, 5);
    // All of the token before, and the beginning of the token that completes the match.
    let across = format!("{}{}", text(place - 1), text(place).chars().next().unwrap());
    let inside = text(place).chars().next().unwrap().to_string();
    let longer = format!("{}{}{}", text(place - 2), text(place - 1), text(place));
    for string in [across, inside, longer] {
        let stop = Stop::Strings(vec!["never".to_owned(), string.clone()]);
        let output = draw(&mut engine, SampleJob { stop, ..request.clone() });
        assert_eq!(output.sequences[0].tokens, free[..=place], "{string}");
        assert_eq!(output.sequences[0].stop_reason, StopReason::Stop);
    }
}

#[test]
fn greedy_takes_no_notice_of_the_seed() {
    let mut engine = base(config());
    let greedy =
        SampleJob { temperature: 0.0, num_samples: 2, ..job(&SplitMix64(3).tokens(20), 30) };
    let one = draw(&mut engine, greedy.clone());
    let two = draw(&mut engine, SampleJob { seed: Some(1234), ..greedy.clone() });
    assert_eq!(bits(&one), bits(&two));
    assert_eq!(one.sequences[0], one.sequences[1]);
    let top_k = SampleJob { temperature: 1.0, top_k: Some(1), ..greedy };
    assert_eq!(draw(&mut engine, top_k).sequences[0].tokens, one.sequences[0].tokens);
}

#[test]
fn the_coldest_temperature_is_greedy_and_sure() {
    let mut engine = base(config());
    let request = SampleJob { temperature: 0.0, ..job(&SplitMix64(3).tokens(20), 30) };
    let greedy = draw(&mut engine, request.clone());
    for temperature in [1e-6, 1e-20, f32::MIN_POSITIVE, 1e-45] {
        let cold = draw(&mut engine, SampleJob { temperature, ..request.clone() });
        assert_eq!(cold.sequences[0].tokens, greedy.sequences[0].tokens, "{temperature}");
        assert_eq!(cold.sequences[0].logprobs, [0.0; 30], "{temperature}");
    }
    let hot = SampleJob { temperature: f32::MAX, ..request };
    let uniform = -(VOCAB as f64).ln();
    for logprob in &draw(&mut engine, hot).sequences[0].logprobs {
        assert!((f64::from(*logprob) - uniform).abs() < 1e-5);
    }
}

#[test]
fn without_max_tokens_the_context_is_the_limit() {
    let mut engine = base(config());
    let request = SampleJob { max_tokens: None, ..job(&SplitMix64(3).tokens(500), 1) };
    let output = draw(&mut engine, request.clone());
    assert_eq!(output.sequences[0].tokens.len(), CONTEXT - 500);
    assert_eq!(output.sequences[0].stop_reason, StopReason::Length);
    let mut engine = base(Config { kv_blocks: 3, ..config() });
    let request = SampleJob { prompt: request.prompt[..90].to_vec(), ..request };
    assert_eq!(draw(&mut engine, request).sequences[0].tokens.len(), 96 + 1 - 90);
}

#[test]
fn a_prompt_alone_can_be_scored() {
    let mut engine = base(config());
    let scored =
        SampleJob { prompt_logprobs: true, num_samples: 2, ..job(&SplitMix64(3).tokens(70), 0) };
    let none = draw(&mut engine, scored.clone());
    assert!(none.sequences.iter().all(|sequence| sequence.tokens.is_empty()));
    assert_eq!(none.sequences[1].stop_reason, StopReason::Length);
    let logprobs = none.prompt_logprobs.unwrap();
    assert_eq!(logprobs.len(), 70);
    assert!(logprobs[0].is_nan() && logprobs[1..].iter().all(|logprob| *logprob < 0.0));
    let one = draw(&mut engine, SampleJob { max_tokens: Some(1), ..scored });
    assert_eq!(one.prompt_logprobs.unwrap()[1..], logprobs[1..]);
    let short = SampleJob { prompt_logprobs: true, ..job(&[5], 1) };
    assert!(draw(&mut engine, short).prompt_logprobs.unwrap()[0].is_nan());
}

#[test]
fn cancelling_frees_the_blocks_at_once() {
    let mut engine = base(config());
    let work = sample(BASE, SampleJob { num_samples: 4, ..job(&SplitMix64(3).tokens(70), 100) });
    engine.submit(Ticket(1), work).unwrap();
    for _ in 0..3 {
        assert!(engine.step().is_empty());
    }
    assert!(engine.stats().kv_blocks_used > 0);
    engine.cancel(Ticket(1));
    assert_eq!(engine.stats().kv_blocks_used, 0);
    assert!(engine.is_idle() && engine.step().is_empty());
}

#[test]
fn dropping_a_sampler_fails_its_jobs_alone() {
    let mut engine = base(config());
    engine.create_sampler(SamplerKey(1), "a", None).unwrap();
    let work = |sampler| sample(sampler, job(&[1, 2, 3], 5));
    engine.submit(Ticket(1), work(BASE)).unwrap();
    engine.submit(Ticket(2), work(SamplerKey(1))).unwrap();
    engine.step();
    engine.drop_sampler(SamplerKey(1));
    let mut results = std::collections::BTreeMap::new();
    while !engine.is_idle() {
        results.extend(engine.step());
    }
    let failure = results.remove(&Ticket(2)).unwrap().unwrap_err();
    assert_eq!((failure.user, failure.message.as_str()), (true, "the sampler was unloaded"));
    assert_eq!(sampled(results.remove(&Ticket(1)).unwrap()).sequences[0].tokens.len(), 5);
}

#[test]
fn a_full_waiting_room_asks_to_come_back() {
    let mut engine: Engine<_> = base(Config { waiting_sequences_max: 3, ..config() });
    let work = || -> Work { sample(BASE, SampleJob { num_samples: 2, ..job(&[1], 1) }) };
    engine.submit(Ticket(1), work()).unwrap();
    let error = engine.submit(Ticket(2), work()).unwrap_err();
    assert_eq!(error.to_string(), "take on more work: waiting_sequences_max = 3 sequences wait");
    while !engine.is_idle() {
        engine.step();
    }
    engine.submit(Ticket(2), work()).unwrap();
}
