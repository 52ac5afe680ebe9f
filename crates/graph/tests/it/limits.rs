use serde_json::json;
use tinsmith_graph::Limits;

use crate::{LIMITS, floats, function, loss, method, r};

/// What a loss says that is too large for these limits.
fn beyond(limits: Limits, nodes: &[serde_json::Value], logprobs: &[f64]) -> String {
    let result = loss(nodes, &limits).and_then(|l| l.evaluate(&[floats(logprobs)], &limits));
    result.unwrap_err().to_string()
}

#[test]
fn nothing_grows_beyond_its_limit() {
    let x = r("logprobs");
    let sum = |of: &str| method("total", "sum", &json!([r(of)]));
    let doublings = || {
        let mut nodes = Vec::new();
        let mut before = "logprobs".to_owned();
        for step in 0..40 {
            let name = format!("c{step}");
            let pair = json!([[r(&before), r(&before)]]);
            nodes.push(function(&name, "torch.cat", &pair));
            before = name;
        }
        nodes.push(sum(&before));
        nodes
    };
    let repeat = |times: i64| vec![method("r", "repeat", &json!([x, times])), sum("r")];
    let pairs = vec![
        method("u", "unsqueeze", &json!([x, 1])),
        function("o", "operator.sub", &json!([x, r("u")])),
        sum("o"),
    ];
    let arange = vec![
        function("a", "torch.arange", &json!([9e15])),
        function("p", "operator.mul", &json!([x, r("a")])),
        sum("p"),
    ];
    let zeros = vec![
        function("a", "torch.zeros", &json!([i64::MAX, i64::MAX])),
        function("p", "operator.mul", &json!([x, r("a")])),
        sum("p"),
    ];
    let few = Limits { nodes_max: 2, ..LIMITS };
    let short = Limits { arguments_max: 3, ..LIMITS };
    let small = Limits { bytes_max: 10_000, ..LIMITS };
    let brief = Limits { steps_max: 5_000, ..LIMITS };
    let cases = [
        (few, repeat(2), "the limit is 2"),
        (short, doublings(), "more than 3 arguments"),
        (LIMITS, doublings(), "limit"),
        (LIMITS, repeat(i64::MAX), "elements; the limit is"),
        (LIMITS, arange, "elements; the limit is"),
        (LIMITS, zeros, "elements; the limit is"),
        (small, pairs.clone(), "10000 bytes"),
        (brief, pairs, "5000 steps"),
    ];
    for (limits, nodes, want) in cases {
        let got = beyond(limits, &nodes, &[-0.5; 100]);
        assert!(got.contains(want), "{want}: {got}");
    }
}

/// A datum may have no tokens that a mask leaves, or none at all.
#[test]
fn empty_tensors_do_not_panic() {
    let x = r("logprobs");
    for name in ["sum", "mean", "max", "amax", "prod", "std", "norm", "argmax", "median", "cumsum"]
    {
        let empty = function("e", "operator.getitem", &json!([x, {"slice": [0, 0, null]}]));
        let reduced = match name {
            "cumsum" => method("m", name, &json!([r("e"), 0])),
            _ => method("m", name, &json!([r("e")])),
        };
        let product = function("p", "operator.mul", &json!([r("m"), x]));
        let nodes = [empty, reduced, product, method("s", "sum", &json!([r("p")]))];
        drop(loss(&nodes, &LIMITS).unwrap().evaluate(&[floats(&[-1.0, -2.0])], &LIMITS));
    }
}
