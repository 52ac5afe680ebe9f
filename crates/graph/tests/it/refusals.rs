use serde_json::{Value as Json, json};
use tinsmith_graph::Loss;

use crate::{LIMITS, evaluate, function, input, loss, method, output, placeholder, r};

/// What is said of a loss that has these nodes.
fn refusal(nodes: &[Json]) -> String {
    loss(nodes, &LIMITS).unwrap_err().to_string()
}

#[test]
fn what_is_not_listed_is_refused_by_name() {
    let x = json!([r("logprobs")]);
    let cases = [
        (function("f", "os.system", &json!(["true"])), "\"os.system\""),
        (function("f", "builtins.eval", &json!(["1"])), "\"builtins.eval\""),
        (function("f", "torch.load", &json!(["file"])), "\"torch.load\""),
        (function("f", "torch.hub.load", &json!(["repository"])), "\"torch.hub.load\""),
        (function("f", "torch.rand_like", &x), "\"torch.rand_like\""),
        (function("f", "torch.nn.functional.dropout", &x), "dropout"),
        (function("f", "torch.ops.aten.add", &x), "\"torch.ops.aten.add\""),
        (function("f", "operator.setitem", &x), "\"operator.setitem\""),
        (function("f", "operator.iadd", &json!([r("logprobs"), 1])), "\"operator.iadd\""),
        (function("f", "math.gamma", &json!([1])), "\"math.gamma\""),
        (function("f", "getattr", &json!([r("logprobs"), "__class__"])), "\"__class__\""),
        (function("f", "getattr", &json!([r("logprobs"), "grad_fn"])), "\"grad_fn\""),
        (method("m", "backward", &x), "\"backward\""),
        (method("m", "add_", &json!([r("logprobs"), 1])), "use \"add\""),
        (method("m", "item", &x), "leaves torch"),
        (method("m", "numpy", &x), "leaves torch"),
        (method("m", "__reduce__", &x), "\"__reduce__\""),
    ];
    for (node, want) in cases {
        let got = refusal(std::slice::from_ref(&node));
        assert!(got.starts_with("graph: nodes[1]: ") && got.contains(want), "{node}: {got}");
    }
}

#[test]
fn broken_graphs_are_refused_by_place() {
    let x = json!([r("logprobs")]);
    let with = |key: &str, value: Json| {
        let mut node = method("s", "sum", &x);
        node[key] = value;
        node
    };
    let cases = [
        (with("op", json!("call_module")), "calls the module"),
        (with("op", json!("get_attr")), "reads the attribute"),
        (with("op", json!("exec")), "op \"exec\" is not known"),
        (with("op", json!(3)), "has no text \"op\""),
        (with("target", json!(null)), "has no text \"target\""),
        (with("args", json!([r("later")])), "no earlier node is called"),
        (with("args", json!({})), "\"args\" is not a list"),
        (with("kwargs", json!([])), "\"kwargs\" is not an object"),
        (with("kwargs", json!({"where": true})), "\"where\" is not supported"),
        (with("kwargs", json!({"out": r("logprobs")})), "\"out\" is not supported"),
        (with("args", json!([r("logprobs"), {"a": 1, "b": 2}])), "exactly one key"),
        (with("args", json!([r("logprobs"), {"pickle": "gASV"}])), "has no meaning"),
        (with("args", json!([r("logprobs"), {"float": "1"}])), "none of inf, -inf, nan"),
        (with("args", json!([r("logprobs"), {"dtype": "qint8"}])), "dtype \"qint8\""),
        (with("args", json!([r("logprobs"), 18_446_744_073_709_551_615u64])), "64 bits"),
        (with("args", json!([r("logprobs"), 0, 0, 0, 0, 0])), "fewer arguments"),
        (with("args", json!([])), "input is missing"),
        (with("name", json!("logprobs")), "two nodes have the name"),
    ];
    for (node, want) in cases {
        let got = refusal(std::slice::from_ref(&node));
        assert!(got.starts_with("graph: ") && got.contains(want), "{node}: {got}");
    }
}

#[test]
fn inputs_and_output_must_fit() {
    let sum = method("s", "sum", &json!([r("logprobs")]));
    let graph = |nodes: &[Json]| json!({"format": 1, "nodes": nodes});
    let whole = graph(&[placeholder("logprobs"), sum.clone(), output("s")]);
    let many: Vec<_> = std::iter::once(input("logprobs", 1))
        .chain((0..16).map(|i| input(&format!("i{i}"), 1)))
        .collect();
    let mut metrics = output("s");
    metrics["args"] = json!([{"tuple": [r("s"), {"dict": {"loss:sum": r("s")}}]}]);
    let metrics = graph(&[placeholder("logprobs"), sum.clone(), metrics]);
    let mut constant = output("s");
    constant["args"] = json!([{"tuple": [1.5, {"dict": {}}]}]);
    let constant = graph(&[placeholder("logprobs"), sum.clone(), constant]);
    let cases = [
        (vec![], &whole, "the first is logprobs"),
        (vec![input("weights", 1)], &whole, "must be logprobs"),
        (vec![input("logprobs", 0)], &whole, "of rank 1 or 2"),
        (vec![input("logprobs", 1), input("Weights", 1)], &whole, "\"Weights\" is not a name"),
        (vec![input("logprobs", 1), input("w", 3)], &whole, "w has rank 3"),
        (vec![input("logprobs", 1), input("w", 1)], &whole, "takes (logprobs) but"),
        (many, &whole, "the limit is 16"),
        (vec![input("logprobs", 1)], &json!({"format": 2, "nodes": []}), "format 2"),
        (vec![input("logprobs", 1)], &json!([]), "no list \"nodes\""),
        (vec![input("logprobs", 1)], &graph(&[placeholder("logprobs"), sum]), "has no output"),
        (vec![input("logprobs", 1)], &metrics, "\"loss:sum\" is not called custom/"),
        (vec![input("logprobs", 1)], &constant, "must return (loss, metrics)"),
    ];
    for (inputs, graph, want) in cases {
        let got = Loss::new(inputs, graph, &LIMITS).unwrap_err().to_string();
        assert!(got.contains(want), "{want}: {got}");
    }
}

#[test]
fn what_fails_on_a_datum_names_the_node() {
    let x = r("logprobs");
    let sum = |of: &str| method("total", "sum", &json!([r(of)]));
    let cases = [
        (vec![function("i", "operator.getitem", &json!([x, 7])), sum("i")], "node i"),
        (vec![function("m", "torch.matmul", &json!([x, 2])), sum("m")], "node m"),
        (vec![method("v", "view", &json!([x, 2, 2])), sum("v")], "node v (view)"),
        (vec![method("e", "exp", &json!([x]))], "not one number"),
        (vec![method("n", "numel", &json!([x]))], "an int, not a tensor"),
        (vec![method("d", "detach", &json!([x])), sum("d")], "does not depend on logprobs"),
        (vec![method("g", "argmax", &json!([x]))], "of type int64"),
    ];
    for (nodes, want) in cases {
        let got = evaluate(&nodes, &[-0.5, -1.0, -2.0]).unwrap_err().to_string();
        assert!(got.contains(want), "{want}: {got}");
    }
    let loss = loss(&[sum("logprobs")], &LIMITS).unwrap();
    let matrix = tinsmith_graph::Tensor::new(tinsmith_graph::Dtype::Float32, vec![1, 1], vec![0.0]);
    let got = loss.evaluate(&[matrix.unwrap()], &LIMITS).unwrap_err().to_string();
    assert!(got.contains("logprobs has the shape [1, 1]"), "{got}");
}

/// The Python numbers of a graph come from whoever sent it: no arithmetic on them may panic.
#[test]
fn arithmetic_on_extreme_numbers_does_not_panic() {
    let extremes = [i64::MIN, i64::MAX, -1, 0, 1];
    let names = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "lt"];
    for name in names {
        for (left, right) in extremes.iter().flat_map(|l| extremes.iter().map(move |r| (*l, *r))) {
            let call = function("n", &format!("operator.{name}"), &json!([left, right]));
            let product = function("p", "operator.mul", &json!([r("logprobs"), r("n")]));
            drop(evaluate(&[call, product, method("s", "sum", &json!([r("p")]))], &[-1.0]));
        }
    }
    for name in ["neg", "abs", "invert", "pos"] {
        for value in extremes {
            let call = function("n", &format!("operator.{name}"), &json!([value]));
            let product = function("p", "operator.mul", &json!([r("logprobs"), r("n")]));
            drop(evaluate(&[call, product, method("s", "sum", &json!([r("p")]))], &[-1.0]));
        }
    }
}
