//! Linear with adapters, and its gradient.

use crate::{Backend, Dtype, Linear};

use super::{
    Suite,
    inputs::{Matrix, blank, upload},
    step::{Adapters, Answer, Case, Output, Step, segment_ranges, step, values},
};

#[derive(Debug)]
struct LinearSite {
    inputs: usize,
    outputs: usize,
    dtype: Dtype,
    bias: bool,
    add: bool,
    ranks: &'static [usize],
}

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    let shapes =
        [(1, 1), (5, 7), (16, 16), (33, 17), (64, 130), (256, 48), (257, 31), (300, 65), (600, 97)];
    for (i, (inputs, outputs)) in shapes.into_iter().enumerate() {
        let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][i % 3];
        let (bias, add) = (i % 2 == 0, i % 4 < 2);
        let ranks = &[1, 7, 16, 64];
        let case = LinearSite { inputs, outputs, dtype, bias, add, ranks };
        for step in steps() {
            suite.case(&case, &step);
        }
    }
    without_input_gradient(suite);
}

/// Steps for sites with ranks 1, 7, 16 and 64; `score` runs them too.
pub(super) fn steps() -> [Step; 6] {
    [
        step(&[(None, &[1])]),
        step(&[(Some(3), &[1])]),
        step(&[(None, &[0])]),
        step(&[(Some(2), &[33, 1, 17])]),
        step(&[(Some(1), &[2, 0, 5]), (None, &[3]), (Some(0), &[0]), (Some(2), &[1, 7])]),
        step(&[(None, &[1]), (Some(0), &[1, 1]), (Some(3), &[65, 64]), (Some(1), &[129, 2])]),
    ]
}

impl Case for LinearSite {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[Output::Value("out"), Output::Gradient("dx")]);
        let Self { inputs, outputs, dtype, .. } = *self;
        let weight = Matrix::random(7, dtype, outputs, inputs).weight(backend);
        let bias = Matrix::random(8, Dtype::F32, 1, outputs).vector(backend);
        let mut adapters = Adapters::new(backend, self.ranks, inputs, outputs);
        let mut hidden = blank(backend, 0, 1);
        for step in steps {
            let x = upload(backend, inputs, &values(step, 0, inputs));
            let dy = upload(backend, outputs, &values(step, 1, outputs));
            let mut dx = upload(backend, inputs, &values(step, 2, inputs));
            let mut out = upload(backend, outputs, &values(step, 3, outputs));
            let uses = adapters.uses(step);
            let bias = self.bias.then_some(&bias);
            let linear = Linear { weight: &weight, bias, uses: &uses, add: self.add };
            backend.linear(&mut out, &x, linear, Some(&mut hidden));
            let ranges = segment_ranges(step);
            let mut uses = adapters.gradient_uses(step, &ranges);
            backend.linear_backward(Some(&mut dx), &dy, &x, &weight, &hidden, &mut uses);
            answer.take(0, step, &backend.read_rows(&out));
            answer.take(1, step, &backend.read_rows(&dx));
        }
        answer.gradients = adapters.read_gradients(backend);
        answer
    }
}

/// Neither leaving out `dx` nor leaving out `hidden` changes a bit of the rest.
fn without_input_gradient<B: Backend>(suite: &mut Suite<'_, B>) {
    let (inputs, outputs) = (48, 33);
    let step = step(&[(Some(0), &[5, 70]), (None, &[2])]);
    let backend = &mut suite.backend;
    let weight = Matrix::random(7, Dtype::Bf16, outputs, inputs).weight(backend);
    let x = upload(backend, inputs, &values(&step, 0, inputs));
    let dy = upload(backend, outputs, &values(&step, 1, outputs));
    let mut dx = upload(backend, inputs, &values(&step, 2, inputs));
    let (mut outs, mut gradients) = (Vec::new(), Vec::new());
    for with in [true, false] {
        let mut adapters = Adapters::new(backend, &[7], inputs, outputs);
        let mut hidden = blank(backend, 0, 1);
        let mut out = blank(backend, 77, outputs);
        let uses = adapters.uses(&step);
        let linear = || Linear { weight: &weight, bias: None, uses: &uses, add: false };
        backend.linear(&mut out, &x, linear(), Some(&mut hidden));
        if !with {
            out = blank(backend, 77, outputs);
            backend.linear(&mut out, &x, linear(), None);
        }
        outs.push(backend.read_rows(&out));
        let ranges = segment_ranges(&step);
        let mut uses = adapters.gradient_uses(&step, &ranges);
        let dx = with.then_some(&mut dx);
        backend.linear_backward(dx, &dy, &x, &weight, &hidden, &mut uses);
        gradients.push(adapters.read_gradients(backend).remove(0));
    }
    suite.same_bits("without hidden", &outs[1], &outs[0]);
    suite.same_bits("without dx, dA", &gradients[1].0, &gradients[0].0);
    suite.same_bits("without dx, dB", &gradients[1].1, &gradients[0].1);
}
