//! What a sample tells beside its tokens: of its prompt, of likely tokens, of given ones.

use tinsmith_engine::{Config, Drawn, PromptTargets, SampleJob};

use crate::tiny::{BASE, CpuEngine, SplitMix64, VOCAB, base, config, draw, job, sample};

fn bits(logprobs: &[f32]) -> Vec<u32> {
    logprobs.iter().map(|logprob| logprob.to_bits()).collect()
}

/// Given tokens in every row: the prompt's own one, one to skip, one that is the same in each.
fn dense(prompt: &[u32]) -> PromptTargets {
    PromptTargets {
        rows: (0..prompt.len()).map(|row| 3 * row).collect(),
        ids: prompt[1..].iter().flat_map(|&own| [Some(own), None, Some(5)]).collect(),
        columns: 3,
        column_of: None,
    }
}

fn everything(prompt: &[u32], max_tokens: usize) -> SampleJob {
    SampleJob {
        temperature: 0.8,
        top_p: 0.9,
        num_samples: 2,
        prompt_logprobs: true,
        topk_prompt_logprobs: 4,
        topk_sample_logprobs: 3,
        target_prompt_logprobs: Some(dense(prompt)),
        prompt_alt_tokens: 2,
        ..job(prompt, max_tokens)
    }
}

fn of(list: &[Drawn], token: u32) -> Option<f32> {
    list.iter().find(|each| each.token == token).map(|each| each.logprob)
}

#[test]
fn equal_things_have_equal_bits() {
    let mut engine = base(config());
    let prompt = SplitMix64(3).tokens(70);
    let whole = SampleJob {
        topk_prompt_logprobs: VOCAB,
        topk_sample_logprobs: VOCAB,
        ..everything(&prompt, 20)
    };
    let output = draw(&mut engine, whole.clone());
    let own = output.prompt_logprobs.unwrap();
    assert!(own[0].is_nan());
    let (targets, given) = output.target_prompt_logprobs.unwrap();
    assert_eq!(targets, dense(&prompt));
    let top = output.topk_prompt_logprobs.unwrap();
    assert_eq!(top.len(), 70 * VOCAB);
    assert!(top[..VOCAB].iter().all(|each| (each.token, each.logprob) == (0, -99_999.0)));
    for place in 1..prompt.len() {
        let list = &top[place * VOCAB..][..VOCAB];
        assert!(list.is_sorted_by(|one, next| one.logprob >= next.logprob));
        assert_eq!(of(list, prompt[place]), Some(own[place]));
        let cells = &given[3 * (place - 1)..][..3];
        assert_eq!((cells[0], cells[1]), (own[place], 0.0));
        assert_eq!(of(list, 5), Some(cells[2]));
    }
    for sequence in &output.sequences {
        let top = sequence.topk_logprobs.as_ref().unwrap();
        assert_eq!(top.len(), sequence.tokens.len() * VOCAB);
        for (place, list) in top.chunks(VOCAB).enumerate() {
            assert_eq!(of(list, sequence.tokens[place]), Some(sequence.logprobs[place]));
        }
    }
    let greedy = draw(&mut engine, SampleJob { temperature: 0.0, ..whole });
    let first = |list: &Vec<Drawn>| list.chunks(VOCAB).map(|row| row[0]).collect::<Vec<_>>();
    let sequence = &greedy.sequences[0];
    let firsts = first(sequence.topk_logprobs.as_ref().unwrap());
    let tokens: Vec<u32> = firsts.iter().map(|each| each.token).collect();
    assert_eq!(tokens, sequence.tokens);
    let logprobs: Vec<f32> = firsts.iter().map(|each| each.logprob).collect();
    assert_eq!(bits(&logprobs), bits(&sequence.logprobs));
    // Greedy alternatives are the likeliest token, as often as they are asked for.
    let alternatives = greedy.prompt_alt_tokens.unwrap();
    for (two, first) in alternatives.chunks(2).zip(&first(&top)[1..]) {
        assert_eq!(two, [*first, *first]);
    }
}

#[test]
fn chunks_and_company_change_no_bit() {
    let prompt = SplitMix64(3).tokens(70);
    let alone = draw(&mut base(config()), everything(&prompt, 12));
    for prefill_tokens_max in [1, 7, 33] {
        let mut engine = base(Config { prefill_tokens_max, ..config() });
        let output = draw(&mut engine, everything(&prompt, 12));
        assert_eq!(format!("{output:?}"), format!("{alone:?}"), "{prefill_tokens_max} a step");
    }
    // Each thing asked for by itself.
    let mut engine = base(config());
    let plain = SampleJob { temperature: 0.8, top_p: 0.9, num_samples: 2, ..job(&prompt, 12) };
    let output = draw(&mut engine, plain.clone());
    assert_eq!(output.sequences[1].tokens, alone.sequences[1].tokens);
    let own = draw(&mut engine, SampleJob { prompt_logprobs: true, ..plain.clone() });
    assert_eq!(
        bits(&own.prompt_logprobs.unwrap()),
        bits(alone.prompt_logprobs.as_deref().unwrap())
    );
    let top = draw(&mut engine, SampleJob { topk_prompt_logprobs: 4, ..plain.clone() });
    assert_eq!(top.topk_prompt_logprobs, alone.topk_prompt_logprobs);
    let drawn = draw(&mut engine, SampleJob { prompt_alt_tokens: 2, ..plain.clone() });
    assert_eq!(drawn.prompt_alt_tokens, alone.prompt_alt_tokens);
    // The first alternatives do not depend on how many there are.
    let more = draw(&mut engine, SampleJob { prompt_alt_tokens: 5, ..plain });
    let (two, five) = (drawn.prompt_alt_tokens.unwrap(), more.prompt_alt_tokens.unwrap());
    for (two, five) in two.chunks(2).zip(five.chunks(5)) {
        assert_eq!(two, &five[..2]);
    }
}

#[test]
fn the_last_n_are_the_tail_of_all() {
    let mut engine = base(config());
    let prompt = SplitMix64(3).tokens(40);
    let all = draw(&mut engine, everything(&prompt, 1));
    for last_n in [1, 7, 39] {
        let request = SampleJob { prompt_logprobs_last_n: Some(last_n), ..everything(&prompt, 1) };
        let part = draw(&mut engine, request);
        let (own, expected) = (part.prompt_logprobs.unwrap(), all.prompt_logprobs.clone().unwrap());
        assert!(own[..40 - last_n].iter().all(|logprob| logprob.is_nan()));
        assert_eq!(bits(&own[40 - last_n..]), bits(&expected[40 - last_n..]));
        let top = part.topk_prompt_logprobs.unwrap();
        assert!(top[..(40 - last_n) * 4].iter().all(|each| each.logprob == -99_999.0));
        let tail = &all.topk_prompt_logprobs.as_ref().unwrap()[(40 - last_n) * 4..];
        assert_eq!(&top[(40 - last_n) * 4..], tail);
        // These are no part of it.
        assert_eq!(part.target_prompt_logprobs, all.target_prompt_logprobs);
        assert_eq!(part.prompt_alt_tokens, all.prompt_alt_tokens);
    }
}

#[test]
fn sparse_targets_are_the_dense_ones_that_are_listed() {
    let mut engine = base(config());
    let prompt = SplitMix64(3).tokens(40);
    let (_, all) = draw(&mut engine, everything(&prompt, 1)).target_prompt_logprobs.unwrap();
    // Row 8 alone has cells, one of them to skip.
    let sparse = PromptTargets {
        rows: (0..40).map(|row| if row <= 8 { 0 } else { 3 }).collect(),
        ids: vec![Some(5), None, Some(prompt[9])],
        columns: 9,
        column_of: Some(vec![0, 4, 8]),
    };
    for max_tokens in [0, 1, 30] {
        let request =
            SampleJob { target_prompt_logprobs: Some(sparse.clone()), ..job(&prompt, max_tokens) };
        let output = draw(&mut engine, request);
        let (same, given) = output.target_prompt_logprobs.unwrap();
        assert_eq!(same, sparse);
        assert_eq!(bits(&given), bits(&[all[3 * 8 + 2], 0.0, all[3 * 8]]));
        assert_eq!(output.sequences[0].tokens.len(), max_tokens);
    }
}

#[test]
fn what_cannot_be_told_is_refused() {
    let mut engine = base(config());
    let prompt = SplitMix64(3).tokens(40);
    let good = job(&prompt, 1);
    let mut refuse = |job: SampleJob, expected: &str| {
        let error = run_one_error(&mut engine, job);
        assert!(error.contains(expected), "{error}");
    };
    let scored = SampleJob { prompt_logprobs: true, ..good.clone() };
    let last_n = |last_n| Some(last_n);
    refuse(
        SampleJob { prompt_logprobs_last_n: last_n(3), ..good.clone() },
        "prompt_logprobs_last_n is given without prompt_logprobs",
    );
    for n in [0, 40] {
        refuse(
            SampleJob { prompt_logprobs_last_n: last_n(n), ..scored.clone() },
            "is not between 1 and 39",
        );
    }
    refuse(
        SampleJob { topk_prompt_logprobs: VOCAB + 1, ..good.clone() },
        "topk_prompt_logprobs = 65 is more than the vocabulary's 64 tokens",
    );
    refuse(
        SampleJob { topk_sample_logprobs: VOCAB + 1, ..good.clone() },
        "topk_sample_logprobs = 65 is more",
    );
    refuse(
        SampleJob { prompt_alt_tokens: 1000, ..good.clone() },
        "tokens would be 40000; at most 10000",
    );
    let mut targets = |targets: PromptTargets, expected: &str| {
        refuse(SampleJob { target_prompt_logprobs: Some(targets), ..good.clone() }, expected);
    };
    let fine = dense(&prompt);
    targets(dense(&prompt[1..]), "has not 39 rows of cells");
    targets(PromptTargets { ids: vec![None; fine.ids.len()], ..fine.clone() }, "names no token id");
    targets(
        PromptTargets { ids: vec![Some(64); fine.ids.len()], ..fine },
        "names the token 64; the vocabulary has 64 tokens",
    );
}

fn run_one_error(engine: &mut CpuEngine, job: SampleJob) -> String {
    let ticket = tinsmith_engine::Ticket(1);
    engine.submit(ticket, sample(BASE, job)).unwrap_err().to_string()
}
