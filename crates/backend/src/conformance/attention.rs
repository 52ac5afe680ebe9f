//! Causal attention of whole sequences, and its gradient.

use crate::{AttentionForward, AttentionShape, Backend, Qkv, QkvGradients};

use super::{
    Suite,
    inputs::{blank, inverse_root, upload},
    step::{Answer, Case, Output, Step, plain_step, ranges, values},
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// `scale · sqrt(head_dim)`. Rows are in [-1, 1): at 1, the weights would hardly differ from each other.
    pub(super) sharpness: f32,
    pub(super) window: Option<usize>,
    pub(super) softcap: Option<f32>,
}

const fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
    Attention { heads, kv_heads, head_dim, sharpness: 4.0, window: None, softcap: None }
}

pub(super) const SHAPES: [Attention; 6] = [
    plain(1, 1, 16),
    plain(2, 1, 64),
    plain(6, 2, 24),
    plain(3, 3, 6),
    plain(2, 2, 128),
    plain(2, 1, 256),
];

/// Windows of one key, within a tile, of whole tiles, just beside them, and longer than the sequence.
pub(super) const WINDOWED: [Attention; 7] = [
    Attention { window: Some(1), ..plain(2, 1, 24) },
    Attention { window: Some(5), softcap: Some(1.0), ..plain(6, 2, 24) },
    Attention { window: Some(31), ..plain(3, 3, 6) },
    Attention { window: Some(32), softcap: Some(2.5), ..plain(2, 1, 256) },
    Attention { window: Some(33), ..plain(6, 2, 16) },
    Attention { window: Some(97), softcap: Some(0.5), ..plain(4, 1, 16) },
    Attention { window: Some(5000), softcap: Some(3.0), ..plain(2, 2, 40) },
];

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for case in SHAPES {
        // A lone row's dq and dk are zero, which gives errors no scale: it runs beside another.
        for lengths in [&[1, 5][..], &[31, 32, 33], &[65, 0, 300, 1], &[2, 64, 1, 96]] {
            check_case(suite, &case, &plain_step(lengths));
        }
    }
    for case in WINDOWED {
        for lengths in [&[1, 5][..], &[31, 0, 33, 64], &[65, 200, 1]] {
            check_case(suite, &case, &plain_step(lengths));
        }
    }
    wide_windows_show_nothing(suite);
    check_case(suite, &SHAPES[0], &plain_step(&[2049]));
    // Scores in the hundreds, where an exponential that is not taken from the maximum overflows.
    let sharp = Attention { sharpness: 400.0, ..SHAPES[0] };
    suite.values_within(100.0, &sharp, &plain_step(&[97, 33]));
    suite.invariance(&sharp, &plain_step(&[97, 33]));
    // The same scores under a cap that nearly all of them reach.
    let capped = Attention { softcap: Some(20.0), window: Some(40), ..sharp };
    suite.values_within(100.0, &capped, &plain_step(&[97, 33]));
}

/// The values against the reference, and that company changes nothing.
pub(super) fn check_case<B: Backend>(suite: &mut Suite<'_, B>, case: &impl Case, step: &Step) {
    suite.values_within(suite.tolerances.attention, case, step);
    suite.invariance(case, step);
}

/// A window that holds every key changes no bit.
fn wide_windows_show_nothing<B: Backend>(suite: &mut Suite<'_, B>) {
    let step = plain_step(&[65, 200, 1]);
    let without = SHAPES[2].run(&mut suite.backend, std::slice::from_ref(&step));
    for window in [200, usize::MAX] {
        let case = Attention { window: Some(window), ..SHAPES[2] };
        let with = case.run(&mut suite.backend, std::slice::from_ref(&step));
        suite.same_outputs(&format!("{case:?} against no window"), &with, &without);
    }
}

impl Attention {
    pub(super) fn shape(self) -> AttentionShape {
        let Self { heads, kv_heads, head_dim, sharpness, window, softcap } = self;
        let scale = sharpness * inverse_root(head_dim);
        AttentionShape { heads, kv_heads, head_dim, scale, window, softcap }
    }

    pub(super) fn kv_features(self) -> usize {
        self.kv_heads * self.head_dim
    }

    pub(super) fn q_features(self) -> usize {
        self.heads * self.head_dim
    }
}

impl Case for Attention {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn rowwise(&self) -> bool {
        false
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[
            Output::Value("out"),
            Output::Value("lse"),
            Output::Gradient("dq"),
            Output::Gradient("dk"),
            Output::Gradient("dv"),
        ]);
        let (wide, narrow, shape) = (self.q_features(), self.kv_features(), self.shape());
        for step in steps {
            let q = &upload(backend, wide, &values(step, 0, wide));
            let k = &upload(backend, narrow, &values(step, 1, narrow));
            let v = &upload(backend, narrow, &values(step, 2, narrow));
            let dout = &upload(backend, wide, &values(step, 3, wide));
            let sequences = ranges(step);
            let rows = values(step, 0, 1).len();
            let (mut out, mut lse) = (blank(backend, rows, wide), blank(backend, 0, 1));
            backend.attention(&mut out, &mut lse, Qkv { q, k, v }, &sequences, &shape);

            let (mut dq, mut dk) = (blank(backend, rows, wide), blank(backend, rows, narrow));
            let mut dv = blank(backend, rows, narrow);
            let gradients = QkvGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            let forward = AttentionForward { qkv: Qkv { q, k, v }, out: &out, lse: &lse, dout };
            backend.attention_backward(gradients, forward, &sequences, &shape);
            for (i, result) in [&out, &lse, &dq, &dk, &dv].into_iter().enumerate() {
                answer.take(i, step, &backend.read_rows(result));
            }
        }
        answer
    }
}
