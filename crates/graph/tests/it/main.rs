//! Losses and operations against torch, what is refused, and what the limits do.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod golden;
mod limits;
mod refusals;

use serde_json::{Value as Json, json};
use tinsmith_graph::{Dtype, Evaluated, Input, Limits, Loss, Result, Tensor};

const LIMITS: Limits = Limits {
    nodes_max: 1000,
    arguments_max: 10_000,
    elements_max: 1 << 20,
    bytes_max: 64 << 20,
    steps_max: 100_000_000,
};

fn input(name: &str, rank: u8) -> Input {
    Input { name: name.to_owned(), rank }
}

fn floats(data: &[f64]) -> Tensor {
    Tensor::new(Dtype::Float32, vec![data.len()], data.to_vec()).unwrap()
}

fn placeholder(name: &str) -> Json {
    json!({"op": "placeholder", "name": name, "target": name, "args": [], "kwargs": {}})
}

fn method(name: &str, target: &str, args: &Json) -> Json {
    json!({"op": "call_method", "name": name, "target": target, "args": args, "kwargs": {}})
}

fn function(name: &str, target: &str, args: &Json) -> Json {
    json!({"op": "call_function", "name": name, "target": target, "args": args, "kwargs": {}})
}

fn output(loss: &str) -> Json {
    let loss = json!({"tuple": [{"ref": loss}, {"dict": {}}]});
    json!({"op": "output", "name": "output", "target": "output", "args": [loss], "kwargs": {}})
}

fn r(name: &str) -> Json {
    json!({"ref": name})
}

/// A loss of the logprobs alone that has these nodes; its result is the last one's.
fn loss(nodes: &[Json], limits: &Limits) -> Result<Loss> {
    let mut all = vec![placeholder("logprobs")];
    all.extend_from_slice(nodes);
    let last = all.last().unwrap()["name"].as_str().unwrap().to_owned();
    all.push(output(&last));
    Loss::new(vec![input("logprobs", 1)], &json!({"format": 1, "nodes": all}), limits)
}

fn evaluate(nodes: &[Json], logprobs: &[f64]) -> Result<Evaluated> {
    loss(nodes, &LIMITS).unwrap().evaluate(&[floats(logprobs)], &LIMITS)
}
