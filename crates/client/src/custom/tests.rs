use std::collections::BTreeMap;

use proptest::prelude::*;
use tinsmith_graph::{Dtype, Input, Limits, Loss, Tensor};

use super::{
    CustomLoss, Expression, Inputs, LossValue, Var,
    array::Array,
    check::check_arrays,
    check_gradients, evaluate,
    evaluate::differentiated,
    tape::{Mode, Tape},
};
use crate::{Datum, Result};

const LIMITS: Limits = Limits {
    nodes_max: 4096,
    arguments_max: 65_536,
    elements_max: 1 << 22,
    bytes_max: 1 << 28,
    steps_max: 500_000_000,
};

const LOGPROBS: [f64; 6] = [-0.25, -1.5, -0.75, -3.0, -0.125, -2.25];
const ADVANTAGES: [f64; 6] = [1.0, -0.5, 2.0, 0.25, -1.25, 0.75];

/// Name, rank of the logprobs (`[6]` or `[3, 2]`), and a calculation of logprobs and advantages (`[6]`).
type Case = (&'static str, usize, fn(&Var, &Var) -> Var);

const CASES: &[Case] = &[
    ("add", 1, |x, a| ((x + a) * a).sum()),
    ("sub", 1, |x, a| ((x - a) * (a - x)).sum()),
    ("numbers", 1, |x, _| (2.0 - (1.0 + x * 3.0 - 0.5) / 4.0).square().sum()),
    ("div", 1, |x, a| (a / x + x / 2.0 + 1.0 / x).sum()),
    ("neg", 1, |x, a| (-x * a).sum()),
    ("exp", 1, |x, a| (x.exp() * a).sum()),
    ("expm1", 1, |x, a| (x.expm1() * a).sum()),
    ("log", 1, |x, a| ((-x).log() * a).sum()),
    ("log1p", 1, |x, a| ((-x).log1p() * a).sum()),
    ("sqrt", 1, |x, a| ((-x).sqrt() * a).sum()),
    ("square", 1, |x, a| (x.square() * a).sum()),
    ("reciprocal", 1, |x, a| (x.reciprocal() * a).sum()),
    ("abs", 1, |x, a| ((x + 1.0).abs() * a).sum()),
    ("sign", 1, |x, a| ((x + 1.0).sign() * x * a).sum()),
    ("sigmoid", 1, |x, a| (x.sigmoid() * a).sum()),
    ("log_sigmoid", 1, |x, a| (x.log_sigmoid() * a).sum()),
    ("softplus", 1, |x, a| (x.softplus() * a).sum()),
    ("tanh", 1, |x, a| (x.tanh() * a).sum()),
    ("relu", 1, |x, a| ((x + 1.0).relu() * a).sum()),
    ("powf", 1, |x, a| ((-x).powf(1.5) * a + x.powf(2.0)).sum()),
    ("clamp", 1, |x, a| (x.clamp(-2.0, -0.5) * a).sum()),
    ("at_least", 1, |x, a| (x.at_least(-1.0) * a).sum()),
    ("at_most", 1, |x, a| (x.at_most(-1.0) * a).sum()),
    ("maximum", 1, |x, a| (x.maximum(&(a * x)) * a).sum()),
    ("minimum", 1, |x, a| (x.minimum(&(a * x)) * a).sum()),
    ("less", 1, |x, a| (x.less(-1.0) * x * a).sum()),
    ("less_or_equal", 1, |x, a| (x.less_or_equal(a) * x).sum()),
    ("greater", 1, |x, a| (x.greater(a) * x + x.greater(-1.0) * a * x).sum()),
    ("greater_or_equal", 1, |x, a| {
        (x.greater_or_equal(-1.4) * x * a + a.greater_or_equal(2.0) * x).sum()
    }),
    ("equal", 1, |x, a| (a.equal(-0.5) * x * x).sum()),
    ("not_equal", 1, |x, a| (a.not_equal(-0.5) * x * x).sum()),
    ("choose", 1, |x, a| (a.greater(0.0).choose(x, &x.exp()) * a).sum()),
    ("choose_number", 1, |x, a| (a.greater(0.0).choose(0.5, x) * x).sum()),
    ("choose not what is NaN", 1, |x, a| a.greater(0.0).choose(&a.log(), x).dot(x)),
    ("detach", 1, |x, a| (x.exp().detach() * x * a).sum()),
    ("mean", 1, |x, a| x.mean() * (x * a).mean()),
    ("max", 1, |x, a| x.max() * (x * a).sum()),
    ("min", 1, |x, a| x.min() * (x * a).sum()),
    ("sum_last", 2, |x, a| (x.sum_last() * a.slice(1..4)).sum()),
    ("mean_last", 2, |x, a| (x.mean_last() * a.slice(1..4)).sum()),
    ("max_last", 2, |x, a| (x.max_last() * a.slice(1..4)).sum()),
    ("min_last", 2, |x, a| (x.min_last() * a.slice(1..4)).sum()),
    ("logsumexp", 1, |x, a| (x * a).logsumexp()),
    ("logsumexp of rows", 2, |x, a| (x.logsumexp() * a.slice(0..3)).sum()),
    ("softmax", 2, |x, a| (x.softmax() * a.slice(0..2)).square().sum()),
    ("log_softmax", 2, |x, a| (x.log_softmax() * a.slice(0..2)).sum()),
    ("dot", 1, |x, a| x.dot(a) * x.dot(x)),
    ("matmul", 2, |x, _| x.transpose().matmul(x).square().sum()),
    ("transpose", 2, |x, a| (x.transpose() * a.slice(2..5)).sum()),
    ("cumulative_sum", 1, |x, a| (x.cumulative_sum() * a).square().sum()),
    ("cumulative_sum of rows", 2, |x, a| (x.cumulative_sum() * a.slice(0..2)).square().sum()),
    ("flip", 1, |x, a| (x.flip() * a).sum()),
    ("index", 1, |x, a| x.index(2) * a.index(0) * x.index(5)),
    ("index of rows", 2, |x, a| (x.index(2) * a.slice(0..2) * x.index(0)).sum()),
    ("slice", 1, |x, a| (x.slice(1..4) * a.slice(3..6)).sum()),
    ("slice of rows", 2, |x, _| (x.slice(0..2) * x.slice(1..3)).sum()),
    ("concat", 1, |x, a| {
        (Var::concat([&x.slice(3..6), &x.exp()]).unwrap()
            * Var::concat([a, &a.slice(0..3)]).unwrap())
        .sum()
    }),
    ("stack", 1, |x, a| {
        (Var::stack([&x.sum(), &x.max(), &x.index(1)]).unwrap() * a.slice(0..3)).square().sum()
    }),
    ("stack of vectors", 1, |x, a| Var::stack([x, a]).unwrap().logsumexp().sum()),
    ("unsqueeze", 1, |x, a| (x.unsqueeze() * a).square().sum()),
    ("broadcast rows", 2, |x, a| ((x + a.slice(0..2)) * x.sum_last().unsqueeze()).sum()),
];

fn datum() -> Datum {
    policy(&[1.0, -0.5, 2.0, 0.25, -1.25, 0.75])
}

fn policy(advantages: &[f32]) -> Datum {
    let tokens: Vec<u32> = (1..).take(advantages.len()).collect();
    Datum::new(&*tokens).with_input("target_tokens", &*tokens).with_input("advantages", advantages)
}

fn logprobs(rank: usize) -> Array {
    let shape = if rank == 1 { vec![6] } else { vec![3, 2] };
    Array::new(shape, LOGPROBS.to_vec()).unwrap()
}

/// A case on the client: the datum's shape is not looked at.
fn case(run: fn(&Var, &Var) -> Var) -> impl CustomLoss {
    move |data: &[Datum], logprobs: &[Var]| {
        let advantages = logprobs[0].input(&data[0], "advantages")?;
        Ok(LossValue::new(run(&logprobs[0], &advantages)))
    }
}

fn traced(name: &str, rank: usize, run: impl FnOnce(&Inputs) -> Result<LossValue>) -> Expression {
    Expression::trace(name, [("logprobs", rank), ("advantages", 1)], run)
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Loss, metrics and gradient as the server computes them.
fn on_the_server(
    expression: &Expression,
    logprobs: &Array,
    advantages: &[f64],
) -> (f64, Vec<f64>, Vec<f64>) {
    let input = |input: &crate::CustomInput| Input {
        name: input.name.clone(),
        rank: u8::try_from(input.rank).unwrap(),
    };
    let inputs = expression.inputs().iter().map(input).collect();
    let graph = expression.graph();
    let name = expression.name();
    let loss = Loss::new(inputs, &graph, &LIMITS)
        .unwrap_or_else(|error| panic!("{name}: {error}\n{graph}"));
    let tensor = |shape: &[usize], data: &[f64]| {
        Tensor::new(Dtype::Float32, shape.to_vec(), data.to_vec()).unwrap()
    };
    let inputs =
        [tensor(logprobs.shape(), logprobs.data()), tensor(&[advantages.len()], advantages)];
    let got =
        loss.evaluate(&inputs, &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}\n{graph}"));
    (got.loss, got.metrics, got.gradient)
}

fn assert_near(name: &str, ours: &[f64], theirs: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    for (x, y) in ours.iter().zip(theirs) {
        assert!((x - y).abs() <= tolerance * y.abs().max(1.0), "{name}: {ours:?} and {theirs:?}");
    }
}

#[test]
fn every_operation_has_the_gradient_of_its_values() {
    for (name, rank, run) in CASES {
        // Constants for the gradient, by their nature.
        if ["sign", "detach"].contains(name) {
            continue;
        }
        let check = check_arrays(&case(*run), &[datum()], &[logprobs(*rank)]);
        let check = check.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(check.is_within(1e-7) && check.compared == 6, "{name}: {check:?}");
    }
}

#[test]
fn the_server_computes_the_same_of_every_operation() {
    for (name, rank, run) in CASES {
        let here = differentiated(&case(*run), &[datum()], &[logprobs(*rank)]).unwrap();
        let expression = traced(name, *rank, |inputs| {
            Ok(run(&inputs.logprobs(), &inputs.get("advantages")).into())
        });
        let (loss, _, gradient) = on_the_server(&expression, &logprobs(*rank), &ADVANTAGES);
        // The server rounds to float32 after each operation.
        assert_near(name, &[here.loss], &[loss], 1e-5);
        assert_near(name, &here.gradients[0], &gradient, 1e-5);
        let replayed = |data: &[Datum], logprobs: &[Var]| {
            let values = expression.replay(&data[0], &logprobs[0])?;
            Ok(LossValue::new(values[expression.loss].clone()))
        };
        let replayed = differentiated(&replayed, &[datum()], &[logprobs(*rank)]).unwrap();
        assert_eq!(replayed, here, "{name}");
    }
}

#[test]
fn gradients_can_be_differentiated_again() {
    for (name, rank, run) in CASES {
        if ["sign", "detach"].contains(name) {
            continue;
        }
        let loss = case(*run);
        let second = |data: &[Datum], logprobs: &[Var]| {
            let gradient = loss.compute(data, logprobs)?.loss().gradient(logprobs);
            // A loss that is linear has a gradient that is constant: something beside it keeps it differentiable.
            Ok(LossValue::new(gradient[0].square().sum() + logprobs[0].sum()))
        };
        let check = check_arrays(&second, &[datum()], &[logprobs(*rank)]);
        let check = check.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(check.is_within(1e-6), "{name}: {check:?}");
    }
}

/// PPO with an entropy bonus, as one would write it.
fn policy_loss(inputs: &Inputs) -> Result<LossValue> {
    let (logprobs, advantages) = (inputs.logprobs(), inputs.get("advantages"));
    let sampled = inputs.get("logprobs_of_sampler");
    let ratio = (&logprobs - sampled).exp();
    let surrogate = (&ratio * &advantages).minimum(&(ratio.clamp(0.8, 1.2) * &advantages));
    let entropy = -(logprobs.exp() * &logprobs).sum();
    let clipped = ratio.not_equal(&ratio.clamp(0.8, 1.2)).sum();
    Ok(LossValue::new(-surrogate.mean() - &entropy * 0.01)
        .metric("custom/ratio:mean", &ratio.mean())
        .metric("custom/clipped:sum", &clipped))
}

#[test]
fn an_expression_gives_the_same_here_and_on_the_server() {
    let inputs = [("logprobs", 1), ("advantages", 1)];
    let expression = Expression::trace("nll", inputs, |inputs| {
        let loss = -(inputs.logprobs() * inputs.get("advantages")).sum();
        Ok(LossValue::new(loss.clone())
            .metric("custom/nll:sum", &loss)
            .metric("custom/top:mean", &inputs.logprobs().max()))
    });
    let expression = expression.unwrap();
    assert_eq!(expression.metrics().collect::<Vec<_>>(), ["custom/nll:sum", "custom/top:mean"]);
    let short = policy(&[0.5, 2.0]);
    let logprobs = [LOGPROBS.to_vec(), vec![-1.0, -0.5]];
    let here = evaluate(&expression, &[datum(), short], &logprobs).unwrap();
    let first =
        on_the_server(&expression, &Array::new(vec![6], logprobs[0].clone()).unwrap(), &ADVANTAGES);
    let second =
        on_the_server(&expression, &Array::new(vec![2], logprobs[1].clone()).unwrap(), &[0.5, 2.0]);
    assert_near("loss", &[here.loss], &[first.0 + second.0], 1e-6);
    assert_near("gradient", &here.gradients.concat(), &[first.2, second.2].concat(), 1e-6);
    let metrics = BTreeMap::from([
        ("custom/nll:sum".to_owned(), here.loss),
        ("custom/top:mean".to_owned(), (-0.125 - 0.5) / 2.0),
    ]);
    assert_eq!(here.metrics, metrics);
}

#[test]
fn a_graph_is_written_as_the_api_takes_it() {
    let expression = Expression::trace(
        "policy",
        [("logprobs", 1), ("logprobs_of_sampler", 1), ("advantages", 1)],
        policy_loss,
    );
    let graph = expression.unwrap().graph();
    let nodes = graph["nodes"].as_array().unwrap();
    assert_eq!(graph["format"], 1);
    assert_eq!(
        nodes[2],
        serde_json::json!({"op": "placeholder", "name": "advantages", "target": "advantages", "args": [], "kwargs": {}})
    );
    assert_eq!(
        nodes[3],
        serde_json::json!({
            "op": "call_function", "name": "sub", "target": "operator.sub",
            "args": [{"ref": "logprobs"}, {"ref": "logprobs_of_sampler"}], "kwargs": {},
        })
    );
    let output = &nodes.last().unwrap()["args"][0]["tuple"];
    assert_eq!(output[1]["dict"].as_object().unwrap().len(), 2);
    let inputs = ["logprobs", "logprobs_of_sampler", "advantages"];
    let inputs = inputs.map(|name| Input { name: name.to_owned(), rank: 1 });
    Loss::new(inputs.to_vec(), &graph, &LIMITS).unwrap();
}

/// What the official SDK sends for the same calculation, in the words of its recording.
#[test]
fn a_graph_is_that_of_the_official_sdk() {
    let inputs = [("logprobs", 1), ("weights", 1), ("advantages", 1)];
    let expression = Expression::trace("my_loss", inputs, |inputs| {
        let ratio = inputs.logprobs().exp().clamp(0.1, f64::INFINITY);
        let loss = -(&ratio * inputs.get("weights") * inputs.get("advantages").slice(0..4)).sum();
        let value = LossValue::new(loss.clone()).metric("custom/my:sum", &loss);
        Ok(value.metric("custom/m:mean", &ratio.mean()))
    });
    let graph = expression.unwrap().graph();
    let short = |node: &serde_json::Value| {
        let text = |key: &str| node[key].as_str().unwrap().to_owned();
        (text("name"), text("target"), node["args"].to_string())
    };
    let nodes: Vec<_> = graph["nodes"].as_array().unwrap().iter().skip(3).map(short).collect();
    let expected = [
        ("exp", "torch.exp", r#"[{"ref":"logprobs"}]"#),
        ("clamp", "clamp", r#"[{"ref":"exp"},0.1,{"float":"inf"}]"#),
        ("mul", "operator.mul", r#"[{"ref":"clamp"},{"ref":"weights"}]"#),
        ("getitem", "operator.getitem", r#"[{"ref":"advantages"},{"slice":[0,4,null]}]"#),
        ("mul_1", "operator.mul", r#"[{"ref":"mul"},{"ref":"getitem"}]"#),
        ("sum_1", "sum", r#"[{"ref":"mul_1"}]"#),
        ("neg", "operator.neg", r#"[{"ref":"sum_1"}]"#),
        ("mean", "mean", r#"[{"ref":"clamp"}]"#),
        (
            "output",
            "output",
            r#"[{"tuple":[{"ref":"neg"},{"dict":{"custom/m:mean":{"ref":"mean"},"custom/my:sum":{"ref":"neg"}}}]}]"#,
        ),
    ];
    let expected =
        expected.map(|(name, target, args)| (name.to_owned(), target.to_owned(), args.to_owned()));
    assert_eq!(nodes, expected);
}

#[test]
fn names_of_inputs_are_never_taken_twice() {
    let inputs = [("logprobs", 1), ("exp", 1), ("output", 1), ("sum_1", 1)];
    let expression = Expression::trace("names", inputs, |inputs| {
        let product = inputs.logprobs().exp() * inputs.get("exp") * inputs.get("output");
        Ok((product * inputs.get("sum_1")).sum().into())
    });
    let expression = expression.unwrap();
    let inputs =
        expression.inputs().iter().map(|input| Input { name: input.name.clone(), rank: 1 });
    Loss::new(inputs.collect(), &expression.graph(), &LIMITS).unwrap();
}

fn refusal(loss: impl Fn(&[Datum], &[Var]) -> Result<LossValue> + Send + Sync) -> String {
    evaluate(&loss, &[datum()], &[LOGPROBS.to_vec()]).unwrap_err().to_string()
}

#[test]
fn what_a_loss_does_wrong_is_said() {
    let cases = [
        (refusal(|_, x| Ok(x[0].clone().into())), "has the shape [6] and must be one number"),
        (
            refusal(|_, x| Ok((&x[0] + x[0].constant(&[1.0, 2.0])).sum().into())),
            "do not fit each other",
        ),
        (refusal(|_, x| Ok(x[0].index(6).into())), "there is no element 6 in [6]"),
        (refusal(|_, x| Ok(x[0].log().sum().into())), "it is NaN"),
        (
            refusal(|_, x| Ok(((&x[0] - &x[0]).square().sum() * 1.0).sqrt().into())),
            "gradient is NaN at datum 0, logprob 0",
        ),
        (refusal(|_, x| Ok(x[0].detach().sum().into())), "does not depend on the logprobs"),
        (refusal(|_, _| panic!("a slip")), "it panicked: a slip"),
        (
            refusal(|data, x| Ok(x[0].input(&data[0], "rewards")?.sum().into())),
            "no loss input \"rewards\"",
        ),
        (refusal(|_, _| Err(crate::Error::Validation { message: "mine".to_owned() })), "mine"),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

fn trace_refusal(
    inputs: &[(&'static str, usize)],
    loss: fn(&Inputs) -> Result<LossValue>,
) -> String {
    Expression::trace("loss", inputs.iter().copied(), loss).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_traced_is_said() {
    const PLAIN: &[(&str, usize)] = &[("logprobs", 1), ("weights", 1)];
    let sum = |inputs: &Inputs| Ok(LossValue::new(inputs.logprobs().sum()));
    let cases = [
        (trace_refusal(&[], sum), "first input must be (\"logprobs\", 1)"),
        (trace_refusal(&[("logprobs", 0)], sum), "first input must be"),
        (trace_refusal(&[("logprobs", 1), ("Weights", 1)], sum), "\"Weights\" must be called by"),
        (trace_refusal(&[("logprobs", 1), ("w", 3)], sum), "rank 3; 0, 1 and 2 are possible"),
        (trace_refusal(&[("logprobs", 1), ("w", 1), ("w", 1)], sum), "w is there twice"),
        (
            trace_refusal(PLAIN, |i| Ok(i.get("mask").sum().into())),
            "no input \"mask\", only logprobs, weights",
        ),
        (
            trace_refusal(PLAIN, |i| Ok((i.logprobs() * i.logprobs().max().item()).sum().into())),
            "no value is known",
        ),
        (trace_refusal(PLAIN, |i| Ok(i.logprobs().into())), "1 dimensions and must be one number"),
        (
            trace_refusal(PLAIN, |i| Ok(i.logprobs().constant(&[1.0]).sum().into())),
            "must be among its inputs",
        ),
        (
            trace_refusal(PLAIN, |i| Ok(i.logprobs().gradient(&[i.logprobs()])[0].sum().into())),
            "is differentiated there",
        ),
        (
            trace_refusal(PLAIN, |i| {
                Ok(LossValue::new(i.logprobs().sum()).metric("mine", &i.logprobs().sum()))
            }),
            "custom/<name>:sum",
        ),
        (
            trace_refusal(PLAIN, |i| {
                Ok(LossValue::new(i.logprobs().sum()).metric("custom/a:sum", 1.0))
            }),
            "a plain number",
        ),
        (
            trace_refusal(PLAIN, |i| {
                Ok(LossValue::new(i.logprobs().sum()).metric("custom/a:sum", &i.logprobs()))
            }),
            "must be one number",
        ),
        (trace_refusal(PLAIN, |i| Ok(i.logprobs().transpose().sum().into())), "needs 2 dimensions"),
        (trace_refusal(PLAIN, |_| panic!("oh")), "it panicked: oh"),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn a_datum_without_what_an_expression_reads_is_named() {
    let expression = traced("matrix", 2, |inputs| Ok(inputs.logprobs().sum().into()));
    let error = evaluate(&expression, &[datum()], &[LOGPROBS.to_vec()]).unwrap_err().to_string();
    assert!(
        error.contains(
            "datum 0: target_tokens has the shape [6], but \"matrix\" declares logprobs with rank 2"
        ),
        "{error}"
    );
    let plain = Datum::next_token(&[1], &[2], &[1.0]).unwrap();
    let expression = traced("reads", 1, |inputs| {
        Ok((inputs.logprobs() * inputs.get("advantages")).sum().into())
    });
    let error = evaluate(&expression, &[plain], &[vec![-1.0]]).unwrap_err().to_string();
    assert!(error.contains("datum 0: a datum has no loss input \"advantages\""), "{error}");
}

#[test]
fn a_wrong_gradient_is_found() {
    let wrong = |_: &[Datum], x: &[Var]| Ok(LossValue::new((&x[0] * x[0].detach()).sum()));
    let check = check_gradients(&wrong, &[datum()], &[LOGPROBS.to_vec()]).unwrap();
    assert!(!check.is_within(0.1), "{check:?}");
}

#[test]
fn values_of_different_calculations_do_not_meet() {
    let loss = |_: &[Datum], x: &[Var]| {
        let other = Tape::new(Mode::Eager).leaf(logprobs(1));
        Ok(LossValue::new((&x[0] + &other).sum()))
    };
    let error = evaluate(&loss, &[datum()], &[LOGPROBS.to_vec()]).unwrap_err().to_string();
    assert!(error.contains("values of two different calculations meet"), "{error}");
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![]),
        (1usize..5).prop_map(|n| vec![n]),
        (1usize..5, 1usize..5).prop_map(|(m, n)| vec![m, n])
    ]
}

proptest! {
    /// What repeats numbers and what adds them up again belong to each other: `⟨expand x, y⟩ = ⟨x, sum_to y⟩`.
    #[test]
    fn repeating_and_adding_up_are_adjoint(shape in shape(), rows in 1usize..5, columns in 1usize..5, seed in 0u32..1000) {
        let whole = [rows, columns];
        let shape: Vec<usize> = shape.iter().rev().zip(whole.iter().rev()).map(|(n, to)| if n % 2 == 0 { 1 } else { *to }).rev().collect();
        let numbers = |count: usize, step: u32| (1..).take(count).map(|i: u32| f64::from((i * step + seed) % 17) - 8.0).collect::<Vec<_>>();
        let x = Array::new(shape.clone(), numbers(shape.iter().product(), 5)).unwrap();
        let y = Array::new(whole.to_vec(), numbers(rows * columns, 7)).unwrap();
        let dot = |x: &Array, y: &Array| x.data().iter().zip(y.data()).map(|(x, y)| x * y).sum::<f64>();
        prop_assert!((dot(&x.expand(&whole).unwrap(), &y) - dot(&x, &y.sum_to(&shape).unwrap())).abs() < 1e-9);
    }
}
