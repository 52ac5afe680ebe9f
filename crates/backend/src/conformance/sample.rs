//! Drawing tokens.

use half::bf16;

use crate::{Backend, Draw, Drawn, Dtype, LoraUse, Targets, Unembedding, philox};

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
    }
    ties(suite);
}

impl Case for Sample {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[Output::Value("token"), Output::Value("logprob")]);
        for step in steps {
            let drawn = self.draw(backend, step, &draws(step));
            let tokens: Vec<f32> = drawn.iter().map(|drawn| f32::from_bits(drawn.token)).collect();
            let logprobs: Vec<f32> = drawn.iter().map(|drawn| drawn.logprob).collect();
            answer.take(0, step, &tokens);
            answer.take(1, step, &logprobs);
        }
        answer
    }
}

impl Sample {
    fn draw<B: Backend>(&self, backend: &mut B, step: &Step, draws: &[Draw]) -> Vec<Drawn> {
        let mut drawn = vec![Drawn { token: u32::MAX, logprob: f32::NAN }];
        self.with_logits(backend, step, |backend, x, unembedding, uses| {
            backend.sample(&mut drawn, x, unembedding, uses, draws);
        });
        drawn
    }

    /// Calls `op` with what makes the logits of a step.
    fn with_logits<B: Backend>(
        &self,
        backend: &mut B,
        step: &Step,
        op: impl FnOnce(&mut B, &B::Rows, Unembedding<'_, B>, &[LoraUse<'_, B::Lora>]),
    ) {
        let weight = Matrix::random(7, Dtype::Bf16, self.vocabulary, self.inputs).weight(backend);
        let adapters = Adapters::new(backend, &RANKS, self.inputs, self.vocabulary);
        // As bf16 holds them, so that a set that rounds to bf16 has the same logits, and draws alike.
        let x = values(step, 0, self.inputs).into_iter().map(|x| bf16::from_f32(x).to_f32());
        let x = upload(backend, self.inputs, &x.collect::<Vec<_>>());
        let uses = adapters.uses(step);
        let unembedding = Unembedding { weight: &weight, softcap: self.softcap };
        op(backend, &x, unembedding, &uses);
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

/// At temperature 1 and greedily, the logprob is the one that `score` gives, to the bit.
fn against_score<B: Backend>(suite: &mut Suite<'_, B>, case: &Sample, step: &Step) {
    let mut draws = draws(step);
    for (i, draw) in draws.iter_mut().enumerate() {
        draw.temperature = if i % 3 == 0 { 0.0 } else { 1.0 };
    }
    let drawn = case.draw(&mut suite.backend, step, &draws);
    let ids: Vec<u32> = drawn.iter().map(|drawn| drawn.token).collect();
    let mut scored = vec![f32::NAN; ids.len()];
    case.with_logits(&mut suite.backend, step, |backend, x, unembedding, uses| {
        backend.score(&mut scored, x, unembedding, uses, Targets { ids: &ids, per_row: 1 });
    });
    let logprobs: Vec<f32> = drawn.iter().map(|drawn| drawn.logprob).collect();
    suite.same_bits(&format!("{case:?} against score"), &logprobs, &scored);
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
    suite.backend.sample(&mut drawn, &x, unembedding, &[], &draws);
    for ((drawn, draw), (_, token)) in drawn.iter().zip(&draws).zip(expected) {
        if drawn.token != token {
            suite.fail(&format!("ties {draw:?}: {} for {token}", drawn.token));
        }
    }
}
