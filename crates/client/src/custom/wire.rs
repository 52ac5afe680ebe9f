//! A traced loss in the API's format: the nodes that torch.fx would write for the same calculation.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use super::{
    op::{Binary, Compare, Op, Reduce, Unary},
    tape::{Node, Operand},
};
use crate::CustomInput;

/// What Python calls things of its own: torch.fx puts a number behind these.
const TAKEN: [&str; 4] = ["sum", "float", "abs", "pow"];

/// `{"format": 1, "nodes": […]}`.
pub(super) fn graph(
    inputs: &[CustomInput],
    nodes: &[Node],
    loss: usize,
    metrics: &[(String, usize)],
) -> Json {
    let mut writer = Writer::default();
    for (place, node) in nodes.iter().enumerate() {
        let name = match inputs.get(place) {
            Some(input) => writer.push("placeholder", &input.name, &input.name, &[]),
            None => writer.write(node),
        };
        writer.places.push(name);
    }
    let mut entries = serde_json::Map::new();
    for (name, place) in metrics {
        entries.insert(name.clone(), writer.reference(*place));
    }
    let output = json!({"tuple": [writer.reference(loss), {"dict": entries}]});
    writer.push("output", "output", "output", &[output]);
    json!({"format": 1, "nodes": writer.nodes})
}

#[derive(Default)]
struct Writer {
    nodes: Vec<Json>,
    /// Names that nodes have.
    taken: BTreeSet<String>,
    /// The name of each value of the calculation.
    places: Vec<String>,
}

impl Writer {
    /// Writes a node that is called like its target, and gives its name.
    fn push(&mut self, kind: &str, base: &str, target: &str, args: &[Json]) -> String {
        let is_input = kind == "placeholder";
        let mut name = base.to_owned();
        let mut number = 0;
        while self.taken.contains(&name) || (!is_input && TAKEN.contains(&name.as_str())) {
            number += 1;
            name = format!("{base}_{number}");
        }
        self.taken.insert(name.clone());
        self.nodes
            .push(json!({"op": kind, "name": name, "target": target, "args": args, "kwargs": {}}));
        name
    }

    fn function(&mut self, target: &str, args: &[Json]) -> String {
        let base = target.rsplit_once('.').map_or(target, |(_, base)| base);
        self.push("call_function", base, target, args)
    }

    fn method(&mut self, target: &str, mut args: Vec<Json>, more: Vec<Json>) -> String {
        args.extend(more);
        self.push("call_method", target, target, &args)
    }

    /// The node of one operation; a few take a second one before it.
    fn write(&mut self, node: &Node) -> String {
        let mut args: Vec<Json> = node.args.iter().map(|arg| self.argument(arg)).collect();
        match &node.op {
            Op::Compare(compare) => {
                // PyTorch's comparisons give truth values, ours numbers.
                let truth = self.function(of_compare(*compare), &args);
                self.method("float", vec![json!({"ref": truth})], Vec::new())
            }
            Op::Where => {
                let truth = self.function("operator.ne", &[args[0].clone(), json!(0)]);
                args[0] = json!({"ref": truth});
                self.function("torch.where", &args)
            }
            Op::Unary(unary) => self.function(of_unary(*unary), &args),
            Op::Binary(binary) => self.function(of_binary(*binary), &args),
            Op::Clamp { min, max } => {
                let bounds = [min, max].map(|bound| bound.map_or(Json::Null, number));
                self.method("clamp", args, bounds.to_vec())
            }
            Op::Power(exponent) => {
                args.push(number(*exponent));
                self.function("operator.pow", &args)
            }
            Op::Reduce { kind, last: false } => self.method(of_reduce(*kind), args, Vec::new()),
            Op::Reduce { kind, last: true } => self.method(of_reduce(*kind), args, vec![json!(-1)]),
            Op::LogSumExp => self.method("logsumexp", args, vec![json!(-1)]),
            Op::CumulativeSum => self.method("cumsum", args, vec![json!(0)]),
            Op::Flip => self.method("flip", args, vec![json!([0])]),
            Op::Index(element) => {
                args.push(json!(element));
                self.function("operator.getitem", &args)
            }
            Op::Slice(start, end) => {
                args.push(json!({"slice": [start, end, null]}));
                self.function("operator.getitem", &args)
            }
            Op::Concat => self.function("torch.cat", &[Json::Array(args)]),
            Op::Stack => self.function("torch.stack", &[Json::Array(args)]),
            Op::Unsqueeze => self.method("unsqueeze", args, vec![json!(-1)]),
            Op::Transpose => self.method("t", args, Vec::new()),
            Op::MatMul => self.function("torch.matmul", &args),
            Op::Detach => self.method("detach", args, Vec::new()),
            // A tape that traces refuses the last four, and has no leaves but its inputs.
            Op::Leaf | Op::Expand(_) | Op::SumTo(_) | Op::Reshape(_) | Op::Pad(..) => String::new(),
        }
    }

    fn reference(&self, place: usize) -> Json {
        json!({"ref": self.places[place]})
    }

    fn argument(&self, arg: &Operand) -> Json {
        match arg {
            Operand::Node(place) => self.reference(*place),
            Operand::Number(value) => number(*value),
        }
    }
}

/// JSON has no names for what is not finite.
fn number(value: f64) -> Json {
    if value.is_finite() {
        return json!(value);
    }
    let name = if value.is_nan() {
        "nan"
    } else if value > 0.0 {
        "inf"
    } else {
        "-inf"
    };
    json!({"float": name})
}

fn of_unary(unary: Unary) -> &'static str {
    match unary {
        Unary::Neg => "operator.neg",
        Unary::Exp => "torch.exp",
        Unary::Expm1 => "torch.expm1",
        Unary::Log => "torch.log",
        Unary::Log1p => "torch.log1p",
        Unary::Sqrt => "torch.sqrt",
        Unary::Square => "torch.square",
        Unary::Reciprocal => "torch.reciprocal",
        Unary::Abs => "torch.abs",
        Unary::Sign => "torch.sign",
        Unary::Sigmoid => "torch.sigmoid",
        Unary::LogSigmoid => "torch.nn.functional.logsigmoid",
        Unary::Softplus => "torch.nn.functional.softplus",
        Unary::Tanh => "torch.tanh",
        Unary::Relu => "torch.relu",
    }
}

fn of_binary(binary: Binary) -> &'static str {
    match binary {
        Binary::Add => "operator.add",
        Binary::Sub => "operator.sub",
        Binary::Mul => "operator.mul",
        Binary::Div => "operator.truediv",
        Binary::Maximum => "torch.maximum",
        Binary::Minimum => "torch.minimum",
    }
}

fn of_compare(compare: Compare) -> &'static str {
    match compare {
        Compare::Less => "operator.lt",
        Compare::LessOrEqual => "operator.le",
        Compare::Greater => "operator.gt",
        Compare::GreaterOrEqual => "operator.ge",
        Compare::Equal => "operator.eq",
        Compare::NotEqual => "operator.ne",
    }
}

/// `amax` and `amin` share a gradient evenly, as we do.
fn of_reduce(reduce: Reduce) -> &'static str {
    match reduce {
        Reduce::Sum => "sum",
        Reduce::Mean => "mean",
        Reduce::Max => "amax",
        Reduce::Min => "amin",
    }
}
