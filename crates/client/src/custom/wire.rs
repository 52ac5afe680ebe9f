//! A traced loss in the API's format: the nodes that torch.fx would write for the same calculation.

use serde_json::{Value as Json, json};

use super::{
    op::{Binary, Compare, Op, Reduce, Unary},
    tape::{Node, Operand},
};
use crate::CustomInput;

/// `{"format": 1, "nodes": […]}`.
pub(super) fn graph(
    inputs: &[CustomInput],
    nodes: &[Node],
    loss: usize,
    metrics: &[(String, usize)],
) -> Json {
    let mut written = Vec::with_capacity(nodes.len() + 1);
    for (place, node) in nodes.iter().enumerate() {
        match inputs.get(place) {
            Some(input) => written.push(json!({
                "op": "placeholder", "name": input.name, "target": input.name, "args": [], "kwargs": {},
            })),
            None => write(&mut written, inputs, place, node),
        }
    }
    let mut entries = serde_json::Map::new();
    for (name, place) in metrics {
        entries.insert(name.clone(), reference(inputs, *place));
    }
    let output = json!({"tuple": [reference(inputs, loss), {"dict": entries}]});
    written.push(json!({"op": "output", "name": "output", "target": "output", "args": [output], "kwargs": {}}));
    json!({"format": 1, "nodes": written})
}

/// The node of one operation; a few take a second one beside it.
fn write(written: &mut Vec<Json>, inputs: &[CustomInput], place: usize, node: &Node) {
    let name = name(inputs, place);
    let mut args: Vec<Json> = node.args.iter().map(|arg| argument(inputs, arg)).collect();
    let mut push = |kind: &str, name: &str, target: &str, args: Vec<Json>| {
        written
            .push(json!({"op": kind, "name": name, "target": target, "args": args, "kwargs": {}}));
    };
    match &node.op {
        Op::Compare(compare) => {
            // PyTorch's comparisons give truth values, ours numbers.
            let truth = format!("{name}_truth");
            push("call_function", &truth, of_compare(*compare), args);
            push("call_method", &name, "float", vec![json!({"ref": truth})]);
        }
        Op::Where => {
            let truth = format!("{name}_truth");
            push("call_function", &truth, "operator.ne", vec![args[0].clone(), json!(0)]);
            args[0] = json!({"ref": truth});
            push("call_function", &name, "torch.where", args);
        }
        Op::Unary(unary) => push("call_function", &name, of_unary(*unary), args),
        Op::Binary(binary) => push("call_function", &name, of_binary(*binary), args),
        Op::Clamp { min, max } => {
            args.extend([min, max].map(|bound| bound.map_or(Json::Null, number)));
            push("call_method", &name, "clamp", args);
        }
        Op::Power(exponent) => {
            args.push(number(*exponent));
            push("call_function", &name, "operator.pow", args);
        }
        Op::Reduce { kind, last } => {
            if *last {
                args.push(json!(-1));
            }
            push("call_method", &name, of_reduce(*kind), args);
        }
        Op::LogSumExp => push("call_method", &name, "logsumexp", [args, vec![json!(-1)]].concat()),
        Op::CumulativeSum => push("call_method", &name, "cumsum", [args, vec![json!(0)]].concat()),
        Op::Flip => push("call_method", &name, "flip", [args, vec![json!([0])]].concat()),
        Op::Index(element) => {
            args.push(json!(element));
            push("call_function", &name, "operator.getitem", args);
        }
        Op::Slice(start, end) => {
            args.push(json!({"slice": [start, end, null]}));
            push("call_function", &name, "operator.getitem", args);
        }
        Op::Concat => push("call_function", &name, "torch.cat", vec![Json::Array(args)]),
        Op::Stack => push("call_function", &name, "torch.stack", vec![Json::Array(args)]),
        Op::Unsqueeze => push("call_method", &name, "unsqueeze", [args, vec![json!(-1)]].concat()),
        Op::Transpose => push("call_method", &name, "t", args),
        Op::MatMul => push("call_function", &name, "torch.matmul", args),
        Op::Detach => push("call_method", &name, "detach", args),
        // A tape that traces refuses the last four, and has no leaves but its inputs.
        Op::Leaf | Op::Expand(_) | Op::SumTo(_) | Op::Reshape(_) | Op::Pad(..) => {}
    }
}

/// Inputs have lowercase names, so that these are free.
fn name(inputs: &[CustomInput], place: usize) -> String {
    inputs.get(place).map_or_else(|| format!("V{place}"), |input| input.name.clone())
}

fn reference(inputs: &[CustomInput], place: usize) -> Json {
    json!({"ref": name(inputs, place)})
}

fn argument(inputs: &[CustomInput], arg: &Operand) -> Json {
    match arg {
        Operand::Node(place) => reference(inputs, *place),
        Operand::Number(value) => number(*value),
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
