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
        "sampled" => &[0.0, 1.0],
        "sequence_ratio_mask" => &[0.0, 0.5, 1.0, f64::NAN],
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

fn token_losses() -> impl Iterator<Item = (&'static Loss, &'static TokenRule)> {
    LOSSES.iter().filter_map(|loss| match &loss.rule {
        Rule::Token(rule) => Some((*loss, rule)),
        Rule::Datum(_) => None,
    })
}

fn token_loss(name: &str) -> (&'static Loss, &'static TokenRule) {
    token_losses().find(|(loss, _)| loss.name == name).unwrap()
}

fn totals_of(name: &str) -> Totals {
    Totals::new(&Chosen::new(name.into(), &BTreeMap::new()).unwrap())
}

/// One-sided differences of the surrogate, over every loss and a grid of inputs and constants. They agree,
/// and are the coefficient; but where the ratio is at a bound, PyTorch says which one it is
/// ([`terms_equal_pytorchs`]).
#[test]
fn coefficients_are_the_derivatives_of_the_surrogates() {
    let mut borders = 0;
    for (loss, rule) in token_losses() {
        let inputs: Vec<_> = loss.inputs.iter().map(grid).collect();
        for scale in [1.0, 0.0, 40.0] {
            let options: Vec<f64> = loss.options.iter().map(|each| each.default * scale).collect();
            for inputs in combinations(&inputs) {
                for logprob in [-6.0, -1.5, -0.01] {
                    let term = Term { logprob, inputs: &inputs, options: &options };
                    borders += u32::from(!check_derivative((loss, rule), &term));
                }
            }
        }
    }
    assert!(borders > 100, "{borders}: the grid was meant to meet the bounds");
}

/// Whether the coefficient is the derivative on both sides, as it must be away from the bounds.
fn check_derivative((loss, rule): (&Loss, &TokenRule), term: &Term<'_>) -> bool {
    let at = |logprob: f64| (rule.surrogate)(logprob, term);
    // Second-order formulas from each side.
    let side = |step: f64| {
        let [here, near, far] =
            [at(term.logprob), at(term.logprob + step), at(term.logprob + 2.0 * step)];
        (4.0 * near - 3.0 * here - far) / (2.0 * step)
    };
    let (left, right, exact) = (side(-STEP), side(STEP), (rule.coefficient)(term));
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

/// Central differences of every loss that is a sum over datums, on datums whose ratios are away from the bounds.
#[test]
fn coefficients_of_whole_datums_are_the_derivatives() {
    let mut tried = 0;
    for loss in LOSSES {
        let Rule::Datum(rule) = &loss.rule else { continue };
        let options: Vec<f64> = loss.options.iter().map(|option| option.default).collect();
        for seed in 0..400 {
            let mut terms = random_terms(loss, &options, seed);
            if (rule.problem)(&terms).is_some() {
                continue;
            }
            let mut coefficients = vec![0.0; terms.logprobs.len()];
            (rule.evaluate)(&terms, &mut coefficients);
            for (token, exact) in coefficients.into_iter().enumerate() {
                let here = terms.logprobs[token];
                let [left, right] = [-1e-6, 1e-6].map(|step| {
                    terms.logprobs[token] = here + step;
                    (rule.evaluate)(&terms, &mut vec![0.0; terms.logprobs.len()]).loss
                });
                terms.logprobs[token] = here;
                let numeric = (right - left) / 2e-6;
                let close = (numeric - exact).abs() < 1e-7 * exact.abs().max(1.0);
                assert!(close, "{} {seed} {token}: {numeric} {exact}: {terms:?}", loss.name);
            }
            tried += 1;
        }
    }
    assert!(tried > 200, "{tried}");
}

/// Inputs of the grids for a few tokens, logprobs close to the sampler's.
fn random_terms<'a>(loss: &Loss, options: &'a [f64], seed: u64) -> Terms<'a> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |bound: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let tokens = 1 + below(6);
    let mut terms = Terms { logprobs: Vec::new(), inputs: Vec::new(), options };
    for _ in 0..tokens {
        let first = terms.inputs.len();
        for input in loss.inputs {
            let grid = grid(input);
            terms.inputs.push(grid[below(grid.len())]);
        }
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let distance = below(1000) as f64 / 1000.0 - 0.4873;
        terms.logprobs.push(terms.inputs[first] + distance);
    }
    terms
}

#[test]
fn unknown_names_list_the_known_ones() {
    let message = Loss::find("cross_entropie").unwrap_err().to_string();
    let expected = "unknown loss \"cross_entropie\"; the known ones are cross_entropy, \
                    importance_sampling, ppo, cispo, dro, gspo, \
                    stable_reinforce";
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
    assert_eq!(defaults("gspo"), [0.9997, 1.0004]);
    assert_eq!(defaults("stable_reinforce"), [0.0, 2.0]);
    let config = BTreeMap::from([("clip_high_threshold".to_owned(), 1.5)]);
    assert_eq!(Loss::find("ppo").unwrap().read_options(&config).unwrap(), [0.8, 1.5]);
}

#[test]
fn totals_reduce_by_name() {
    let (_, rule) = token_loss("importance_sampling");
    let mut totals = totals_of("importance_sampling");
    for (logprob, q, advantage) in [(-1.0, -1.0, 2.0), (-0.5, -1.0, -1.0), (-9.0, -1.0, 0.0)] {
        let inputs = [q, advantage];
        let term = Term { logprob, inputs: &inputs, options: &[] };
        totals.add(rule.value(&term), &term);
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
        let ((_, rule), mut totals) = (token_loss(name), totals_of(name));
        for (log_ratio, advantage) in [(0.0, 1.0), (-0.1, 1.0), (0.1, -1.0), (0.2, 1.0), (9.0, 0.0)]
        {
            let inputs = [-1.0, advantage, 0.95, 1.0];
            let term = Term { logprob: -1.0 + log_ratio, inputs: &inputs, options: &[] };
            totals.add(rule.value(&term), &term);
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
        let (loss, rule) = token_loss(name);
        let options = loss.read_options(&BTreeMap::new()).unwrap();
        let mut inputs = vec![-100_000.0, advantage];
        inputs.extend(&options);
        let term = Term { logprob: -1.0, inputs: &inputs, options: &options };
        let coefficient = crate::train::f32_of((rule.coefficient)(&term));
        assert_eq!(coefficient.is_finite(), finite, "{name} {advantage}");
        assert!(!coefficient.is_nan() && rule.value(&term).is_finite(), "{name}");
        let inputs = [&[100_000.0], &inputs[1..]].concat();
        let term = Term { logprob: -1.0, inputs: &inputs, options: &options };
        assert!((rule.coefficient)(&term).is_finite() && rule.value(&term).is_finite(), "{name}");
    }
}

/// A file of `tests/golden/losses/make.py`.
struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str) -> Self {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/losses");
        Self(std::fs::read(dir.join(name)).unwrap())
    }

    fn cases(&self) -> Vec<String> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let names = file.names().into_iter();
        names.filter_map(|name| name.strip_suffix(".options").map(str::to_owned)).collect()
    }

    fn bytes(&self, name: &str) -> &[u8] {
        safetensors::SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        let words = self.bytes(name).as_chunks::<8>().0.iter();
        words.map(|word| f64::from_le_bytes(*word)).collect()
    }

    fn counts(&self, name: &str) -> Vec<usize> {
        let words = self.bytes(name).as_chunks::<4>().0.iter();
        words.map(|word| usize::try_from(u32::from_le_bytes(*word)).unwrap()).collect()
    }
}

fn close(actual: f64, expected: f64) -> bool {
    (actual - expected).abs() <= 1e-12 * expected.abs().max(1.0)
}

/// Whole datums as PyTorch differentiates them, ratios at a bound included.
#[test]
fn whole_datums_equal_pytorchs() {
    let golden = Golden::read("sequences.safetensors");
    let mut seen = BTreeMap::new();
    for case in &golden.cases() {
        let loss = Loss::find(case.split('/').next().unwrap()).unwrap();
        let Rule::Datum(rule) = &loss.rule else { panic!("{case}") };
        let [options, logprobs, inputs, values, coefficients] =
            ["options", "logprobs", "inputs", "loss", "coefficient"]
                .map(|name| golden.numbers(&format!("{case}.{name}")));
        let mut start = 0;
        for (datum, length) in golden.counts(&format!("{case}.lengths")).into_iter().enumerate() {
            let (tokens, width) = (start..start + length, loss.inputs.len());
            let terms = Terms {
                logprobs: logprobs[tokens.clone()].to_vec(),
                inputs: inputs[start * width..tokens.end * width].to_vec(),
                options: &options,
            };
            let mut gradient = vec![0.0; length];
            let value = (rule.evaluate)(&terms, &mut gradient).loss;
            assert!(close(value, values[datum]), "{case} {datum}: {value} {}", values[datum]);
            let expected = &coefficients[tokens];
            let alike = gradient.iter().zip(expected).all(|(one, two)| close(*one, *two));
            assert!(alike, "{case} {datum}: {gradient:?} {expected:?}");
            start += length;
            *seen.entry(loss.name).or_insert(0) += 1;
        }
    }
    assert_eq!(seen, BTreeMap::from([("gspo", 240)]));
}

/// Terms and coefficients as PyTorch computes them in f64, clip borders included
/// (`tests/golden/losses/make.py`).
#[test]
fn terms_equal_pytorchs() {
    let golden = Golden::read("terms.safetensors");
    let numbers = |name: String| golden.numbers(&name);
    let mut seen = BTreeMap::new();
    for case in &golden.cases() {
        let (loss, rule) = token_loss(case.split('/').next().unwrap());
        let [options, logprobs, inputs, values, coefficients] =
            ["options", "logprobs", "inputs", "loss", "coefficient"]
                .map(|name| numbers(format!("{case}.{name}")));
        for (index, &logprob) in logprobs.iter().enumerate() {
            let inputs = &inputs[index * loss.inputs.len()..][..loss.inputs.len()];
            let term = Term { logprob, inputs, options: &options };
            let (value, coefficient) = (rule.value(&term), (rule.coefficient)(&term));
            let (golden, slope) = (values[index], coefficients[index]);
            assert!(close(value, golden), "{case}: {term:?}: loss {value}, {golden}");
            assert!(close(coefficient, slope), "{case}: {term:?}: gradient {coefficient}, {slope}");
        }
        *seen.entry(loss.name).or_insert(0) += logprobs.len();
    }
    assert!(
        seen.len() == token_losses().count() && seen.values().all(|count| *count > 200),
        "{seen:?}"
    );
}
