//! Reverse mode. Gradients are calculations on the same tape, so that they can be differentiated again.

use std::rc::Rc;

use super::{
    array::Array,
    op::{Binary, Compare, Op, Reduce, Unary},
    tape::{Mode, Operand},
    var::Var,
};

/// `d(sum of output) / d(each of inputs)`, in the shapes of the inputs; zeros where the output does not depend on one.
pub(super) fn gradients(output: &Var, inputs: &[Var]) -> Vec<Var> {
    let tape = output.tape();
    if tape.mode() == Mode::Traced {
        tape.fail("gradient: a loss that the server runs is differentiated there");
        return inputs.to_vec();
    }
    let Some(value) = tape.value(output.place()) else { return inputs.to_vec() };
    let end = output.place() + 1;
    let depends = dependent(output, inputs);
    let mut totals: Vec<Option<Var>> = vec![None; end];
    totals[output.place()] = Some(tape.leaf(value.map(|_| 1.0)));
    for place in (0..end).rev() {
        if !depends[place] {
            continue;
        }
        let Some(total) = totals[place].clone() else { continue };
        let node = tape.node(place);
        let of_arguments = arguments(&node.op, &node.args, &Var::new(tape, place), &total);
        for (arg, gradient) in node.args.iter().zip(of_arguments) {
            let (Operand::Node(arg), Some(gradient)) = (arg, gradient) else { continue };
            if depends[*arg] {
                let sum =
                    totals[*arg].as_ref().map_or_else(|| gradient.clone(), |sum| sum + &gradient);
                totals[*arg] = Some(sum);
            }
        }
    }
    let zeros = |input: &Var| {
        let value = tape.value(input.place()).unwrap_or_else(|| Array::scalar(0.0));
        tape.leaf(value.map(|_| 0.0))
    };
    let found = |input: &Var| totals.get(input.place()).cloned().flatten();
    inputs.iter().map(|input| found(input).unwrap_or_else(|| zeros(input))).collect()
}

/// Whether the output depends on any of the inputs in a way that has a gradient.
pub(super) fn depends(output: &Var, inputs: &[Var]) -> bool {
    dependent(output, inputs)[output.place()]
}

/// For each node up to the output, whether it is one of the inputs or has one of them behind it.
fn dependent(output: &Var, inputs: &[Var]) -> Vec<bool> {
    let tape = output.tape();
    let mut depends = vec![false; output.place() + 1];
    for input in inputs.iter().filter(|input| Rc::ptr_eq(input.tape(), tape)) {
        if let Some(depends) = depends.get_mut(input.place()) {
            *depends = true;
        }
    }
    for place in 0..depends.len() {
        let node = tape.node(place);
        let stops = matches!(node.op, Op::Detach | Op::Compare(_) | Op::Unary(Unary::Sign));
        let reached =
            node.args.iter().any(|arg| matches!(arg, Operand::Node(arg) if depends[*arg]));
        depends[place] |= reached && !stops;
    }
    depends
}

/// The gradient of each argument, given that of the result.
fn arguments(op: &Op, args: &[Operand], result: &Var, total: &Var) -> Vec<Option<Var>> {
    let tape = result.tape();
    let arg = |place: usize| match args.get(place) {
        Some(Operand::Node(node)) => Var::new(tape, *node),
        Some(Operand::Number(number)) => tape.leaf(Array::scalar(*number)),
        None => result.clone(),
    };
    let like = |gradient: Var, place: usize| {
        let shape = arg(place).shape();
        if gradient.shape() == shape { gradient } else { gradient.apply(Op::SumTo(shape)) }
    };
    let x = || arg(0);
    let length = |var: &Var| var.shape().first().copied().unwrap_or_default();
    let one = |gradient: Var| vec![Some(gradient)];
    match op {
        Op::Leaf | Op::Compare(_) | Op::Detach | Op::Unary(Unary::Sign) => vec![None; args.len()],
        Op::Unary(Unary::Neg) => one(-total),
        Op::Unary(unary) => one(total * of_unary(*unary, &x(), result)),
        Op::Binary(binary) => {
            let (left, right) = of_binary(*binary, &arg(0), &arg(1), result, total);
            vec![Some(like(left, 0)), Some(like(right, 1))]
        }
        Op::Where => {
            let (zero, chosen) = (tape.leaf(Array::scalar(0.0)), x());
            let yes = like(chosen.choose(total, &zero), 1);
            vec![None, Some(yes), Some(like(chosen.choose(&zero, total), 2))]
        }
        Op::Clamp { min, max } => one(inside(&x(), *min, *max, total)),
        Op::Power(0.0) => one(x() * 0.0),
        Op::Power(exponent) => one(total * (x().powf(exponent - 1.0) * *exponent)),
        Op::Reduce { kind, last } => one(of_reduce(*kind, *last, &x(), result, total)),
        Op::LogSumExp => one((x() - result.unsqueeze()).exp() * total.unsqueeze()),
        Op::CumulativeSum => one(total.flip().cumulative_sum().flip()),
        Op::Stack => (0..args.len()).map(|place| Some(total.index(place))).collect(),
        Op::MatMul => {
            vec![Some(total.matmul(&arg(1).transpose())), Some(arg(0).transpose().matmul(total))]
        }
        Op::Concat => parts((0..args.len()).map(|place| length(&arg(place))), total),
        Op::Flip => one(total.flip()),
        Op::Transpose => one(total.transpose()),
        Op::Index(place) => {
            let shape = x().shape();
            let row = [&[1], shape.get(1..).unwrap_or_default()].concat();
            let after = length(&x()).saturating_sub(place + 1);
            one(total.apply(Op::Reshape(row)).apply(Op::Pad(*place, after)))
        }
        Op::Slice(start, end) => {
            one(total.apply(Op::Pad(*start, length(&x()).saturating_sub(*end))))
        }
        Op::Pad(before, _) => one(total.apply(Op::Slice(*before, before + length(&x())))),
        Op::Unsqueeze | Op::Reshape(_) => one(total.apply(Op::Reshape(x().shape()))),
        Op::Expand(_) => one(total.apply(Op::SumTo(x().shape()))),
        Op::SumTo(_) => one(total.apply(Op::Expand(x().shape()))),
    }
}

/// What of a total lies within the bounds.
fn inside(x: &Var, min: Option<f64>, max: Option<f64>, total: &Var) -> Var {
    let mut inside = total.clone();
    if let Some(min) = min {
        inside = inside * x.greater_or_equal(min);
    }
    if let Some(max) = max {
        inside = inside * x.less_or_equal(max);
    }
    inside
}

/// The parts of a total that has parts of these lengths.
fn parts(lengths: impl Iterator<Item = usize>, total: &Var) -> Vec<Option<Var>> {
    let mut end = 0;
    let part = |length: usize| {
        let start = end;
        end += length;
        Some(total.apply(Op::Slice(start, end)))
    };
    lengths.map(part).collect()
}

/// `d result / d x`.
fn of_unary(unary: Unary, x: &Var, result: &Var) -> Var {
    match unary {
        Unary::Neg | Unary::Sign => x * 0.0,
        Unary::Exp => result.clone(),
        Unary::Expm1 => result + 1.0,
        Unary::Log => x.reciprocal(),
        Unary::Log1p => (x + 1.0).reciprocal(),
        Unary::Sqrt => result.reciprocal() * 0.5,
        Unary::Square => x * 2.0,
        Unary::Reciprocal => -result.square(),
        Unary::Abs => x.sign(),
        Unary::Sigmoid => result * (1.0 - result),
        Unary::LogSigmoid => (-x).sigmoid(),
        Unary::Softplus => x.sigmoid(),
        Unary::Tanh => 1.0 - result.square(),
        Unary::Relu => x.greater(0.0),
    }
}

/// The gradients of both, in the result's shape.
fn of_binary(binary: Binary, x: &Var, y: &Var, result: &Var, total: &Var) -> (Var, Var) {
    // Where both are equal each gets half, as in PyTorch.
    let best = |compare: Compare| {
        let first = x.compare(compare, y) + x.compare(Compare::Equal, y) * 0.5;
        (total * &first, total * (1.0 - first))
    };
    match binary {
        Binary::Add => (total.clone(), total.clone()),
        Binary::Sub => (total.clone(), -total),
        Binary::Mul => (total * y, total * x),
        Binary::Div => (total / y, -(total * result) / y),
        Binary::Maximum => best(Compare::Greater),
        Binary::Minimum => best(Compare::Less),
    }
}

fn of_reduce(kind: Reduce, last: bool, x: &Var, result: &Var, total: &Var) -> Var {
    let shape = x.shape();
    let spread = |var: &Var| {
        let column = if last { var.unsqueeze() } else { var.clone() };
        column.apply(Op::Expand(shape.clone()))
    };
    let numbers = if last { shape.last().copied().unwrap_or(1) } else { shape.iter().product() };
    match kind {
        Reduce::Sum => spread(total),
        Reduce::Mean => spread(&(total / super::op::count(numbers))),
        Reduce::Max | Reduce::Min => {
            // Those that are the best share evenly, as in PyTorch's amax.
            let best = x.compare(Compare::Equal, &spread(result));
            let sharing = best.apply(Op::Reduce { kind: Reduce::Sum, last });
            best * spread(&(total / sharing))
        }
    }
}
