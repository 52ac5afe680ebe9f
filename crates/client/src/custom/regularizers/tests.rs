use std::sync::Arc;

use proptest::prelude::*;

use super::{
    Axis, Center, Consistency, CustomLossOutput, Direction, Distance, ElasticNet, Entropy,
    EntropyMode, GradientPenalty, KlDivergence, L1, L2, Named, Orthogonality, OrthogonalityMode,
    Partner, Reference, Regularized, Regularizer, Scope, Target,
};
use crate::{
    Datum, Result,
    custom::{
        CustomLoss, LossValue, Var, array::Array, check::check_arrays, evaluate,
        evaluate::differentiated,
    },
};

/// A regularizer as the loss itself.
struct Alone<R>(R);

impl<R: Regularizer> CustomLoss for Alone<R> {
    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        self.0.compute(data, logprobs)
    }
}

/// The last token has no advantage.
fn data() -> Vec<Datum> {
    let datum = |logprobs: [f32; 4]| {
        let tokens: &[u32] = &[1, 2, 3, 4];
        Datum::new(tokens)
            .with_input("target_tokens", tokens)
            .with_input("original_logprobs", &logprobs[..])
            .with_input("advantages", &[1.0, 1.0, -1.0, 0.0][..])
    };
    vec![datum([-0.5, -1.0, -1.5, -2.0]), datum([-1.5, -0.25, -0.75, -0.5])]
}

fn vectors() -> Vec<Array> {
    let of = |values: [f64; 4]| Array::new(vec![4], values.to_vec()).unwrap();
    vec![of([-0.7, -1.2, -0.1, -2.3]), of([-0.4, -0.9, -1.9, -0.6])]
}

fn matrices() -> Vec<Array> {
    vectors().iter().map(|values| values.reshape(&[2, 2]).unwrap()).collect()
}

fn reference() -> Reference {
    Reference::Input("original_logprobs".to_owned())
}

fn given() -> Reference {
    Reference::Logprobs(vec![vec![-0.5, -1.0, -1.5, -2.0], vec![-1.5, -0.25, -0.75, -0.5]])
}

/// Every regularizer with every option, and whether it needs candidates.
fn all() -> Vec<(Box<dyn Regularizer>, bool)> {
    let masked = || Scope::mean().masked_by("advantages");
    let kl = |direction| KlDivergence { direction, ..KlDivergence::new(given()) };
    let orthogonal = |mode, normalize, axis| Orthogonality { mode, normalize, axis };
    let near = |distance| Consistency {
        partner: Partner::Reference(given()),
        distance,
        scope: Scope::mean(),
    };
    let pairs =
        |distance| Consistency { partner: Partner::Neighbour, distance, scope: Scope::sum() };
    let cubes = |_: &[Datum], x: &[Var]| Ok(LossValue::new((x[0].powf(3.0) + x[1].square()).sum()));
    let between = GradientPenalty::new(cubes).target_norm(0.5).between(given(), 0.3);
    let mut all: Vec<(Box<dyn Regularizer>, bool)> = vec![
        (Box::new(L1::default()), false),
        (Box::new(L1 { target: Target::Probabilities, scope: Scope::mean() }), false),
        (Box::new(L1 { scope: masked(), ..L1::default() }), false),
        (Box::new(L2::default()), false),
        (Box::new(L2 { center: Center::Mean, scope: Scope::mean(), ..L2::default() }), false),
        (
            Box::new(L2 {
                center: Center::At(-1.0),
                clip: Some(0.5),
                target: Target::Logprobs,
                scope: masked(),
            }),
            false,
        ),
        (Box::new(L2 { center: Center::Mean, scope: masked(), ..L2::default() }), false),
        (Box::new(ElasticNet { l1_ratio: 0.3, ..ElasticNet::default() }), false),
        (Box::new(Entropy::default()), false),
        (
            Box::new(Entropy {
                mode: EntropyMode::Maximize,
                scope: masked(),
                ..Entropy::default()
            }),
            false,
        ),
        (Box::new(Entropy { temperature: 2.0, normalize: true, ..Entropy::default() }), true),
        (Box::new(kl(Direction::Forward)), false),
        (Box::new(kl(Direction::Reverse)), false),
        (Box::new(kl(Direction::Symmetric)), false),
        (Box::new(KlDivergence { scope: masked(), ..kl(Direction::Forward) }), false),
        (
            Box::new(KlDivergence::new(Reference::Computed(Arc::new(|data| {
                Ok(vec![vec![-1.0; 4]; data.len()])
            })))),
            false,
        ),
        (Box::new(GradientPenalty::new(cubes)), false),
        (Box::new(between), false),
        (Box::new(Named::new("mine", cubes)), false),
    ];
    for distance in [Distance::Squared, Distance::Absolute, Distance::Cosine, Distance::Kl] {
        all.push((Box::new(near(distance)), false));
        all.push((Box::new(pairs(distance)), false));
    }
    for mode in [OrthogonalityMode::Soft, OrthogonalityMode::Hard, OrthogonalityMode::Spectral] {
        for normalize in [true, false] {
            for axis in [Axis::Rows, Axis::Columns] {
                all.push((Box::new(orthogonal(mode, normalize, axis)), false));
            }
        }
    }
    all
}

#[test]
fn every_regularizer_has_the_gradient_of_its_values() {
    for (regularizer, needs_candidates) in all() {
        let name = regularizer.name().to_owned();
        let loss = Alone(regularizer);
        if !needs_candidates {
            let check = check_arrays(&loss, &data(), &vectors())
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(check.is_within(1e-7) && check.compared == 8, "{name}: {check:?}");
        }
        // The masks of the test data are [4], the matrices [2, 2].
        match check_arrays(&loss, &data(), &matrices()) {
            Ok(check) => assert!(check.is_within(1e-7) && check.compared == 8, "{name}: {check:?}"),
            Err(error) => {
                assert!(error.to_string().contains("the mask advantages"), "{name}: {error}");
            }
        }
    }
}

#[derive(serde::Deserialize)]
struct Golden {
    name: String,
    candidates: bool,
    value: f64,
    gradient: Vec<f64>,
}

/// What the golden file calls by this name.
fn golden(name: &str) -> Box<dyn Regularizer> {
    let masked = || Scope::mean().masked_by("advantages");
    let kl = |direction| KlDivergence { direction, ..KlDivergence::new(given()) };
    let near = |distance| Consistency {
        partner: Partner::Reference(given()),
        distance,
        scope: Scope::mean(),
    };
    let orthogonal = |mode, normalize, axis| Orthogonality { mode, normalize, axis };
    let cubes =
        |_: &[Datum], x: &[Var]| Ok(LossValue::new(x[0].powf(3.0).sum() + x[1].square().sum()));
    match name {
        "l1" => Box::new(L1::default()),
        "l1 of probabilities, mean" => {
            Box::new(L1 { target: Target::Probabilities, scope: Scope::mean() })
        }
        "l1, masked" => Box::new(L1 { scope: masked(), ..L1::default() }),
        "l2" => Box::new(L2::default()),
        "l2 around the mean" => {
            Box::new(L2 { center: Center::Mean, scope: Scope::mean(), ..L2::default() })
        }
        "l2 at -1, clipped, masked" => Box::new(L2 {
            center: Center::At(-1.0),
            clip: Some(0.5),
            scope: masked(),
            ..L2::default()
        }),
        "elastic net" => Box::new(ElasticNet { l1_ratio: 0.3, ..ElasticNet::default() }),
        "entropy of targets" | "entropy of candidates" => Box::new(Entropy::default()),
        "entropy, sought, masked" => {
            Box::new(Entropy { mode: EntropyMode::Maximize, scope: masked(), ..Entropy::default() })
        }
        "entropy, hot, normalized" => {
            Box::new(Entropy { temperature: 2.0, normalize: true, ..Entropy::default() })
        }
        "kl, forward" | "kl of candidates" => Box::new(kl(Direction::Forward)),
        "kl, reverse" => Box::new(kl(Direction::Reverse)),
        "kl, symmetric" => Box::new(kl(Direction::Symmetric)),
        "consistency, squared" => Box::new(near(Distance::Squared)),
        "consistency, absolute" => Box::new(near(Distance::Absolute)),
        "consistency, cosine" => Box::new(near(Distance::Cosine)),
        "consistency, kl" => Box::new(near(Distance::Kl)),
        "consistency, neighbours" => Box::new(Consistency {
            partner: Partner::Neighbour,
            distance: Distance::Squared,
            scope: Scope::sum(),
        }),
        "orthogonality, soft" => Box::new(Orthogonality::default()),
        "orthogonality, hard" => Box::new(orthogonal(OrthogonalityMode::Hard, false, Axis::Rows)),
        "orthogonality, spectral, columns" => {
            Box::new(orthogonal(OrthogonalityMode::Spectral, false, Axis::Columns))
        }
        "orthogonality of candidates" => {
            Box::new(orthogonal(OrthogonalityMode::Hard, true, Axis::Rows))
        }
        "gradient penalty" => Box::new(GradientPenalty::new(cubes)),
        "gradient penalty, between" => {
            Box::new(GradientPenalty::new(cubes).target_norm(0.5).between(given(), 0.3))
        }
        other => panic!("{other} is not known here"),
    }
}

#[test]
fn every_regularizer_agrees_with_torch() {
    let cases = include_str!("../../../tests/golden/regularizers/regularizers.json");
    let cases: Vec<Golden> = serde_json::from_str(cases).unwrap();
    assert!(cases.len() >= 26, "{}", cases.len());
    for case in cases {
        let logprobs = if case.candidates { matrices() } else { vectors() };
        let got = differentiated(&Alone(golden(&case.name)), &data(), &logprobs).unwrap();
        let near = |x: f64, y: f64| (x - y).abs() < 1e-9 * y.abs().max(1.0);
        assert!(near(got.loss, case.value), "{}: {} {}", case.name, got.loss, case.value);
        let gradient = got.gradients.concat();
        let all = gradient.iter().zip(&case.gradient).all(|(x, y)| near(*x, *y));
        assert!(all && gradient.len() == 8, "{}: {gradient:?} {:?}", case.name, case.gradient);
    }
}

#[test]
fn kl_and_consistency_have_a_gradient() {
    let regularizers: [Box<dyn Regularizer>; 2] =
        [Box::new(KlDivergence::new(reference())), Box::new(Consistency::default())];
    for regularizer in regularizers {
        let evaluated = differentiated(&Alone(regularizer), &data(), &vectors()).unwrap();
        assert!(evaluated.loss.abs() > 0.01, "{evaluated:?}");
        assert!(
            evaluated.gradients.concat().iter().all(|number| number.abs() > 1e-3),
            "{evaluated:?}"
        );
    }
}

fn value(regularizer: impl Regularizer, logprobs: &[Array]) -> f64 {
    differentiated(&Alone(regularizer), &data()[..logprobs.len()], logprobs).unwrap().loss
}

#[test]
fn values_are_those_of_the_formulas() {
    let halves = [Array::new(vec![2, 2], vec![0.5f64.ln(); 4]).unwrap()];
    let quarters = vec![vec![0.25f64.ln(), 0.75f64.ln(), 0.25f64.ln(), 0.75f64.ln()]];
    let (log, near) =
        (f64::ln, |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-9, "{got} {wanted}"));
    near(value(L1::default(), &vectors()), 0.7 + 1.2 + 0.1 + 2.3 + 0.4 + 0.9 + 1.9 + 0.6);
    near(
        value(L2 { scope: Scope::mean(), ..L2::default() }, &vectors()),
        (0.49 + 1.44 + 0.01 + 5.29 + 0.16 + 0.81 + 3.61 + 0.36) / 8.0,
    );
    near(
        value(L1 { scope: Scope::sum().masked_by("advantages"), ..L1::default() }, &vectors()),
        0.7 + 1.2 + 0.1 + 0.4 + 0.9 + 1.9,
    );
    near(value(Entropy::default(), &halves), log(2.0));
    near(
        value(
            Entropy { mode: EntropyMode::Maximize, normalize: true, ..Entropy::default() },
            &halves,
        ),
        -1.0,
    );
    let forward = 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75);
    let reverse = 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5);
    let kl = |direction| KlDivergence {
        direction,
        ..KlDivergence::new(Reference::Logprobs(quarters.clone()))
    };
    near(value(kl(Direction::Forward), &halves), forward);
    near(value(kl(Direction::Reverse), &halves), reverse);
    near(value(kl(Direction::Symmetric), &halves), (forward + reverse) / 2.0);
    // Two rows of one direction: both entries off the diagonal are 1.
    near(value(Orthogonality::default(), &halves), 2.0);
    let plain = Orthogonality {
        normalize: false,
        mode: OrthogonalityMode::Spectral,
        ..Orthogonality::default()
    };
    let square = 2.0 * log(0.5).powi(2);
    near(value(plain, &halves), 2.0 * square.powi(2) + (2.0 * square - 2.0).powi(2));
    let linear = |_: &[Datum], x: &[Var]| {
        Ok(LossValue::new((&x[0] * 3.0).sum() + x[1].square().sum() * 0.0))
    };
    let penalty = Regularized::new(|_: &[Datum], x: &[Var]| Ok(x[0].sum().into()))
        .with(1.0, GradientPenalty::new(linear));
    let output = penalty.output(&data(), &rows()).unwrap();
    near(output.regularizers["gradient_penalty"].value, (6.0 - 1.0f64).powi(2));
    near(output.regularizers["gradient_penalty"].custom["gradient_norm"], 6.0);
}

fn rows() -> Vec<Vec<f64>> {
    vectors().iter().map(|values| values.data().to_vec()).collect()
}

fn base(_: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
    let nll = -(logprobs[0].sum() + logprobs[1].sum());
    Ok(LossValue::new(nll.clone()).metric("nll:sum", &nll))
}

fn regularized() -> Regularized {
    Regularized::new(base)
        .with(0.1, L1::default())
        .with(0.5, KlDivergence::new(reference()))
        .with(0.0, Named::new("off", base))
        .with_gradient_norms()
}

#[test]
fn a_total_is_the_base_loss_and_the_weighted_terms() {
    let output = regularized().output(&data(), &rows()).unwrap();
    let terms: f64 = output.regularizers.values().map(|term| term.contribution).sum();
    assert!((output.loss_total - output.base_loss.value - terms).abs() < 1e-12);
    assert!((output.regularizer_total - terms).abs() < 1e-12);
    assert!((output.loss() - output.loss_total).abs() < 1e-12);
    let l1 = &output.regularizers["l1"];
    assert!((l1.contribution - 0.1 * l1.value).abs() < 1e-12);
    assert!((l1.grad_norm.unwrap() - 8f64.sqrt()).abs() < 1e-12);
    assert!((l1.grad_norm_weighted.unwrap() - 0.1 * 8f64.sqrt()).abs() < 1e-12);
    assert!((output.base_loss.grad_norm.unwrap() - 8f64.sqrt()).abs() < 1e-12);
    assert!(output.regularizers["off"].contribution.abs() < 1e-12);
    let whole = evaluate(&regularized(), &data(), &rows()).unwrap();
    let squares: f64 = whole.gradients.concat().iter().map(|x| x * x).sum();
    assert!((output.total_grad_norm.unwrap() - squares.sqrt()).abs() < 1e-12);
    assert!((whole.metrics["base_loss:sum"] - output.base_loss.value).abs() < 1e-12);
    assert!((whole.metrics["regularizer/l1:sum"] - l1.contribution).abs() < 1e-12);
    assert!((whole.metrics["nll:sum"] - output.base_loss.value).abs() < 1e-12);
    let json = serde_json::to_value(CustomLossOutput::default()).unwrap();
    let fields =
        ["loss_total", "base_loss", "regularizers", "regularizer_total", "total_grad_norm"];
    assert!(fields.iter().all(|field| json.get(field).is_some()), "{json}");
}

#[test]
fn what_is_wrong_with_a_regularizer_is_said_with_its_name() {
    let refusal = |loss: Regularized| loss.output(&data(), &rows()).unwrap_err().to_string();
    let plain = || Regularized::new(base);
    let missing = KlDivergence::new(Reference::Input("teacher".to_owned()));
    let odd = Consistency { partner: Partner::Neighbour, ..Consistency::default() };
    let ragged = Reference::Logprobs(vec![vec![-1.0; 4], vec![-1.0; 3]]);
    let cases = [
        (refusal(plain().with(-1.0, L1::default())), "l1 has the weight -1"),
        (refusal(plain().with(f64::NAN, L1::default())), "l1 has the weight NaN"),
        (
            refusal(plain().with(1.0, L1::default()).with(2.0, L1::default())),
            "two regularizers are called l1",
        ),
        (
            refusal(plain().with(1.0, L2 { clip: Some(-1.0), ..L2::default() })),
            "clip is -1; it must be above 0",
        ),
        (refusal(plain().with(1.0, missing)), "no loss input \"teacher\""),
        (refusal(plain().with(1.0, KlDivergence::new(ragged))), "kl_divergence"),
        (
            refusal(plain().with(1.0, Entropy { temperature: 0.0, ..Entropy::default() })),
            "temperature is 0",
        ),
        (
            refusal(plain().with(1.0, Entropy { normalize: true, ..Entropy::default() })),
            "need candidates",
        ),
        (
            refusal(plain().with(1.0, ElasticNet { l1_ratio: 1.5, ..ElasticNet::default() })),
            "l1_ratio is 1.5",
        ),
        (
            refusal(plain().with(
                1.0,
                Named::new("mine", |_: &[Datum], _: &[Var]| -> Result<LossValue> { panic!("oh") }),
            )),
            "it panicked: oh",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
    let one = |_: &[Datum], x: &[Var]| Ok(x[0].sum().into());
    let error =
        Regularized::new(one).with(1.0, odd).output(&data()[..1], &rows()[..1]).unwrap_err();
    assert!(error.to_string().contains("1 datums cannot be compared in pairs"), "{error}");
}

fn distribution() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-4.0f64..2.0, 6).prop_map(|scores| {
        let rows = scores.chunks(3).flat_map(|row| {
            let norm = row.iter().map(|score| score.exp()).sum::<f64>().ln();
            row.iter().map(move |score| score - norm).collect::<Vec<_>>()
        });
        rows.collect()
    })
}

proptest! {
    #[test]
    fn distances_between_distributions_are_never_negative(p in distribution(), q in distribution()) {
        let datum = Datum::new(&[1_u32, 2][..]);
        let logprobs = [Array::new(vec![2, 3], p.clone()).unwrap()];
        let computed = |regularizer: Box<dyn Regularizer>| {
            differentiated(&Alone(regularizer), std::slice::from_ref(&datum), &logprobs).unwrap()
        };
        for direction in [Direction::Forward, Direction::Reverse, Direction::Symmetric] {
            let kl = |q: &[f64]| KlDivergence { direction, ..KlDivergence::new(Reference::Logprobs(vec![q.to_vec()])) };
            prop_assert!(computed(Box::new(kl(&q))).loss >= -1e-12);
            let same = computed(Box::new(kl(&p)));
            prop_assert!(same.loss.abs() < 1e-12);
            let check = check_arrays(&Alone(kl(&q)), std::slice::from_ref(&datum), &logprobs).unwrap();
            prop_assert!(check.is_within(1e-6), "{:?}", check);
        }
        let entropy = computed(Box::new(Entropy { normalize: true, ..Entropy::default() })).loss;
        prop_assert!((-1e-12..=1.0 + 1e-12).contains(&entropy));
    }
}
