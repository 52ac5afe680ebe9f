//! Reading tokens off logits: drawn ones, the likeliest, given ones.

use std::slice::from_ref;

use half::bf16;

use crate::{Ask, Backend, Draw, Drawn, Dtype, LoraUse, Query, Targets, Unembedding, philox};

use super::{
    Suite,
    inputs::{Inputs, Matrix, upload},
    linear,
    step::{Adapters, Answer, Case, Output, Step, plain_step, values},
};

#[derive(Debug)]
struct Sample {
    inputs: usize,
    vocabulary: usize,
    softcap: Option<f32>,
}

/// Rounding may move what stands this close to where a draw changes hands.
const MARGIN: f64 = 1e-5;
const RANKS: [usize; 4] = [1, 7, 16, 64];

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for (inputs, vocabulary, softcap) in [
        (5, 2, None),
        (16, 33, Some(2.0)),
        (40, 300, None),
        (257, 1030, None),
        (257, 1030, Some(1.0)),
    ] {
        let case = Sample { inputs, vocabulary, softcap };
        for step in linear::steps() {
            suite.invariance(&case, &step);
            against_score(suite, &case, &step);
        }
        against_reference(suite, &case, &plain_step(&[300]));
        for count in [1, 2, 33, vocabulary] {
            tops(suite, &case, &plain_step(&[10]), count.min(vocabulary));
        }
    }
    // More entries than tiles can be told apart by their greatest.
    let large = Sample { inputs: 5, vocabulary: 3000, softcap: None };
    against_reference(suite, &large, &plain_step(&[40]));
    tops(suite, &large, &plain_step(&[4]), 1000);
    tops(suite, &large, &plain_step(&[4]), 100);
    ties(suite);
    apart(suite);
}

impl Case for Sample {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[Output::Value("tokens"), Output::Value("logprobs")]);
        let mut answers = Vec::new();
        self.with_logits(backend, steps, |backend, step, x, unembedding, uses| {
            let mut asks = Vec::new();
            for (row, draw) in draws(step).into_iter().enumerate() {
                let count = self.vocabulary.min(3);
                let top = Query::Top { count, temperature: draw.temperature };
                let queries = [Query::Draw(draw), top, Query::Token(1)];
                asks.extend(queries.map(|query| Ask { row, query }));
            }
            backend.sample(&mut answers, x, unembedding, uses, &asks);
            let tokens: Vec<f32> =
                answers.iter().map(|drawn| f32::from_bits(drawn.token)).collect();
            let logprobs: Vec<f32> = answers.iter().map(|drawn| drawn.logprob).collect();
            answer.take(0, step, &tokens);
            answer.take(1, step, &logprobs);
        });
        answer
    }
}

impl Sample {
    fn ask<B: Backend>(&self, backend: &mut B, step: &Step, asks: &[Ask]) -> Vec<Drawn> {
        let mut answers = vec![Drawn { token: u32::MAX, logprob: f32::NAN }];
        self.with_logits(backend, from_ref(step), |backend, _, x, unembedding, uses| {
            backend.sample(&mut answers, x, unembedding, uses, asks);
        });
        answers
    }

    /// One draw of each row.
    fn draw<B: Backend>(&self, backend: &mut B, step: &Step, draws: &[Draw]) -> Vec<Drawn> {
        let draws = draws.iter().enumerate();
        let asks: Vec<Ask> =
            draws.map(|(row, draw)| Ask { row, query: Query::Draw(*draw) }).collect();
        self.ask(backend, step, &asks)
    }

    /// Calls `op` with each step, and what makes its logits.
    fn with_logits<B: Backend>(
        &self,
        backend: &mut B,
        steps: &[Step],
        mut op: impl FnMut(&mut B, &Step, &B::Rows, Unembedding<'_, B>, &[LoraUse<'_, B::Lora>]),
    ) {
        let weight = Matrix::random(7, Dtype::Bf16, self.vocabulary, self.inputs).weight(backend);
        let adapters = Adapters::new(backend, &RANKS, self.inputs, self.vocabulary);
        let unembedding = Unembedding { weight: &weight, softcap: self.softcap };
        for step in steps {
            // As bf16 holds them, so that a set that rounds to bf16 has the same logits, and draws alike.
            let x = values(step, 0, self.inputs).into_iter().map(|x| bf16::from_f32(x).to_f32());
            let x = upload(backend, self.inputs, &x.collect::<Vec<_>>());
            let uses = adapters.uses(step);
            op(backend, step, &x, unembedding, &uses);
        }
    }
}

/// A draw for each row, of every kind.
fn draws(step: &Step) -> Vec<Draw> {
    let draw = |value: f32| {
        let mut stream = Inputs::new(u64::from(value.to_bits()));
        let mut one_of = |count: u32| stream.below(count) as usize;
        let temperature = [0.0, 1.0, 1.0, 0.7, 1.3][one_of(5)];
        let top_k = [None, None, Some(1), Some(5), Some(100_000)][one_of(5)];
        let top_p = [1.0, 1.0, 0.9, 0.5, 0.01][one_of(5)];
        let uniform = philox::uniform_f64(stream.below(u32::MAX), stream.below(u32::MAX));
        Draw { temperature, top_k, top_p, uniform }
    };
    values(step, 6, 1).into_iter().map(draw).collect()
}

/// Every draw that a small shift of `uniform` and `top_p` does not change is the reference's.
fn against_reference<B: Backend>(suite: &mut Suite<'_, B>, case: &Sample, step: &Step) {
    let draws = draws(step);
    let actual = case.draw(&mut suite.backend, step, &draws);
    let expected = case.draw(&mut suite.reference, step, &draws);
    let mut steady = vec![true; draws.len()];
    for (du, dp) in [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)] {
        let shifted: Vec<Draw> = draws.iter().map(|draw| shift(*draw, du, dp)).collect();
        let other = case.draw(&mut suite.reference, step, &shifted);
        for (steady, (a, b)) in steady.iter_mut().zip(other.iter().zip(&expected)) {
            *steady &= a.token == b.token;
        }
    }
    let (mut logprobs, mut expected_logprobs) = (Vec::new(), Vec::new());
    for (i, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        if steady[i] && actual.token != expected.token {
            suite.fail(&format!("{case:?} {:?}: {actual:?} for {expected:?}", draws[i]));
        } else if steady[i] {
            logprobs.push(actual.logprob);
            expected_logprobs.push(expected.logprob);
        }
    }
    let what = format!("{case:?} logprobs");
    suite.close(&what, &logprobs, &expected_logprobs, suite.tolerances.values);
    if logprobs.len() * 10 < draws.len() * 9 {
        suite.fail(&format!("{case:?}: {} of {} draws are right", logprobs.len(), draws.len()));
    }
}

fn shift(draw: Draw, du: f64, dp: f32) -> Draw {
    let uniform = (draw.uniform + du * MARGIN).clamp(0.0, 1.0 - f64::EPSILON);
    let top_p = if draw.top_p < 1.0 { draw.top_p * (1.0 + dp * 1e-5) } else { 1.0 };
    Draw { uniform, top_p, ..draw }
}

/// At temperature 1 and greedily, every logprob is the one that `score` gives, to the bit.
fn against_score<B: Backend>(suite: &mut Suite<'_, B>, case: &Sample, step: &Step) {
    let (mut asks, mut rows) = (Vec::new(), 0);
    for (row, mut draw) in draws(step).into_iter().enumerate() {
        draw.temperature = if row % 3 == 0 { 0.0 } else { 1.0 };
        let top = Query::Top { count: 2, temperature: draw.temperature };
        let queries = [Query::Token(0), Query::Draw(draw), top];
        asks.extend(queries.map(|query| Ask { row, query }));
        rows = row + 1;
    }
    let answers = case.ask(&mut suite.backend, step, &asks);
    let ids: Vec<u32> = answers.iter().map(|drawn| drawn.token).collect();
    let per_row = ids.len().checked_div(rows).unwrap_or(1);
    let mut scored = vec![f32::NAN; ids.len()];
    case.with_logits(&mut suite.backend, from_ref(step), |backend, _, x, unembedding, uses| {
        backend.score(&mut scored, x, unembedding, uses, Targets { ids: &ids, per_row });
    });
    let logprobs: Vec<f32> = answers.iter().map(|drawn| drawn.logprob).collect();
    suite.same_bits(&format!("{case:?} against score"), &logprobs, &scored);
}

/// The likeliest are the reference's, in order; a draw of the same temperature has the same bits.
fn tops<B: Backend>(suite: &mut Suite<'_, B>, case: &Sample, step: &Step, count: usize) {
    let draws = draws(step);
    let all = |count: usize| -> Vec<Ask> {
        let queries = |draw: &Draw| {
            let top = Query::Top { count, temperature: draw.temperature };
            [Query::Draw(*draw), top]
        };
        let of_row = |(row, draw)| queries(draw).map(|query| Ask { row, query });
        draws.iter().enumerate().flat_map(of_row).collect()
    };
    let actual = case.ask(&mut suite.backend, step, &all(count));
    let whole = case.ask(&mut suite.reference, step, &all(case.vocabulary));
    let (mut logprobs, mut expected, mut by_id) = (Vec::new(), Vec::new(), Vec::new());
    let rows = actual.chunks(count + 1).zip(whole.chunks(case.vocabulary + 1));
    for (actual, whole) in rows {
        let (drawn, actual) = actual.split_first().expect("a draw comes first");
        let what = format!("{case:?} top {count}");
        if let Some(same) = actual.iter().find(|top| top.token == drawn.token) {
            suite.same_bits(&what, &[drawn.logprob], &[same.logprob]);
        }
        if !actual.is_sorted_by(|one, next| one.logprob >= next.logprob) {
            suite.fail(&format!("{what}: not in descending order"));
        }
        logprobs.extend(actual.iter().map(|top| top.logprob));
        expected.extend(whole[1..=count].iter().map(|top| top.logprob));
        // Which of two that are alike comes first, rounding may decide.
        let of_token = |top: &Drawn| whole[1..].iter().find(|one| one.token == top.token);
        by_id.extend(actual.iter().map(|top| of_token(top).map_or(f32::NAN, |one| one.logprob)));
    }
    let tolerance = suite.tolerances.values;
    suite.close(&format!("{case:?} top {count}"), &logprobs, &expected, tolerance);
    suite.close(&format!("{case:?} top {count} by id"), &by_id, &expected, tolerance);
}

/// Tokens 3, 17 and 31 share the greatest logit, all others share the least.
fn ties<B: Backend>(suite: &mut Suite<'_, B>) {
    let values: Vec<f32> =
        (0..40).map(|id| if [3, 17, 31].contains(&id) { 1.0 } else { 0.0 }).collect();
    let weight = Matrix::new(&values, Dtype::F32, 1).weight(&mut suite.backend);
    let greedy = (0.0, None, 0.5);
    let expected = [
        (greedy, 3),
        ((1.0, Some(1), 0.99), 3),
        ((1.0, Some(2), 0.0), 3),
        ((1.0, Some(2), 0.99), 17),
        ((1.0, Some(5), 0.0), 0),
        ((1.0, Some(5), 0.15), 1),
        ((1.0, Some(5), 0.99), 31),
        ((1.0, Some(40), 0.999), 39),
    ];
    let draws = expected.map(|((temperature, top_k, uniform), _)| Draw {
        temperature,
        top_k,
        top_p: 1.0,
        uniform,
    });
    let x = upload(&mut suite.backend, 1, &[1.0; 8]);
    let mut drawn = Vec::new();
    let unembedding = Unembedding { weight: &weight, softcap: None };
    let asks: Vec<Ask> =
        (0..).zip(draws).map(|(row, draw)| Ask { row, query: Query::Draw(draw) }).collect();
    suite.backend.sample(&mut drawn, &x, unembedding, &[], &asks);
    for ((drawn, draw), (_, token)) in drawn.iter().zip(&draws).zip(expected) {
        if drawn.token != token {
            suite.fail(&format!("ties {draw:?}: {} for {token}", drawn.token));
        }
    }
    let top = Query::Top { count: 40, temperature: 0.5 };
    suite.backend.sample(&mut drawn, &x, unembedding, &[], &[Ask { row: 3, query: top }]);
    let tokens: Vec<u32> = drawn.iter().map(|drawn| drawn.token).collect();
    let rest = (0..40).filter(|id| ![3, 17, 31].contains(id));
    let expected: Vec<u32> = [3, 17, 31].into_iter().chain(rest).collect();
    if tokens != expected {
        suite.fail(&format!("ties of the top: {tokens:?}"));
    }
}

/// Rows that nothing is asked of, many draws of one row, and logits far below the greatest.
fn apart<B: Backend>(suite: &mut Suite<'_, B>) {
    let values: Vec<f32> = (0..2000).map(|id| if id % 500 == 7 { 60.0 } else { -60.0 }).collect();
    let weight = Matrix::new(&values, Dtype::F32, 1).weight(&mut suite.backend);
    let x = upload(&mut suite.backend, 1, &[1.0; 5]);
    let unembedding = Unembedding { weight: &weight, softcap: None };
    let draw = |uniform| Draw { temperature: 1.0, top_k: None, top_p: 0.999, uniform };
    let uniforms = [0.1, 0.3, 0.6, 0.9];
    let mut asks =
        uniforms.map(|uniform| Ask { row: 1, query: Query::Draw(draw(uniform)) }).to_vec();
    let top = Query::Top { count: 6, temperature: 1.0 };
    asks.push(Ask { row: 4, query: top });
    let mut answers = Vec::new();
    suite.backend.sample(&mut answers, &x, unembedding, &[], &asks);
    let tokens: Vec<u32> = answers.iter().map(|drawn| drawn.token).collect();
    if tokens != [7, 507, 1007, 1507, 7, 507, 1007, 1507, 0, 1] {
        suite.fail(&format!("apart: {tokens:?}"));
    }
    suite.backend.sample(&mut answers, &x, unembedding, &[], &[]);
    if !answers.is_empty() {
        suite.fail("answers though nothing was asked");
    }
}
