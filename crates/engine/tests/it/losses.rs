//! Every loss through a whole step, against PyTorch (`tests/golden/losses/make.py`), and at its borders.

use std::{collections::BTreeMap, fs, path::PathBuf};

use safetensors::SafeTensors;
use tinsmith_backend_cpu::{Config as CpuConfig, CpuBackend, Kernels};
use tinsmith_engine::{
    Config, Datum, Decoder, Engine, Files, ModelDir, Parts, RunKey, Ticket, Work,
};

use crate::tiny::{
    CpuEngine, config, datum, datums, engine, forward, forward_backward, run_all, run_one, scored,
    spec,
};

const RUN: RunKey = RunKey(0);
const LOGPROB_TOLERANCE: f64 = 1e-4;
/// Largest difference, as a share of the matrix's largest element.
const GRADIENT_TOLERANCE: f64 = 1e-3;
const LOSS_TOLERANCE: f64 = 1e-5;
const GRADIENT: Parts = Parts { optimizer: false, gradient: true };

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

/// The file with the numbers of PyTorch.
struct Golden(Vec<u8>);

impl Golden {
    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn bytes(&self, case: &str, name: &str) -> Vec<u8> {
        self.file().tensor(&format!("{case}.{name}")).unwrap().data().to_vec()
    }

    fn doubles(&self, case: &str, name: &str) -> Vec<f64> {
        let bytes = self.bytes(case, name);
        bytes.as_chunks::<8>().0.iter().map(|word| f64::from_le_bytes(*word)).collect()
    }

    fn counts(&self, case: &str, name: &str) -> Vec<u32> {
        let bytes = self.bytes(case, name);
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    fn cases(&self) -> Vec<String> {
        let mut cases: Vec<String> = (self.file().names().into_iter())
            .filter_map(|name| name.strip_suffix(".options").map(str::to_owned))
            .collect();
        cases.sort();
        cases
    }

    /// The request of a case, its constants by the names given.
    fn work(&self, case: &str, names: &[&str]) -> Work {
        let (tokens, targets) = (self.counts(case, "tokens"), self.counts(case, "targets"));
        let prefix = format!("{case}.values.");
        let values: BTreeMap<String, Vec<f32>> = (self.file().names().into_iter())
            .filter_map(|name| name.strip_prefix(&prefix))
            .map(|name| (name.to_owned(), floats(&self.bytes(case, &format!("values.{name}")))))
            .collect();
        let (mut row, mut cell) = (0, 0);
        let extents = self.counts(case, "lengths").into_iter().zip(self.counts(case, "per_row"));
        let one = |(length, per_row): (u32, u32)| {
            let (length, per_row) = (length as usize, per_row as usize);
            let (rows, cells) = (row..row + length, cell..cell + length * per_row);
            (row, cell) = (rows.end, cells.end);
            let own =
                |(name, all): (&String, &Vec<f32>)| (name.clone(), all[cells.clone()].to_vec());
            Datum {
                tokens: tokens[rows].to_vec(),
                targets: targets[cells.clone()].to_vec(),
                per_row,
                values: values.iter().map(own).collect(),
                arrays: Vec::new(),
            }
        };
        let datums = extents.map(one).collect();
        let loss = case.split('/').next().unwrap().into();
        let names = names.iter().map(|name| (*name).to_owned());
        let config = names.zip(self.doubles(case, "options")).collect();
        Work::ForwardBackward { run: RUN, datums, loss, config, forward_only: false }
    }
}

/// The golden model with its adapter.
fn tied(train_tokens_max: usize) -> CpuEngine {
    let dir = golden("../model/tests/golden/qwen3/tied");
    let model = ModelDir::open(&dir).unwrap();
    let threads = 1;
    let mut backend = CpuBackend::new(CpuConfig { threads, kernels: Kernels::f32() }).unwrap();
    let decoder = Decoder::load(&mut backend, &model).unwrap();
    let limits = Config { train_tokens_max, ..config() };
    let mut engine = Engine::new(backend, decoder, Vec::new(), None, limits).unwrap();
    let read = |name: &str| (name.to_owned(), fs::read(dir.join("adapter").join(name)).unwrap());
    let files: Files = ["adapter_config.json", "adapter_model.safetensors"].map(read).into();
    engine.restore_run(RUN, &files, Parts::default()).unwrap();
    engine
}

fn gradient(engine: &mut CpuEngine, run: RunKey) -> Vec<u8> {
    engine.export_run(run, GRADIENT, "tiny").unwrap().remove("gradient.safetensors").unwrap()
}

#[test]
fn steps_equal_pytorchs() {
    let file = Golden(fs::read(golden("tests/golden/losses/step.safetensors")).unwrap());
    let cases = file.cases();
    assert_eq!(cases.len(), 13);
    for case in &cases {
        let names: &[&str] = match case.split('/').next().unwrap() {
            "ppo" | "cispo" | "gspo" => &["clip_low_threshold", "clip_high_threshold"],
            "stable_reinforce" => &["kl_coeff", "clip_high_threshold"],
            "dro" => &["beta"],
            _ => &[],
        };
        for train_tokens_max in [16, 512] {
            let mut engine = tied(train_tokens_max);
            let (logprobs, metrics) = scored(run_one(&mut engine, file.work(case, names)));
            let expected = floats(&file.bytes(case, "logprobs"));
            let error = difference(&logprobs.concat(), &expected);
            assert!(error < LOGPROB_TOLERANCE, "{case}: logprobs are off by {error}");
            let [loss, size] = file.doubles(case, "loss")[..] else { panic!("{case}") };
            let error = (metrics["loss:sum"] - loss).abs() / size;
            assert!(error < LOSS_TOLERANCE, "{case}: {} is not {loss}", metrics["loss:sum"]);
            check_gradients(&file, case, &gradient(&mut engine, RUN));
        }
    }
}

fn check_gradients(file: &Golden, case: &str, actual: &[u8]) {
    let actual = SafeTensors::deserialize(actual).unwrap();
    let prefix = format!("{case}.grad.");
    let mut matrices = 0;
    for name in file.file().names() {
        let Some(matrix) = name.strip_prefix(&prefix) else { continue };
        let expected = floats(&file.bytes(case, &format!("grad.{matrix}")));
        let largest = expected.iter().fold(0.0, |most: f64, each| most.max(f64::from(each.abs())));
        let error = difference(&floats(actual.tensor(matrix).unwrap().data()), &expected);
        assert!(error < GRADIENT_TOLERANCE * largest, "{case}: {matrix}: {error} of {largest}");
        matrices += 1;
    }
    assert_eq!(matrices, actual.len(), "{case}");
}

/// The largest difference of two lists of numbers.
fn difference(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let pairs = actual.iter().zip(expected);
    pairs.fold(0.0, |most: f64, (one, two)| most.max(f64::from((one - two).abs())))
}

fn policy(loss: &str, datums: Vec<Datum>, config: &[(&str, f64)]) -> Work {
    let config = config.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Work::ForwardBackward { run: RUN, datums, loss: loss.into(), config, forward_only: false }
}

fn fresh() -> CpuEngine {
    let mut engine = engine(1, config());
    engine.create_run(RUN, spec(4, 0)).unwrap();
    engine
}

/// On the policy itself the ratio is one to the bit. Bounds of one let half of `ppo`'s gradient through, as in
/// PyTorch, and all of `cispo`'s; a bound beside it stops the tokens that have gone past it.
#[test]
fn bounds_that_are_met_exactly() {
    let mut data = datums(4, 3);
    let (logprobs, _) = scored(run_one(&mut fresh(), forward(RUN, data.clone())));
    for (datum, logprobs) in data.iter_mut().zip(logprobs) {
        let advantages = datum.values.remove("weights").unwrap();
        datum.values.insert("advantages".to_owned(), advantages);
        datum.values.insert("logprobs".to_owned(), logprobs);
    }
    let run_on = |data: &[Datum], loss: &str, config: &[(&str, f64)]| {
        let mut engine = fresh();
        let (_, metrics) = scored(run_one(&mut engine, policy(loss, data.to_vec(), config)));
        (gradient(&mut engine, RUN), metrics)
    };
    let run = |loss: &str, config: &[(&str, f64)]| run_on(&data, loss, config);
    let mut halved = data.clone();
    for advantages in halved.iter_mut().filter_map(|datum| datum.values.get_mut("advantages")) {
        advantages.iter_mut().for_each(|advantage| *advantage *= 0.5);
    }
    let exact = [("clip_low_threshold", 1.0), ("clip_high_threshold", 1.0)];
    let (expected, _) = run("importance_sampling", &[]);
    let (half, _) = run_on(&halved, "importance_sampling", &[]);
    for (loss, expected) in [("ppo", &half), ("cispo", &expected)] {
        let (actual, metrics) = run(loss, &exact);
        assert!(actual == *expected, "{loss}");
        assert_eq!(metrics["clipped_low_tokens:sum"] + metrics["clipped_high_tokens:sum"], 0.0);
    }
    let below = [("clip_low_threshold", 0.5), ("clip_high_threshold", 1.0 - 1e-9)];
    let (some, metrics) = run("ppo", &below);
    assert!(some != expected);
    assert_eq!(metrics["clipped_high_tokens:sum"], metrics["tokens:sum"]);
    assert!(run("dro", &[("beta", 0.0)]).0 == expected, "without a penalty");
}

/// A token's own bounds stand in place of the constants.
#[test]
fn bounds_of_each_token_override_the_constants() {
    let with = |own: bool| {
        let mut datum = datum(&[5, 6, 7, 8, 9]);
        let mut put = |name: &str, values: [f32; 4]| {
            datum.values.insert(name.to_owned(), values.to_vec());
        };
        put("logprobs", [-9.0, -9.0, -0.01, -0.01]);
        put("advantages", [1.0, 1.0, -1.0, -1.0]);
        if own {
            put("clip_low_threshold", [0.5; 4]);
            put("clip_high_threshold", [1.5; 4]);
        }
        datum
    };
    let both = |datum, config: &[(&str, f64)]| {
        let mut engine = fresh();
        let scored = scored(run_one(&mut engine, policy("cispo", vec![datum], config)));
        (scored, gradient(&mut engine, RUN))
    };
    let wide = [("clip_low_threshold", 0.0), ("clip_high_threshold", 100.0)];
    let narrow = [("clip_low_threshold", 0.5), ("clip_high_threshold", 1.5)];
    assert_eq!(both(with(true), &wide), both(with(false), &narrow));
    assert_ne!(both(with(false), &wide), both(with(false), &narrow));
}

/// Datums of one request may have any number of candidates each. One candidate listed many times is the
/// same as listed once with the sum of the weights, and what has no weight changes nothing.
#[test]
fn datums_of_one_request_may_differ_in_candidates() {
    let data = datums(7, 6);
    let mut padded = data.clone();
    for (datum, per_row) in padded.iter_mut().zip([1, 3, 2, 1, 1, 4]) {
        let spread =
            |index: usize| (0..per_row).map(move |other| (index, other == index % per_row));
        let cells: Vec<_> = (0..datum.tokens.len()).flat_map(spread).collect();
        let pick = |of: &dyn Fn(usize) -> f32| -> Vec<f32> {
            cells.iter().map(|(row, own)| if *own { of(*row) } else { 0.0 }).collect()
        };
        let weights = datum.values["weights"].clone();
        datum.values.insert("weights".to_owned(), pick(&|row| weights[row]));
        let target = |(row, own): &(usize, bool)| if *own { datum.targets[*row] } else { 0 };
        datum.targets = cells.iter().map(target).collect();
        datum.per_row = per_row;
    }
    let mut expected = fresh();
    let (plain, metrics) = scored(run_one(&mut expected, forward_backward(RUN, data)));
    let expected = gradient(&mut expected, RUN);
    for train_tokens_max in [1, 4096] {
        let mut engine = engine(2, Config { train_tokens_max, ..config() });
        engine.create_run(RUN, spec(4, 0)).unwrap();
        engine.create_run(RunKey(1), spec(2, 9)).unwrap();
        let stranger = forward_backward(RunKey(1), datums(5, 5));
        let works = vec![stranger, forward_backward(RUN, padded.clone())];
        let (wide, wide_metrics) = scored(run_all(&mut engine, works).pop().unwrap());
        assert_eq!(wide_metrics, metrics);
        assert!(gradient(&mut engine, RUN) == expected);
        for ((wide, plain), datum) in wide.iter().zip(&plain).zip(&padded) {
            assert_eq!(wide.len(), datum.targets.len());
            let rows = plain.iter().enumerate();
            let own = |(row, _): (usize, &f32)| wide[row * datum.per_row + row % datum.per_row];
            assert_eq!(rows.map(own).collect::<Vec<_>>(), *plain);
        }
    }
}

/// A ratio beyond all numbers fails its request alone, or is clipped; it never reaches the adapter.
#[test]
fn ratios_beyond_all_numbers() {
    let far = |advantage: f32| {
        let mut datum = datum(&[5, 6, 7]);
        datum.values.insert("logprobs".to_owned(), vec![-100_000.0; 2]);
        datum.values.insert("advantages".to_owned(), vec![advantage; 2]);
        vec![datum]
    };
    let mut engine = fresh();
    let empty = gradient(&mut engine, RUN);
    for (loss, advantage) in [("importance_sampling", 1.0), ("ppo", -1.0)] {
        let failure = run_one(&mut engine, policy(loss, far(advantage), &[])).unwrap_err();
        assert!(failure.user, "{}", failure.message);
        let expected = "datum 0: the loss is not finite at token 0";
        assert!(failure.message.starts_with(expected), "{}", failure.message);
        assert!(gradient(&mut engine, RUN) == empty);
    }
    for (loss, advantage) in [("ppo", 1.0), ("cispo", 1.0), ("cispo", -1.0)] {
        let (_, metrics) = scored(run_one(&mut engine, policy(loss, far(advantage), &[])));
        assert!(metrics.values().all(|value| value.is_finite()), "{loss}: {metrics:?}");
    }
    let bytes = gradient(&mut engine, RUN);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file.tensors().into_iter().flat_map(|(_, tensor)| floats(tensor.data()));
    assert!(all.into_iter().all(f32::is_finite));
}

#[test]
fn constants_that_no_loss_can_have() {
    let mut engine = fresh();
    let mut datum = datum(&[5, 6, 7]);
    for name in ["logprobs", "advantages"] {
        datum.values.insert(name.to_owned(), vec![-1.0; 2]);
    }
    for (loss, config, expected) in [
        (
            "ppo",
            [("clip_low_threshold", 1.5)],
            "datum 0: token 0: clip_low_threshold = 1.5 is above clip_high_threshold = 1.2",
        ),
        ("dro", [("beta", -0.5)], "datum 0: token 0: beta = -0.5 is below 0"),
        ("dro", [("beta", f64::NAN)], "loss_fn_config: beta is not finite"),
    ] {
        let work = policy(loss, vec![datum.clone()], &config);
        let message = engine.submit(Ticket(0), work).unwrap_err().to_string();
        assert_eq!(message, expected);
    }
}
