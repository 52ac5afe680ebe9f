//! Every gradient of the reference against central differences of its forward, in f64.
//!
//! What is differentiated is `Σ out · dout` with made-up `dout`: then the gradient of each input is what
//! the backward op gives for that `dout`.

use tinsmith_backend::{
    Activation, AttentionForward, AttentionShape, Backend as _, Linear, LoraGradientUse, LoraUse,
    Qkv, QkvGradients, ReferenceBackend, Rope, RopeTable, Targets, Unembedding, philox,
    reference::{Lora, Pair, Rows, Vector, Weight},
};

const RELATIVE_ERROR_MAX: f64 = 1e-6;
const STEP: f64 = 1e-5;

#[test]
fn rms_norm() {
    let (x, dout) = (made_up(1, 3 * 5), Rows::new(5, &made_up(2, 3 * 5)));
    let weight = Vector { values: made_up(3, 5) };
    let mut dx = Rows::new(5, &[0.0; 15]);
    ReferenceBackend.rms_norm_backward(&mut dx, &dout, &Rows::new(5, &x), &weight, 0.1);
    assert_gradient("dx", dx.values(), &x, |x| {
        let mut out = dout.clone();
        ReferenceBackend.rms_norm(&mut out, &Rows::new(5, x), &weight, 0.1);
        product(&out, &dout)
    });
}

#[test]
fn gated() {
    let (gate, up) = (made_up(1, 12), made_up(2, 12));
    let dout = Rows::new(4, &made_up(3, 12));
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let objective = |gate: &[f64], up: &[f64]| {
            let mut out = dout.clone();
            let (gate, up) = (Rows::new(4, gate), Rows::new(4, up));
            ReferenceBackend.gated(&mut out, &gate, &up, activation);
            product(&out, &dout)
        };
        let (mut dgate, mut dup) = (dout.clone(), dout.clone());
        let (gates, ups) = (Rows::new(4, &gate), Rows::new(4, &up));
        ReferenceBackend.gated_backward(&mut dgate, &mut dup, &dout, &gates, &ups, activation);
        let what = |name| format!("{name} of {activation:?}");
        assert_gradient(&what("dgate"), dgate.values(), &gate, |gate| objective(gate, &up));
        assert_gradient(&what("dup"), dup.values(), &up, |up| objective(&gate, up));
    }
}

#[test]
fn rope() {
    let table = RopeTable { inverse_frequencies: vec![1.0, 0.3, 0.01], amplitude: 1.2 };
    let weight = Vector { values: made_up(1, 6) };
    for norm in [None, Some((&weight, 0.05))] {
        let rope = || Rope { norm, table: &table, positions: &[0, 7, 90], head_dim: 6 };
        let (x, dout) = (made_up(2, 3 * 12), Rows::new(12, &made_up(3, 3 * 12)));
        let mut dx = dout.clone();
        ReferenceBackend.rope_backward(&mut dx, &dout, &Rows::new(12, &x), rope());
        assert_gradient("dx", dx.values(), &x, |x| {
            let mut out = dout.clone();
            ReferenceBackend.rope(&mut out, &Rows::new(12, x), rope());
            product(&out, &dout)
        });
    }
}

#[test]
fn attention() {
    for window in [None, Some(1), Some(3), Some(100)] {
        for softcap in [None, Some(0.8)] {
            let (heads, kv_heads) = (4, 2);
            let shape =
                AttentionShape { heads, kv_heads, head_dim: 3, scale: 0.9, window, softcap };
            attention_of(&shape);
        }
    }
}

fn attention_of(shape: &AttentionShape) {
    let sequences = [0..5, 5..5, 5..6, 6..10];
    let (q, k, v) = (made_up(1, 10 * 12), made_up(2, 10 * 6), made_up(3, 10 * 6));
    let dout = Rows::new(12, &made_up(4, 10 * 12));
    let forward = |q: &[f64], k: &[f64], v: &[f64]| {
        let (mut out, mut lse) = (dout.clone(), Rows::new(4, &[]));
        let (q, k, v) = (&Rows::new(12, q), &Rows::new(6, k), &Rows::new(6, v));
        ReferenceBackend.attention(&mut out, &mut lse, Qkv { q, k, v }, &sequences, shape);
        (out, lse)
    };
    let (out, lse) = forward(&q, &k, &v);
    let (mut dq, mut dk, mut dv) = (dout.clone(), Rows::new(6, &k), Rows::new(6, &v));
    let qkv = Qkv { q: &Rows::new(12, &q), k: &Rows::new(6, &k), v: &Rows::new(6, &v) };
    ReferenceBackend.attention_backward(
        QkvGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv },
        AttentionForward { qkv, out: &out, lse: &lse, dout: &dout },
        &sequences,
        shape,
    );
    let objective = |q: &[f64], k: &[f64], v: &[f64]| product(&forward(q, k, v).0, &dout);
    if shape.window == Some(1) {
        // One key's probability is 1 whatever its score.
        assert!(dq.values().iter().chain(dk.values()).all(|d| d.abs() < 1e-12));
    } else {
        assert_gradient("dq", dq.values(), &q, |q| objective(q, &k, &v));
        assert_gradient("dk", dk.values(), &k, |k| objective(&q, k, &v));
    }
    assert_gradient("dv", dv.values(), &v, |v| objective(&q, &k, v));
}

#[test]
fn linear() {
    let site = Site::new(7, 4);
    let dout = Rows::new(4, &made_up(5, 9 * 4));
    let objective = |site: &Site| product(&site.forward().0, &dout);

    let (mut dx, hidden) = (Rows::new(7, &vec![0.0; 9 * 7]), site.forward().1);
    let x = Rows::new(7, &site.x);
    let gradients = site.gradients(|uses| {
        let weight = &site.weight;
        ReferenceBackend.linear_backward(Some(&mut dx), &dout, &x, weight, &hidden, uses);
    });
    site.assert_gradients(&dx, &gradients, objective);
}

#[test]
fn score() {
    for softcap in [None, Some(0.7)] {
        score_under(softcap);
    }
}

fn score_under(softcap: Option<f32>) {
    let site = Site::new(5, 11);
    let ids: Vec<u32> = (0..9 * 2).map(|i| i * 7 % 11).collect();
    let targets = Targets { ids: &ids, per_row: 2 };
    // Exact in f32, so that the op sees what the objective sees; one row has none but zeros.
    let mut coefficients: Vec<f32> = (0_i8..18).map(|i| f32::from(i) / 8.0 - 1.0).collect();
    coefficients[6..8].fill(0.0);
    let objective = |site: &Site| {
        let logits = site.forward().0;
        let logprob = |(i, &id): (usize, &u32)| {
            let capped = |l: &f64| softcap.map(f64::from).map_or(*l, |c| c * (l / c).tanh());
            let row: Vec<f64> = logits.row(i / 2).iter().map(capped).collect();
            let normalizer = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            f64::from(coefficients[i]) * (row[id as usize] - normalizer)
        };
        ids.iter().enumerate().map(logprob).sum()
    };

    let mut dx = Rows::new(5, &vec![f64::NAN; 9 * 5]);
    let x = Rows::new(5, &site.x);
    let gradients = site.gradients(|uses| {
        ReferenceBackend.score_backward(
            Some(&mut dx),
            &x,
            Unembedding { weight: &site.weight, softcap },
            uses,
            targets,
            &mut |rows, _, out| out.copy_from_slice(&coefficients[rows.start * 2..rows.end * 2]),
        );
    });
    site.assert_gradients(&dx, &gradients, objective);
}

/// Nine rows through a matrix: rows 1 to 6 with one adapter, rows 7 and 8 with another.
#[derive(Clone)]
struct Site {
    x: Vec<f64>,
    weight: Weight,
    loras: [Lora; 2],
}

const SCALES: [f32; 2] = [0.5, 2.0];

impl Site {
    fn new(inputs: usize, outputs: usize) -> Self {
        let lora = |rank, seed| Lora {
            rank,
            a: made_up(seed, rank * inputs),
            b: made_up(seed + 1, outputs * rank),
        };
        let weight = Weight::new(inputs, &made_up(6, outputs * inputs));
        Self { x: made_up(7, 9 * inputs), weight, loras: [lora(3, 8), lora(1, 10)] }
    }

    /// The output, and `x Aᵀ`.
    fn forward(&self) -> (Rows, Rows) {
        let [first, second] = &self.loras;
        let uses = [
            LoraUse { rows: 1..7, lora: first, scale: SCALES[0] },
            LoraUse { rows: 7..9, lora: second, scale: SCALES[1] },
        ];
        let Weight { inputs, outputs, .. } = self.weight;
        let mut out = Rows::new(outputs, &vec![f64::NAN; 9 * outputs]);
        let mut hidden = Rows::new(1, &[]);
        let linear = Linear { weight: &self.weight, bias: None, uses: &uses, add: false };
        let x = Rows::new(inputs, &self.x);
        ReferenceBackend.linear(&mut out, &x, linear, Some(&mut hidden));
        (out, hidden)
    }

    fn gradients(&self, op: impl FnOnce(&mut [LoraGradientUse<'_, Lora, Pair>])) -> [Pair; 2] {
        let zeros = |lora: &Lora| Pair { a: vec![0.0; lora.a.len()], b: vec![0.0; lora.b.len()] };
        let mut gradients = self.loras.each_ref().map(zeros);
        let [first, second] = &mut gradients;
        let (lora, datums, scale) = (&self.loras[0], &[1..3, 3..3, 3..7][..], SCALES[0]);
        let first = LoraGradientUse { rows: 1..7, datums, lora, gradient: first, scale };
        let (lora, datums, scale) = (&self.loras[1], &[7..8, 8..9][..], SCALES[1]);
        let second = LoraGradientUse { rows: 7..9, datums, lora, gradient: second, scale };
        op(&mut [first, second]);
        gradients
    }

    fn assert_gradients(&self, dx: &Rows, gradients: &[Pair; 2], objective: impl Fn(&Self) -> f64) {
        assert_gradient("dx", dx.values(), &self.x, |x| {
            objective(&Self { x: x.to_vec(), ..self.clone() })
        });
        for (i, gradient) in gradients.iter().enumerate() {
            assert_gradient("dA", &gradient.a, &self.loras[i].a, |a| {
                let mut site = self.clone();
                site.loras[i].a = a.to_vec();
                objective(&site)
            });
            assert_gradient("dB", &gradient.b, &self.loras[i].b, |b| {
                let mut site = self.clone();
                site.loras[i].b = b.to_vec();
                objective(&site)
            });
        }
    }
}

/// Compares each element with the difference quotient of `objective` at `parameters`.
fn assert_gradient(
    what: &str,
    gradient: &[f64],
    parameters: &[f64],
    objective: impl Fn(&[f64]) -> f64,
) {
    assert_eq!(gradient.len(), parameters.len());
    let magnitude = gradient.iter().map(|value| value.abs()).fold(0.0, f64::max);
    assert!(magnitude > 0.01, "{what}: a gradient of zeros proves nothing");
    for (i, &analytic) in gradient.iter().enumerate() {
        let at = |step: f64| {
            let mut moved = parameters.to_vec();
            moved[i] += step;
            objective(&moved)
        };
        let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let error = (numeric - analytic).abs() / (analytic.abs() + 0.01 * magnitude);
        assert!(error < RELATIVE_ERROR_MAX, "{what}[{i}]: {analytic} for {numeric}");
    }
}

fn product(out: &Rows, dout: &Rows) -> f64 {
    out.values().iter().zip(dout.values()).map(|(out, dout)| out * dout).sum()
}

/// Numbers in `[-1, 1)`.
fn made_up(stream: u32, count: usize) -> Vec<f64> {
    let count = u32::try_from(count).expect("few numbers");
    let value = |index| {
        let [low, high, ..] = philox::philox4x32_10([index, 0, 0, 0], [stream, 0]);
        2.0 * philox::uniform_f64(low, high) - 1.0
    };
    (0..count).map(value).collect()
}
