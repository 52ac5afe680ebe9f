//! RMS norm and its gradient.

use crate::{Backend, Dtype};

use super::{
    Suite,
    inputs::{Matrix, blank, upload},
    step::{Answer, Case, Output, Step, plain_step, values},
};

#[derive(Debug)]
struct RmsNorm {
    features: usize,
    /// Added to each element of the weight.
    offset: f32,
}

const EPS: f32 = 1e-6;

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for features in [1, 7, 16, 33, 512] {
        for offset in [0.0, 1.0] {
            for lengths in [&[1][..], &[17], &[3, 0, 33, 1]] {
                suite.case(&RmsNorm { features, offset }, &plain_step(lengths));
            }
        }
    }
}

impl Case for RmsNorm {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[Output::Value("out"), Output::Gradient("dx")]);
        let features = self.features;
        let weight = Matrix::random(9, Dtype::Bf16, 1, features).vector_plus(backend, self.offset);
        for step in steps {
            let x = upload(backend, features, &values(step, 0, features));
            let dy = upload(backend, features, &values(step, 1, features));
            let mut dx = upload(backend, features, &values(step, 2, features));
            let mut out = blank(backend, values(step, 0, 1).len(), features);
            backend.rms_norm(&mut out, &x, &weight, EPS);
            backend.rms_norm_backward(&mut dx, &dy, &x, &weight, EPS);
            answer.take(0, step, &backend.read_rows(&out));
            answer.take(1, step, &backend.read_rows(&dx));
        }
        answer
    }
}
