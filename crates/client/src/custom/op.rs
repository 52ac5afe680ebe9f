//! The operations that a loss is made of, and what each gives. A new one is a variant here with its value and rank,
//! its gradient in `gradient.rs`, its wire name in `wire.rs`, and a method in `var.rs`; the tests run over all.

use std::fmt;

use super::array::{Array, Fallible};

/// One operation; what it takes are arrays of at most two dimensions.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    /// A number array that nothing computes: logprobs, an input of a datum, a constant.
    Leaf,
    Unary(Unary),
    Binary(Binary),
    /// 1 where it holds, else 0; without a gradient.
    Compare(Compare),
    /// The second where the first is not 0, else the third.
    Where,
    Clamp {
        min: Option<f64>,
        max: Option<f64>,
    },
    Power(f64),
    /// Of all numbers, or of each line along the last dimension.
    Reduce {
        kind: Reduce,
        last: bool,
    },
    /// Along the last dimension.
    LogSumExp,
    /// Along the first dimension, as are the next ones.
    CumulativeSum,
    Flip,
    Index(usize),
    Slice(usize, usize),
    Concat,
    Stack,
    /// `[..]` as `[.., 1]`.
    Unsqueeze,
    Transpose,
    MatMul,
    Detach,
    /// These four are made by gradients alone.
    Expand(Vec<usize>),
    SumTo(Vec<usize>),
    Reshape(Vec<usize>),
    Pad(usize, usize),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unary {
    Neg,
    Exp,
    Expm1,
    Log,
    Log1p,
    Sqrt,
    Square,
    Reciprocal,
    Abs,
    /// Without a gradient.
    Sign,
    Sigmoid,
    LogSigmoid,
    Softplus,
    Tanh,
    Relu,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Maximum,
    Minimum,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Compare {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reduce {
    Sum,
    Mean,
    Max,
    Min,
}

impl Unary {
    fn of(self, x: f64) -> f64 {
        match self {
            Self::Neg => -x,
            Self::Exp => x.exp(),
            Self::Expm1 => x.exp_m1(),
            Self::Log => x.ln(),
            Self::Log1p => x.ln_1p(),
            Self::Sqrt => x.sqrt(),
            Self::Square => x * x,
            Self::Reciprocal => x.recip(),
            Self::Abs => x.abs(),
            Self::Sign if x == 0.0 => 0.0,
            Self::Sign => x.signum(),
            Self::Sigmoid => sigmoid(x),
            Self::LogSigmoid => -softplus(-x),
            Self::Softplus => softplus(x),
            Self::Tanh => x.tanh(),
            Self::Relu => x.max(0.0),
        }
    }
}

/// Without overflow on either side.
fn sigmoid(x: f64) -> f64 {
    let small = (-x.abs()).exp();
    if x < 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) }
}

/// `ln(1 + e^x)` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl Binary {
    fn of(self, x: f64, y: f64) -> f64 {
        match self {
            Self::Add => x + y,
            Self::Sub => x - y,
            Self::Mul => x * y,
            Self::Div => x / y,
            // NaN wins, as it does in PyTorch.
            Self::Maximum if x.is_nan() || y.is_nan() => f64::NAN,
            Self::Minimum if x.is_nan() || y.is_nan() => f64::NAN,
            Self::Maximum => x.max(y),
            Self::Minimum => x.min(y),
        }
    }
}

impl Compare {
    fn of(self, x: f64, y: f64) -> bool {
        match self {
            Self::Less => x < y,
            Self::LessOrEqual => x <= y,
            Self::Greater => x > y,
            Self::GreaterOrEqual => x >= y,
            Self::Equal => x == y,
            Self::NotEqual => x != y,
        }
    }
}

impl Reduce {
    fn of(self, values: &[f64]) -> f64 {
        match self {
            Self::Sum => values.iter().sum(),
            Self::Mean => values.iter().sum::<f64>() / count(values.len()),
            Self::Max => {
                values.iter().copied().fold(f64::NEG_INFINITY, |x, y| Binary::Maximum.of(x, y))
            }
            Self::Min => {
                values.iter().copied().fold(f64::INFINITY, |x, y| Binary::Minimum.of(x, y))
            }
        }
    }
}

/// A count as a number to divide by.
#[expect(clippy::cast_precision_loss, reason = "no array has 2^53 numbers")]
pub(super) fn count(count: usize) -> f64 {
    count as f64
}

impl Op {
    /// The value for these arguments.
    ///
    /// # Errors
    /// Shapes that the operation does not take.
    pub(super) fn value(&self, args: &[Array]) -> Fallible<Array> {
        let [x, rest @ ..] = args else { return Err("it has no arguments".to_owned()) };
        let second = || rest.first().ok_or("an argument is missing");
        Ok(match self {
            Self::Leaf | Self::Detach => x.clone(),
            Self::Unary(unary) => x.map(|x| unary.of(x)),
            Self::Binary(binary) => x.zip(second()?, |x, y| binary.of(x, y))?,
            Self::Compare(compare) => x.zip(second()?, |x, y| f64::from(compare.of(x, y)))?,
            Self::Where => {
                let [yes, no] = rest else { return Err("two arguments are missing".to_owned()) };
                // Chosen, not multiplied: what is not chosen may be infinite.
                let yes = x.zip(yes, |x, yes| if x == 0.0 { 0.0 } else { yes })?;
                let no = x.zip(no, |x, no| if x == 0.0 { no } else { 0.0 })?;
                yes.zip(&no, |yes, no| yes + no)?
            }
            Self::Clamp { min, max } => x.map(|x| clamp(x, *min, *max)),
            Self::Power(exponent) => x.map(|x| x.powf(*exponent)),
            Self::Reduce { kind: Reduce::Max | Reduce::Min, .. } if x.data().is_empty() => {
                return Err("there is no number to choose from".to_owned());
            }
            Self::Reduce { kind, last: false } => x.fold(|values| kind.of(values)),
            Self::Reduce { kind, last: true } => x.fold_last(|values| kind.of(values))?,
            Self::LogSumExp => x.fold_last(log_sum_exp)?,
            Self::CumulativeSum => x.cumulative_sum()?,
            Self::Flip => x.flip()?,
            Self::Index(place) => {
                let slice = x.slice(*place, place.saturating_add(1));
                let slice =
                    slice.map_err(|_| format!("there is no element {place} in {:?}", x.shape()))?;
                slice.reshape(&x.shape()[1..])?
            }
            Self::Slice(start, end) => x.slice(*start, *end)?,
            Self::Concat => Array::concat(args)?,
            Self::Stack => Array::stack(args)?,
            Self::Unsqueeze => {
                let shape = [x.shape(), &[1]].concat();
                Array::new(shape, x.data().to_vec())?
            }
            Self::Transpose => x.transpose()?,
            Self::MatMul => x.matmul(second()?)?,
            Self::Expand(shape) => x.expand(shape)?,
            Self::SumTo(shape) => x.sum_to(shape)?,
            Self::Reshape(shape) => x.reshape(shape)?,
            Self::Pad(before, after) => x.pad(*before, *after)?,
        })
    }

    /// The rank of the value, where only the arguments' ranks are known.
    pub(super) fn rank(&self, args: &[usize]) -> Fallible<usize> {
        let [x, rest @ ..] = args else { return Err("it has no arguments".to_owned()) };
        let at_least = |least: usize| {
            if *x < least { Err(format!("it needs {least} dimensions, not {x}")) } else { Ok(*x) }
        };
        let rank = match self {
            Self::Leaf | Self::Detach | Self::Unary(_) | Self::Clamp { .. } | Self::Power(_) => *x,
            Self::Binary(_) | Self::Compare(_) | Self::Where => {
                rest.iter().fold(*x, |x, y| x.max(*y))
            }
            Self::Reduce { last: false, .. } => 0,
            Self::Reduce { last: true, .. } | Self::LogSumExp | Self::Index(_) => at_least(1)? - 1,
            Self::CumulativeSum | Self::Flip | Self::Slice(..) | Self::Concat => at_least(1)?,
            Self::Stack | Self::Unsqueeze => x + 1,
            Self::Transpose | Self::MatMul => at_least(2)?,
            Self::Expand(_) | Self::SumTo(_) | Self::Reshape(_) | Self::Pad(..) => {
                return Err("gradients are taken by the server alone".to_owned());
            }
        };
        if rank > 2 {
            return Err(format!("the result would have {rank} dimensions; 2 are possible"));
        }
        Ok(rank)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = format!("{self:?}");
        let kinds = ["Unary(", "Binary(", "Compare("];
        let inner = kinds.iter().find_map(|kind| shown.strip_prefix(kind));
        let name = inner.map_or(&*shown, |name| name.trim_end_matches(')'));
        f.write_str(&name.to_lowercase())
    }
}

fn clamp(x: f64, min: Option<f64>, max: Option<f64>) -> f64 {
    if x.is_nan() {
        return x;
    }
    let x = min.map_or(x, |min| x.max(min));
    max.map_or(x, |max| x.min(max))
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let top = Reduce::Max.of(values);
    if !top.is_finite() {
        return top;
    }
    top + values.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
}
