//! The gated activation and its gradient.

use crate::{Activation, Backend};

use super::{
    Suite,
    inputs::{blank, upload},
    step::{Answer, Case, Output, Step, plain_step, values},
};

#[derive(Debug)]
struct Gated {
    features: usize,
    activation: Activation,
    /// Factor on the gate's numbers, which are in `[-1, 1)` without it.
    gate_scale: f32,
}

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for features in [1, 7, 16, 33, 300] {
            for gate_scale in [1.0, 10.0, 200.0] {
                let case = Gated { features, activation, gate_scale };
                for lengths in [&[1][..], &[17, 0, 3]] {
                    suite.case(&case, &plain_step(lengths));
                }
            }
        }
    }
}

impl Case for Gated {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let outputs = [Output::Value("out"), Output::Gradient("dgate"), Output::Gradient("dup")];
        let mut answer = Answer::new(&outputs);
        let features = self.features;
        for step in steps {
            let gate: Vec<f32> =
                values(step, 0, features).iter().map(|value| value * self.gate_scale).collect();
            let gate = upload(backend, features, &gate);
            let up = upload(backend, features, &values(step, 1, features));
            let dout = upload(backend, features, &values(step, 2, features));
            let rows = values(step, 0, 1).len();
            let mut results = [(); 3].map(|()| blank(backend, rows, features));
            let [out, dgate, dup] = &mut results;
            backend.gated(out, &gate, &up, self.activation);
            backend.gated_backward(dgate, dup, &dout, &gate, &up, self.activation);
            for (i, result) in results.iter().enumerate() {
                answer.take(i, step, &backend.read_rows(result));
            }
        }
        answer
    }
}
