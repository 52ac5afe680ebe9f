//! Logprobs of given tokens, and their gradient.

use crate::{Backend, Dtype, Targets, Unembedding};

use super::{
    Suite,
    inputs::{Inputs, Matrix, blank, upload},
    linear,
    step::{Adapters, Answer, Case, Output, Step, segment_ranges, step, values},
};

#[derive(Debug)]
struct Score {
    inputs: usize,
    vocabulary: usize,
    per_row: usize,
    /// Factor on x, so on the logits.
    x_scale: f32,
    softcap: Option<f32>,
}

const RANKS: [usize; 4] = [1, 7, 16, 64];

const SCORED: usize = 0;
const SCORED_BACKWARD: usize = 1;
const DX: usize = 2;

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for (inputs, vocabulary, per_row, softcap) in [
        (5, 2, 1, None),
        (16, 33, 3, None),
        (40, 300, 1, None),
        (257, 1030, 2, None),
        (5, 2, 2, Some(0.7)),
        (257, 1030, 1, Some(3.0)),
    ] {
        let case = Score { inputs, vocabulary, per_row, x_scale: 1.0, softcap };
        for step in linear::steps() {
            suite.case(&case, &step);
            let answer = case.run(&mut suite.backend, &[step]);
            let what = format!("{} score_backward against score", case.label());
            suite.same_bits(&what, &answer.all(SCORED_BACKWARD), &answer.all(SCORED));
        }
    }
    // Logits in the hundreds, where an exponential that is not taken from the maximum overflows.
    let steep = Score { inputs: 16, vocabulary: 300, per_row: 1, x_scale: 100.0, softcap: None };
    suite.values_within(100.0, &steep, &linear::steps()[4]);
    let capped = Score { softcap: Some(20.0), ..steep };
    suite.values_within(100.0, &capped, &linear::steps()[4]);
    suite.invariance(&capped, &linear::steps()[4]);
    without_input_gradient(suite);
}

impl Case for Score {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let outputs =
            [Output::Value("score"), Output::Value("score_backward"), Output::Gradient("dx")];
        let mut answer = Answer::new(&outputs);
        let Self { inputs, vocabulary, per_row, .. } = *self;
        let weight = Matrix::random(7, Dtype::Bf16, vocabulary, inputs).weight(backend);
        let mut adapters = Adapters::new(backend, &RANKS, inputs, vocabulary);
        for step in steps {
            let x = values(step, 0, inputs).iter().map(|x| x * self.x_scale).collect::<Vec<_>>();
            let x = upload(backend, inputs, &x);
            let ids = target_ids(step, vocabulary, per_row);
            let targets = Targets { ids: &ids, per_row };
            let uses = adapters.uses(step);
            let unembedding = Unembedding { weight: &weight, softcap: self.softcap };
            let mut logprobs = vec![f32::NAN; ids.len()];
            backend.score(&mut logprobs, &x, unembedding, &uses, targets);
            answer.take(SCORED, step, &logprobs);

            let wanted = coefficients(step, per_row);
            let mut seen = vec![f32::NAN; ids.len()];
            let mut dx = blank(backend, ids.len() / per_row, inputs);
            let ranges = segment_ranges(step);
            let mut uses = adapters.gradient_uses(step, &ranges);
            backend.score_backward(
                Some(&mut dx),
                &x,
                unembedding,
                &mut uses,
                targets,
                &mut |rows, logprobs, coefficients| {
                    let candidates = rows.start * per_row..rows.end * per_row;
                    assert!(
                        seen[candidates.clone()].iter().all(|l| l.is_nan()),
                        "rows {rows:?} twice"
                    );
                    seen[candidates.clone()].copy_from_slice(logprobs);
                    coefficients.copy_from_slice(&wanted[candidates]);
                },
            );
            answer.take(SCORED_BACKWARD, step, &seen);
            answer.take(DX, step, &backend.read_rows(&dx));
        }
        answer.gradients = adapters.read_gradients(backend);
        answer
    }
}

/// Leaving out `dx` changes no bit of the adapters' gradients.
fn without_input_gradient<B: Backend>(suite: &mut Suite<'_, B>) {
    let (inputs, vocabulary) = (48, 70);
    let step = step(&[(Some(0), &[5, 70]), (None, &[2])]);
    let backend = &mut suite.backend;
    let weight = Matrix::random(7, Dtype::Bf16, vocabulary, inputs).weight(backend);
    let x = upload(backend, inputs, &values(&step, 0, inputs));
    let ids = target_ids(&step, vocabulary, 1);
    let wanted = coefficients(&step, 1);
    let mut gradients = Vec::new();
    for with in [true, false] {
        let mut adapters = Adapters::new(backend, &[7], inputs, vocabulary);
        let mut dx = blank(backend, ids.len(), inputs);
        let ranges = segment_ranges(&step);
        backend.score_backward(
            with.then_some(&mut dx),
            &x,
            Unembedding { weight: &weight, softcap: None },
            &mut adapters.gradient_uses(&step, &ranges),
            Targets { ids: &ids, per_row: 1 },
            &mut |rows, _, coefficients| coefficients.copy_from_slice(&wanted[rows]),
        );
        gradients.push(adapters.read_gradients(backend).remove(0));
    }
    suite.same_bits("without dx, dA", &gradients[1].0, &gradients[0].0);
    suite.same_bits("without dx, dB", &gradients[1].1, &gradients[0].1);
}

/// Any tokens; one may be twice among the candidates of a row.
fn target_ids(step: &Step, vocabulary: usize, per_row: usize) -> Vec<u32> {
    let vocabulary = u32::try_from(vocabulary).expect("token ids fit 32 bits");
    let id = |value: f32| Inputs::new(u64::from(value.to_bits())).below(vocabulary);
    values(step, 4, per_row).into_iter().map(id).collect()
}

/// Of both signs; some rows have none but zeros.
fn coefficients(step: &Step, per_row: usize) -> Vec<f32> {
    let mut coefficients = values(step, 5, per_row);
    for row in coefficients.chunks_exact_mut(per_row) {
        if row[0] > 0.5 {
            row.fill(0.0);
        }
    }
    coefficients
}
