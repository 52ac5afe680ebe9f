//! Several linear maps of the same rows, and their gradients.

use crate::{Backend, Dtype, Linear, LinearGradientPart, LinearPart};

use super::{
    Suite,
    inputs::{Matrix, blank, upload},
    linear,
    step::{Adapters, Answer, Case, Output, Step, segment_ranges, values},
};

const RANKS: &[usize] = &[1, 7, 16, 64];

/// Three maps, of so many outputs each.
#[derive(Debug)]
struct Sites {
    inputs: usize,
    outputs: [usize; 3],
    dtype: Dtype,
}

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    let shapes = [(1, [1, 1, 1]), (33, [17, 5, 64]), (64, [48, 16, 16]), (300, [31, 130, 1])];
    for (i, (inputs, outputs)) in shapes.into_iter().enumerate() {
        let dtype = [Dtype::Bf16, Dtype::F32, Dtype::F16][i % 3];
        let case = Sites { inputs, outputs, dtype };
        for step in linear::steps() {
            suite.case(&case, &step);
        }
    }
}

impl Case for Sites {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        const OUT: [Output; 3] =
            [Output::Value("out 0"), Output::Value("out 1"), Output::Value("out 2")];
        let mut answer = Answer::new(&[OUT[0], OUT[1], OUT[2], Output::Gradient("dx")]);
        let Self { inputs, outputs, dtype } = *self;
        let weights = outputs.map(|out| Matrix::random(7, dtype, out, inputs).weight(backend));
        let bias = Matrix::random(8, Dtype::F32, 1, outputs[0]).vector(backend);
        let mut adapters = outputs.map(|out| Adapters::new(backend, RANKS, inputs, out));
        let mut hidden = outputs.map(|_| blank(backend, 0, 1));
        for step in steps {
            let x = upload(backend, inputs, &values(step, 0, inputs));
            let mut outs = outputs.map(|out| upload(backend, out, &values(step, 3, out)));
            let uses = adapters.each_ref().map(|adapters| adapters.uses(step));
            let mut parts = Vec::new();
            for (i, (out, hidden)) in outs.iter_mut().zip(&mut hidden).enumerate() {
                let bias = (i == 0).then_some(&bias);
                let linear = Linear { weight: &weights[i], bias, uses: &uses[i], add: i == 1 };
                parts.push(LinearPart { out, linear, hidden: Some(hidden) });
            }
            backend.linears(&x, &mut parts);
            drop(parts);
            drop(uses);
            for (i, out) in outs.iter().enumerate() {
                answer.take(i, step, &backend.read_rows(out));
            }
            let dys = outputs.map(|out| upload(backend, out, &values(step, 1, out)));
            let mut dx = upload(backend, inputs, &values(step, 2, inputs));
            let ranges = segment_ranges(step);
            let mut uses =
                adapters.each_mut().map(|adapters| adapters.gradient_uses(step, &ranges));
            let mut parts = Vec::new();
            for (i, uses) in uses.iter_mut().enumerate() {
                let (dy, weight, hidden) = (&dys[i], &weights[i], &hidden[i]);
                parts.push(LinearGradientPart { dy, weight, hidden, uses });
            }
            backend.linears_backward(Some(&mut dx), &x, &mut parts);
            answer.take(3, step, &backend.read_rows(&dx));
        }
        answer.gradients = adapters.iter().flat_map(|each| each.read_gradients(backend)).collect();
        answer
    }
}
