//! Losses that see a datum as a whole, through the engine's steps.

use std::{collections::BTreeMap, sync::Arc};

use tinsmith_engine::{
    Config, Datum, Evaluation, LossChoice, Parts, RunKey, SequenceLoss, Ticket, Work,
};

use crate::tiny::{
    CpuEngine, config, datums, engine, forward, forward_backward, run_all, run_one, scored, spec,
};

const RUN: RunKey = RunKey(0);
const OTHER: RunKey = RunKey(1);

/// `(Σ logprob)² / tokens`: every token's gradient depends on all of them. Reads no inputs.
#[derive(Debug)]
pub(crate) struct Pairwise;

impl SequenceLoss for Pairwise {
    fn check(&self, _: &Datum) -> Result<(), String> {
        Ok(())
    }

    fn evaluate(
        &self,
        datum: &Datum,
        logprobs: &[f32],
        coefficients: &mut [f32],
    ) -> Result<Evaluation, String> {
        assert_eq!([logprobs.len(), coefficients.len()], [datum.targets.len(); 2]);
        assert!(coefficients.iter().all(|coefficient| *coefficient == 0.0));
        #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
        let tokens = datum.tokens.len() as f64;
        let sum: f64 = logprobs.iter().copied().map(f64::from).sum();
        #[expect(clippy::cast_possible_truncation, reason = "coefficients are f32")]
        coefficients.fill((2.0 * sum / tokens) as f32);
        let metrics = vec![
            ("custom/tokens:sum".to_owned(), tokens),
            ("custom/tokens:mean".to_owned(), tokens),
            ("custom/tokens:max".to_owned(), tokens),
            ("custom/tokens:min".to_owned(), tokens),
        ];
        Ok(Evaluation { loss: sum * sum / tokens, metrics })
    }
}

/// A weighted sum of logprobs that goes wrong where a weight is as given.
#[derive(Debug)]
struct Breaking {
    at: f32,
    how: Break,
}

#[derive(Clone, Copy, Debug)]
enum Break {
    Refuse,
    Error,
    Value,
    Gradient,
    MetricName,
}

impl SequenceLoss for Breaking {
    fn check(&self, datum: &Datum) -> Result<(), String> {
        let refused =
            matches!(self.how, Break::Refuse) && datum.values["weights"].contains(&self.at);
        if refused { Err("the weight is refused".to_owned()) } else { Ok(()) }
    }

    fn evaluate(
        &self,
        datum: &Datum,
        logprobs: &[f32],
        coefficients: &mut [f32],
    ) -> Result<Evaluation, String> {
        let weights = &datum.values["weights"];
        coefficients.copy_from_slice(weights);
        let terms = logprobs.iter().zip(weights).map(|(one, two)| f64::from(one * two));
        let mut evaluation = Evaluation { loss: terms.sum(), metrics: Vec::new() };
        if weights.contains(&self.at) {
            match self.how {
                Break::Refuse => {}
                Break::Error => return Err("the graph divides by zero".to_owned()),
                Break::Value => evaluation.loss = f64::NAN,
                Break::Gradient => coefficients[0] = f32::INFINITY,
                Break::MetricName => evaluation.metrics.push(("custom/a:median".to_owned(), 1.0)),
            }
        }
        Ok(evaluation)
    }
}

fn ready(config: Config) -> CpuEngine {
    let mut engine = engine(1, config);
    engine.create_run(RUN, spec(4, 0)).unwrap();
    engine.create_run(OTHER, spec(2, 1)).unwrap();
    engine
}

fn gradient(engine: &mut CpuEngine, run: RunKey) -> Vec<u8> {
    let parts = Parts { optimizer: false, gradient: true };
    engine.export_run(run, parts, "tiny").unwrap().remove("gradient.safetensors").unwrap()
}

fn custom(loss: impl SequenceLoss + 'static, datums: Vec<Datum>, forward_only: bool) -> Work {
    let loss = LossChoice::Custom(Arc::new(loss));
    Work::ForwardBackward { run: RUN, datums, loss, config: BTreeMap::new(), forward_only }
}

/// The coefficients of a loss from outside are the negative weights of a cross-entropy; values and metrics
/// are sums and means over datums, however they were cut into micro-batches, whoever else was in those.
#[test]
fn a_loss_from_outside_weighs_the_logprobs() {
    let data = datums(6, 5);
    let (logprobs, _) = scored(run_one(&mut ready(config()), forward(RUN, data.clone())));
    let mut weighted = data.clone();
    let (mut loss, mut lengths) = (0.0, Vec::new());
    for (datum, logprobs) in weighted.iter_mut().zip(&logprobs) {
        let mut coefficients = vec![0.0; logprobs.len()];
        loss += Pairwise.evaluate(datum, logprobs, &mut coefficients).unwrap().loss;
        coefficients.iter_mut().for_each(|coefficient| *coefficient = -*coefficient);
        datum.values.insert("weights".to_owned(), coefficients);
        lengths.push(f64::from(u32::try_from(datum.tokens.len()).unwrap()));
    }
    let mut engine = ready(config());
    scored(run_one(&mut engine, forward_backward(RUN, weighted)));
    let expected = gradient(&mut engine, RUN);
    for train_tokens_max in [1, 64, 4096] {
        for strangers in [false, true] {
            let mut engine = ready(Config { train_tokens_max, ..config() });
            let mut works = vec![custom(Pairwise, data.clone(), false)];
            if strangers {
                works.insert(0, forward_backward(OTHER, datums(9, 4)));
            }
            let (given, metrics) = scored(run_all(&mut engine, works).pop().unwrap());
            assert_eq!(given, logprobs);
            assert!(gradient(&mut engine, RUN) == expected, "{train_tokens_max} {strangers}");
            assert_eq!(metrics["loss:sum"], loss);
            let total: f64 = lengths.iter().sum();
            assert_eq!(metrics["custom/tokens:sum"], total);
            assert_eq!(metrics["custom/tokens:mean"], total / 5.0);
            assert_eq!(metrics["custom/tokens:max"], lengths.iter().copied().fold(0.0, f64::max));
            assert_eq!(metrics["custom/tokens:min"], lengths.iter().copied().fold(1e9, f64::min));
            let before = gradient(&mut engine, RUN);
            let alone = scored(run_one(&mut engine, custom(Pairwise, data.clone(), true)));
            assert_eq!(alone, (given, metrics), "without gradients");
            assert!(gradient(&mut engine, RUN) == before);
        }
    }
}

/// One that goes wrong fails its request alone, also where earlier micro-batches had added to the gradient.
#[test]
fn a_loss_that_goes_wrong_leaves_nothing_behind() {
    let mut data = datums(1, 5);
    data[3].values.get_mut("weights").unwrap()[0] = 0.625;
    for (how, expected) in [
        (Break::Error, "datum 3: the graph divides by zero"),
        (Break::Value, "datum 3: the loss is not finite: NaN"),
        (Break::Gradient, "datum 3: the loss's gradient is not finite at token 0: inf"),
        (
            Break::MetricName,
            "datum 3: the metric custom/a:median does not end in :sum, :mean, :max or :min",
        ),
    ] {
        for train_tokens_max in [16, 4096] {
            let limits = Config { train_tokens_max, ..config() };
            let mut undisturbed = ready(limits);
            scored(run_one(&mut undisturbed, forward_backward(RUN, datums(2, 3))));
            let own = gradient(&mut undisturbed, RUN);
            scored(run_one(&mut undisturbed, forward_backward(OTHER, datums(2, 5))));
            let other = gradient(&mut undisturbed, OTHER);

            let mut engine = ready(limits);
            let bad =
                |forward_only| custom(Breaking { at: 0.625, how }, data.clone(), forward_only);
            let works = vec![
                forward_backward(RUN, datums(2, 3)),
                bad(false),
                bad(true),
                forward_backward(OTHER, datums(2, 5)),
            ];
            let results = run_all(&mut engine, works);
            for failed in &results[1..3] {
                let failure = failed.as_ref().unwrap_err();
                assert_eq!((failure.user, failure.message.as_str()), (true, expected));
            }
            assert!(gradient(&mut engine, RUN) == own, "{how:?}");
            assert!(gradient(&mut engine, OTHER) == other, "{how:?}");
            scored(run_one(&mut engine, forward_backward(RUN, datums(3, 2))));
        }
    }
}

#[test]
fn a_loss_from_outside_refuses_datums_before_they_are_queued() {
    let mut engine = ready(config());
    let mut data = datums(1, 3);
    data[1].values.get_mut("weights").unwrap()[0] = 0.625;
    let bad = custom(Breaking { at: 0.625, how: Break::Refuse }, data, false);
    let message = engine.submit(Ticket(0), bad).unwrap_err().to_string();
    assert_eq!(message, "datum 1: the weight is refused");
    assert!(engine.is_idle());
}

/// A request's metrics have the same names whatever its datums are: clients add up those of its parts.
#[test]
fn a_batch_without_advantages_has_all_metrics() {
    let metrics = |advantage: f32| {
        let mut data = datums(1, 2);
        for datum in &mut data {
            let length = datum.tokens.len();
            datum.values.insert("logprobs".to_owned(), vec![-1.0; length]);
            datum.values.insert("advantages".to_owned(), vec![advantage; length]);
        }
        let work = Work::ForwardBackward {
            run: RUN,
            datums: data,
            loss: "gspo".into(),
            config: BTreeMap::new(),
            forward_only: false,
        };
        scored(run_one(&mut ready(config()), work)).1
    };
    let (none, some) = (metrics(0.0), metrics(0.5));
    assert!(none.keys().eq(some.keys()), "{none:?} {some:?}");
    assert!(none.values().all(|value| *value == 0.0), "{none:?}");
    assert!(some["tokens:sum"] > 0.0 && some["ratio:max"] > 0.0);
}
