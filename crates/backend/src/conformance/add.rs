//! Adding activations.

use crate::Backend;

use super::{
    Suite,
    inputs::upload,
    step::{Answer, Case, Output, Step, plain_step, values},
};

#[derive(Debug)]
struct Add {
    features: usize,
}

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for features in [1, 7, 16, 33, 512] {
        for lengths in [&[1][..], &[17], &[3, 0, 33, 1]] {
            suite.case(&Add { features }, &plain_step(lengths));
        }
    }
}

impl Case for Add {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[Output::Value("out")]);
        for step in steps {
            let x = upload(backend, self.features, &values(step, 0, self.features));
            let mut out = upload(backend, self.features, &values(step, 1, self.features));
            backend.add(&mut out, &x);
            answer.take(0, step, &backend.read_rows(&out));
        }
        answer
    }
}
