use super::*;

const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-6;

/// The inputs that a loss is tried with: round ones, and bounds that the ratio meets exactly at one.
fn grid(input: &Input) -> &'static [f64] {
    match input.name {
        "weights" => &[-3.0, -1.25, 0.0, 0.5, 2.0],
        "logprobs" => &[-6.0, -1.75, -1.5, -1.25, -0.01, 0.0],
        "advantages" => &[-2.0, -0.5, 0.0, 0.25, 3.0],
        "clip_low_threshold" => &[0.0, 0.8, 1.0],
        "clip_high_threshold" => &[1.0, 1.2, 4.0],
        other => panic!("give {other} a grid"),
    }
}

/// Every combination of one value of each list.
fn combinations(lists: &[&[f64]]) -> Vec<Vec<f64>> {
    let none = vec![Vec::new()];
    lists.iter().fold(none, |so_far, list| {
        let with = |head: &Vec<f64>| {
            list.iter().map(|value| [head.as_slice(), &[*value]].concat()).collect::<Vec<_>>()
        };
        so_far.iter().flat_map(with).collect()
    })
}

/// One-sided differences of the surrogate, over every loss and a grid of inputs and constants. They agree,
/// and are the coefficient; but where the ratio is at a bound, PyTorch says which one it is
/// ([`terms_equal_pytorchs`]).
#[test]
fn coefficients_are_the_derivatives_of_the_surrogates() {
    let mut borders = 0;
    for loss in LOSSES {
        let inputs: Vec<_> = loss.inputs.iter().map(grid).collect();
        for scale in [1.0, 0.0, 40.0] {
            let options: Vec<f64> = loss.options.iter().map(|each| each.default * scale).collect();
            for inputs in combinations(&inputs) {
                for logprob in [-6.0, -1.5, -0.01] {
                    let term = Term { logprob, inputs: &inputs, options: &options };
                    borders += u32::from(!check_derivative(loss, &term));
                }
            }
        }
    }
    assert!(borders > 100, "{borders}: the grid was meant to meet the bounds");
}

/// Whether the coefficient is the derivative on both sides, as it must be away from the bounds.
fn check_derivative(loss: &Loss, term: &Term<'_>) -> bool {
    let at = |logprob: f64| (loss.surrogate)(logprob, term);
    // Second-order formulas from each side.
    let side = |step: f64| {
        let [here, near, far] =
            [at(term.logprob), at(term.logprob + step), at(term.logprob + 2.0 * step)];
        (4.0 * near - 3.0 * here - far) / (2.0 * step)
    };
    let (left, right, exact) = (side(-STEP), side(STEP), (loss.coefficient)(term));
    let close = |numeric: f64| (numeric - exact).abs() < TOLERANCE * exact.abs().max(1.0);
    let agrees = close(left) && close(right);
    let at_bound = term.inputs.len() == 4 && {
        let ratio = exp::exp(term.logprob - term.inputs[0]);
        term.inputs[2..].contains(&ratio)
    };
    // What remains there is between nothing and all of one side.
    let between = exact * left >= 0.0 && exact.abs() <= left.abs().max(right.abs());
    assert!(agrees || at_bound && between, "{}: {term:?}: {left} {right} {exact}", loss.name);
    agrees
}

#[test]
fn unknown_names_list_the_known_ones() {
    let message = Loss::find("cross_entropie").unwrap_err().to_string();
    let expected = "unknown loss \"cross_entropie\"; the known ones are cross_entropy, \
                    importance_sampling, ppo, cispo, dro";
    assert_eq!(message, expected);
    let config = BTreeMap::from([("beta".to_owned(), 0.5)]);
    let refused = |loss| Loss::find(loss).unwrap().read_options(&config).unwrap_err().to_string();
    assert_eq!(
        refused("cross_entropy"),
        "loss_fn_config: cross_entropy does not take \"beta\" (it takes none)"
    );
    assert_eq!(
        refused("ppo"),
        "loss_fn_config: ppo does not take \"beta\" (it takes clip_low_threshold, \
         clip_high_threshold)"
    );
}

#[test]
fn defaults_are_the_documented_ones() {
    let defaults = |loss| Loss::find(loss).unwrap().read_options(&BTreeMap::new()).unwrap();
    assert_eq!(defaults("ppo"), [0.8, 1.2]);
    assert_eq!(defaults("cispo"), [0.0, 4.0]);
    assert_eq!(defaults("dro"), [0.05]);
    let config = BTreeMap::from([("clip_high_threshold".to_owned(), 1.5)]);
    assert_eq!(Loss::find("ppo").unwrap().read_options(&config).unwrap(), [0.8, 1.5]);
}

#[test]
fn totals_reduce_by_name() {
    let loss = Loss::find("importance_sampling").unwrap();
    let mut totals = Totals::new(loss);
    for (logprob, q, advantage) in [(-1.0, -1.0, 2.0), (-0.5, -1.0, -1.0), (-9.0, -1.0, 0.0)] {
        let inputs = [q, advantage];
        let term = Term { logprob, inputs: &inputs, options: &[] };
        totals.add(loss.value(&term), &term);
    }
    let metrics = totals.metrics();
    assert_eq!(metrics["loss:sum"], -2.0 + exp::exp(0.5));
    assert_eq!(metrics["tokens:sum"], 2.0);
    assert_eq!(metrics["ratio:max"], exp::exp(0.5));
    assert_eq!(metrics["kl_sampler_learner:sum"], -0.5);
}

#[test]
fn clipped_tokens_are_counted() {
    for name in ["ppo", "cispo"] {
        let loss = Loss::find(name).unwrap();
        let mut totals = Totals::new(loss);
        for (log_ratio, advantage) in [(0.0, 1.0), (-0.1, 1.0), (0.1, -1.0), (0.2, 1.0), (9.0, 0.0)]
        {
            let inputs = [-1.0, advantage, 0.95, 1.0];
            let term = Term { logprob: -1.0 + log_ratio, inputs: &inputs, options: &[] };
            totals.add(loss.value(&term), &term);
        }
        let metrics = totals.metrics();
        assert_eq!(metrics["tokens:sum"], 4.0, "{name}");
        assert_eq!(metrics["clipped_low_tokens:sum"], 1.0, "{name}");
        assert_eq!(metrics["clipped_high_tokens:sum"], 2.0, "{name}");
    }
}

/// A policy that has gone astronomically far is clipped where the loss clips it, and never gives NaN.
#[test]
fn ratios_that_overflow_are_clipped_or_infinite() {
    for (name, advantage, finite) in [
        ("importance_sampling", 1.0, false),
        ("ppo", 1.0, true),
        ("ppo", -1.0, false),
        ("cispo", 1.0, true),
        ("cispo", -1.0, true),
    ] {
        let loss = Loss::find(name).unwrap();
        let options = loss.read_options(&BTreeMap::new()).unwrap();
        let mut inputs = vec![-100_000.0, advantage];
        inputs.extend(&options);
        let term = Term { logprob: -1.0, inputs: &inputs, options: &options };
        let coefficient = crate::train::f32_of((loss.coefficient)(&term));
        assert_eq!(coefficient.is_finite(), finite, "{name} {advantage}");
        assert!(!coefficient.is_nan() && loss.value(&term).is_finite(), "{name}");
        let inputs = [&[100_000.0], &inputs[1..]].concat();
        let term = Term { logprob: -1.0, inputs: &inputs, options: &options };
        assert!((loss.coefficient)(&term).is_finite() && loss.value(&term).is_finite(), "{name}");
    }
}

/// Terms and coefficients as PyTorch computes them in f64, clip borders included
/// (`tests/golden/losses/make.py`).
#[test]
fn terms_equal_pytorchs() {
    const TOLERANCE: f64 = 1e-12;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/losses/terms.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: String| -> Vec<f64> {
        let words = file.tensor(&name).unwrap().data().as_chunks::<8>().0.to_vec();
        words.into_iter().map(f64::from_le_bytes).collect()
    };
    let mut seen = BTreeMap::new();
    let cases = file.names().into_iter().filter_map(|name| name.strip_suffix(".options"));
    for case in cases {
        let loss = Loss::find(case.split('/').next().unwrap()).unwrap();
        let [options, logprobs, inputs, values, coefficients] =
            ["options", "logprobs", "inputs", "loss", "coefficient"]
                .map(|name| numbers(format!("{case}.{name}")));
        for (index, &logprob) in logprobs.iter().enumerate() {
            let inputs = &inputs[index * loss.inputs.len()..][..loss.inputs.len()];
            let term = Term { logprob, inputs, options: &options };
            let close = |actual: f64, expected: f64| {
                let error = (actual - expected).abs();
                error <= TOLERANCE * expected.abs().max(1.0)
            };
            let (value, coefficient) = (loss.value(&term), (loss.coefficient)(&term));
            let (golden, slope) = (values[index], coefficients[index]);
            assert!(close(value, golden), "{case}: {term:?}: loss {value}, {golden}");
            assert!(close(coefficient, slope), "{case}: {term:?}: gradient {coefficient}, {slope}");
        }
        *seen.entry(loss.name).or_insert(0) += logprobs.len();
    }
    assert!(seen.len() == LOSSES.len() && seen.values().all(|count| *count > 200), "{seen:?}");
}
