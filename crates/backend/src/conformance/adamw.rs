//! The optimizer's step and the sums of squares.

use crate::{AdamW, Backend};

use super::{
    Suite,
    inputs::{Inputs, inverse_root},
};

/// The shape of one adapter site.
#[derive(Clone, Copy, Debug)]
struct Site {
    inputs: usize,
    outputs: usize,
    rank: usize,
}

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for (inputs, outputs, rank) in [(1, 1, 1), (5, 33, 7), (64, 48, 16), (257, 130, 64)] {
        let site = Site { inputs, outputs, rank };
        for (weight_decay, eps) in [(0.0, 1e-12), (0.1, 1e-8)] {
            let actual = optimize(&mut suite.backend, site, weight_decay, eps);
            let expected = optimize(&mut suite.reference, site, weight_decay, eps);
            for ((what, actual), (_, expected)) in actual.iter().zip(&expected) {
                let what = format!("{site:?} {what}");
                suite.close(&what, actual, expected, suite.tolerances.values);
            }
        }
        sum_squares(suite, site);
    }
}

/// Parameters and moments after three steps, the last of them without a gradient.
fn optimize<B: Backend>(
    backend: &mut B,
    site: Site,
    weight_decay: f64,
    eps: f64,
) -> Vec<(&'static str, Vec<f32>)> {
    let mut stream = Inputs::new(3);
    let Site { inputs, outputs, rank } = site;
    let a = stream.values(rank * inputs, inverse_root(inputs));
    // B starts at zero, as adapters do.
    let b = vec![0.0; outputs * rank];
    let mut lora = backend.lora(&a, &b, rank).expect("the suite's adapters are small");
    let mut pair = || backend.pair(&lora).expect("the suite's adapters are small");
    let (mut first, mut second, mut gradient) = (pair(), pair(), pair());
    for (number, gradient_scale) in [(1, 1.0), (2, 0.3), (3, 0.0)] {
        let gradient_a = stream.values(a.len(), 2.0);
        backend.write_pair(&mut gradient, &gradient_a, &stream.values(b.len(), 1e-3));
        let step = AdamW {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps,
            weight_decay,
            step: number,
            gradient_scale,
        };
        backend.adamw(&mut lora, &gradient, &mut first, &mut second, &step);
    }
    let (a, b) = backend.read_lora(&lora);
    let (first_a, first_b) = backend.read_pair(&first);
    let (second_a, second_b) = backend.read_pair(&second);
    vec![
        ("A", a),
        ("B", b),
        ("first moment of A", first_a),
        ("first moment of B", first_b),
        ("second moment of A", second_a),
        ("second moment of B", second_b),
    ]
}

fn sum_squares<B: Backend>(suite: &mut Suite<'_, B>, site: Site) {
    let actual = sums(&mut suite.backend, site);
    let expected = sums(&mut suite.reference, site);
    for (actual, expected) in [(actual.0, expected.0), (actual.1, expected.1)] {
        // In f64, all but the order of the sum is the same.
        if (actual - expected).abs() > 1e-12 * expected {
            suite.fail(&format!("{site:?} sum_squares: {actual:?} for {expected:?}"));
        }
    }
    if sums(&mut suite.backend, site) != actual {
        suite.fail(&format!("{site:?} sum_squares: other bits the second time"));
    }
}

fn sums<B: Backend>(backend: &mut B, site: Site) -> (f64, f64) {
    let mut stream = Inputs::new(4);
    let a = stream.values(site.rank * site.inputs, 1.0);
    let b = stream.values(site.outputs * site.rank, 1e-3);
    let lora = backend.lora(&a, &b, site.rank).expect("the suite's adapters are small");
    let mut pair = backend.pair(&lora).expect("the suite's adapters are small");
    backend.write_pair(&mut pair, &a, &b);
    backend.sum_squares(&pair)
}
