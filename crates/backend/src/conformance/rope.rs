//! Rotary embedding with and without the norm of heads, and its gradient.

use crate::{Backend, Dtype, Rope, RopeTable};

use super::{
    Suite,
    inputs::{Inputs, Matrix, blank, upload},
    step::{Answer, Case, Output, Step, plain_step, values},
};

#[derive(Debug)]
struct RotatedHeads {
    heads: usize,
    head_dim: usize,
    norm: bool,
    amplitude: f32,
    /// Positions are below two to this.
    position_bits: u32,
}

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for (heads, head_dim) in [(1, 4), (3, 6), (1, 16), (2, 64), (5, 32), (1, 128)] {
        for (norm, amplitude) in [(false, 1.0), (true, 1.0), (true, 1.25)] {
            // Some backend may keep a table of all positions, so not every case goes far.
            let position_bits = if head_dim == 6 { 19 } else { 12 };
            let case = RotatedHeads { heads, head_dim, norm, amplitude, position_bits };
            for lengths in [&[1][..], &[17, 0, 3]] {
                suite.case(&case, &plain_step(lengths));
            }
        }
    }
}

impl Case for RotatedHeads {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[Output::Value("out"), Output::Gradient("dx")]);
        let features = self.heads * self.head_dim;
        let weight = Matrix::random(9, Dtype::F32, 1, self.head_dim).vector(backend);
        let table = self.table();
        for step in steps {
            let positions = self.positions(step);
            let rope = || Rope {
                norm: self.norm.then_some((&weight, 1e-6)),
                table: &table,
                positions: &positions,
                head_dim: self.head_dim,
            };
            let x = upload(backend, features, &values(step, 0, features));
            let dy = upload(backend, features, &values(step, 1, features));
            let mut out = blank(backend, positions.len(), features);
            let mut dx = blank(backend, positions.len(), features);
            backend.rope(&mut out, &x, rope());
            backend.rope_backward(&mut dx, &dy, &x, rope());
            answer.take(0, step, &backend.read_rows(&out));
            answer.take(1, step, &backend.read_rows(&dx));
        }
        answer
    }
}

impl RotatedHeads {
    fn table(&self) -> RopeTable {
        let half = self.head_dim / 2;
        #[expect(clippy::cast_precision_loss, reason = "heads have few features")]
        let frequency = |i: usize| 1e6_f32.powf(-(i as f32) / half as f32);
        RopeTable {
            inverse_frequencies: (0..half).map(frequency).collect(),
            amplitude: self.amplitude,
        }
    }

    /// More of them small.
    fn positions(&self, step: &Step) -> Vec<u32> {
        let position = |value: f32| {
            let mut stream = Inputs::new(u64::from(value.to_bits()));
            let limit = 1 << stream.below(self.position_bits + 1);
            stream.below(limit)
        };
        values(step, 3, 1).into_iter().map(position).collect()
    }
}
