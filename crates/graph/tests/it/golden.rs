use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value as Json;
use tinsmith_graph::{Dtype, Evaluated, Input, Loss, Tensor};

use crate::{LIMITS, placeholder};

#[derive(Deserialize)]
struct Golden {
    name: String,
    inputs: Vec<Declared>,
    graph: Json,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Declared {
    name: String,
    rank: u8,
}

#[derive(Deserialize)]
struct Case {
    inputs: Vec<Given>,
    loss: f64,
    metrics: serde_json::Map<String, Json>,
    gradient: Vec<f64>,
}

#[derive(Deserialize)]
struct Given {
    #[serde(default)]
    name: String,
    dtype: String,
    shape: Vec<usize>,
    data: Vec<f64>,
}

#[derive(Deserialize)]
struct Operations {
    inputs: Vec<Given>,
    cases: Vec<Operation>,
}

#[derive(Deserialize)]
struct Operation {
    name: String,
    nodes: Vec<Json>,
    loss: Json,
    last: Json,
    gradient: Vec<Json>,
}

impl Given {
    fn tensor(&self) -> Tensor {
        let dtype: Dtype = self.dtype.parse().unwrap();
        Tensor::new(dtype, self.shape.clone(), self.data.clone()).unwrap()
    }
}

/// A number, or the name of one that JSON does not have.
fn number(value: &Json) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

/// Both sides compute in float32, in different orders.
fn near(got: f64, want: f64) -> bool {
    let close = (got - want).abs() <= 2e-6 + 2e-5 * want.abs();
    close || got == want || (got.is_nan() && want.is_nan())
}

fn compare(got: &Evaluated, loss: f64, metrics: &[f64], gradient: &[f64]) -> Option<String> {
    let rows = [
        ("loss", vec![got.loss], vec![loss]),
        ("metrics", got.metrics.clone(), metrics.to_vec()),
        ("gradient", got.gradient.clone(), gradient.to_vec()),
    ];
    let mut report = String::new();
    for (what, got, want) in rows {
        let same = got.len() == want.len() && got.iter().zip(&want).all(|(g, w)| near(*g, *w));
        if !same {
            writeln!(report, "  {what}: {got:?}\n    torch: {want:?}").unwrap();
        }
    }
    (!report.is_empty()).then_some(report)
}

#[test]
fn losses_agree_with_torch() {
    let losses = include_str!("../golden/losses/losses.json");
    let losses: Vec<Golden> = serde_json::from_str(losses).unwrap();
    assert!(losses.len() >= 30, "{}", losses.len());
    let mut report = String::new();
    for golden in &losses {
        let input = |d: &Declared| Input { name: d.name.clone(), rank: d.rank };
        let inputs = golden.inputs.iter().map(input).collect();
        let loss = Loss::new(inputs, &golden.graph, &LIMITS);
        let loss = loss.unwrap_or_else(|error| panic!("{}: {error}", golden.name));
        for case in &golden.cases {
            let inputs: Vec<_> = case.inputs.iter().map(Given::tensor).collect();
            let got = loss.evaluate(&inputs, &LIMITS);
            let got = got.unwrap_or_else(|error| panic!("{}: {error}", golden.name));
            let metrics: Vec<_> =
                loss.metrics().map(|(name, _)| number(&case.metrics[name])).collect();
            assert_eq!(metrics.len(), case.metrics.len(), "{}", golden.name);
            if let Some(problem) = compare(&got, case.loss, &metrics, &case.gradient) {
                writeln!(report, "{}:\n{problem}", golden.name).unwrap();
            }
        }
    }
    assert!(report.is_empty(), "{report}");
}

#[test]
fn operations_agree_with_torch() {
    let operations = include_str!("../golden/operations/operations.json");
    let operations: Operations = serde_json::from_str(operations).unwrap();
    let tensors: Vec<_> = operations.inputs.iter().map(Given::tensor).collect();
    let mut report = String::new();
    for case in &operations.cases {
        let input = |given: &Given| Input {
            name: given.name.clone(),
            rank: u8::try_from(given.shape.len()).unwrap(),
        };
        let inputs: Vec<_> = operations.inputs.iter().map(input).collect();
        let mut nodes: Vec<_> = inputs.iter().map(|input| placeholder(&input.name)).collect();
        nodes.extend(case.nodes.iter().cloned());
        let graph = serde_json::json!({"format": 1, "nodes": nodes});
        let got =
            Loss::new(inputs, &graph, &LIMITS).and_then(|loss| loss.evaluate(&tensors, &LIMITS));
        let problem = match got {
            Ok(got) => {
                let gradient: Vec<_> = case.gradient.iter().map(number).collect();
                compare(&got, number(&case.loss), &[number(&case.last)], &gradient)
            }
            Err(error) => Some(format!("  {error}\n")),
        };
        if let Some(problem) = problem {
            writeln!(report, "{}\n{problem}", case.name).unwrap();
        }
    }
    assert!(report.is_empty(), "{report}");
}
