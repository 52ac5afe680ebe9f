//! Picking rows of the embedding table and of activations.

use crate::{Backend, Dtype};

use super::{
    Suite,
    inputs::{Inputs, Matrix, blank, upload},
    step::{Answer, Case, Output, Step, plain_step, values},
};

const VOCABULARY: usize = 37;

#[derive(Debug)]
struct Embed {
    features: usize,
    dtype: Dtype,
    scale: f32,
}

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for (features, scale) in [(1, 1.0), (7, 0.5), (16, 1.0), (33, 5.7)] {
            for lengths in [&[1][..], &[17, 0, 3], &[0]] {
                suite.case(&Embed { features, dtype, scale }, &plain_step(lengths));
            }
        }
    }
    gather(suite);
}

impl Case for Embed {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[Output::Value("out")]);
        let table = Matrix::random(9, self.dtype, VOCABULARY, self.features).weight(backend);
        for step in steps {
            let token = |value: f32| Inputs::new(u64::from(value.to_bits())).below(37);
            let tokens: Vec<u32> = values(step, 0, 1).into_iter().map(token).collect();
            let mut out = blank(backend, tokens.len(), self.features);
            backend.embed(&mut out, &table, &tokens, self.scale);
            answer.take(0, step, &backend.read_rows(&out));
        }
        answer
    }
}

fn gather<B: Backend>(suite: &mut Suite<'_, B>) {
    for features in [1, 7, 48] {
        let values = values(&plain_step(&[9]), 0, features);
        let x = upload(&mut suite.backend, features, &values);
        for indices in [&[0][..], &[8, 8, 0, 3], &[]] {
            let mut out = blank(&mut suite.backend, indices.len(), features);
            suite.backend.gather(&mut out, &x, indices);
            let expected: Vec<f32> =
                indices.iter().flat_map(|i| &values[i * features..][..features]).copied().collect();
            let actual = suite.backend.read_rows(&out);
            suite.same_bits(&format!("gather {features} {indices:?}"), &actual, &expected);
        }
    }
}
