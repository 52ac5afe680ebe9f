//! Arithmetic on pairs of elements, and what chooses between them.

use super::{
    Call, Op,
    call::{Binary, Typed, Unary},
    op, python,
};
use crate::{Dtype, error::Fallible, tape::Var, value::Value};

pub(super) const OPS: &[Op] = &[
    op("add operator.add", "input other alpha?", |call| arithmetic(call, &ADD, python::add)),
    op("sub subtract operator.sub", "input other alpha?", |call| {
        arithmetic(call, &SUB, python::sub)
    }),
    op("rsub", "input other alpha?", rsub),
    op("mul multiply operator.mul", "input other", |call| arithmetic(call, &MUL, python::mul)),
    op("div divide", "input other rounding_mode?", div),
    op("true_divide operator.truediv", "input other", |call| arithmetic(call, &DIV, python::div)),
    op("floor_divide operator.floordiv", "input other", |call| {
        arithmetic(call, &FLOOR_DIV, python::floor_div)
    }),
    op("remainder operator.mod", "input other", |call| arithmetic(call, &MOD, python::modulo)),
    op("fmod", "input other", |call| both(call, &FMOD)),
    op("pow operator.pow", "input exponent", |call| arithmetic(call, &POW, python::pow)),
    op("float_power", "input exponent", float_power),
    op("maximum", "input other", |call| both(call, &MAX)),
    op("minimum", "input other", |call| both(call, &MIN)),
    op("fmax", "input other", |call| both(call, &FMAX)),
    op("fmin", "input other", |call| both(call, &FMIN)),
    op("atan2 arctan2", "input other", |call| both(call, &ATAN2)),
    op("hypot", "input other", |call| both(call, &HYPOT)),
    op("logaddexp", "input other", |call| both(call, &LOGADDEXP)),
    op("logaddexp2", "input other", logaddexp2),
    op("xlogy special.xlogy", "input other", |call| both(call, &XLOGY)),
    op("special.xlog1py", "input other", |call| both(call, &XLOG1PY)),
    op("torch.where", "condition input other", |call| choose(call, 0, 1)),
    op(".where", "input condition other", |call| choose(call, 1, 0)),
    op("clamp clip", "input min? max?", clamp),
    op("clamp_min", "input min", clamp),
    op("clamp_max", "input max", |call| {
        call.slots.insert(1, Value::None);
        clamp(call)
    }),
    op("lerp", "input end weight", lerp),
    op("addcmul", "input tensor1 tensor2 value?", |call| add_product(call, &MUL)),
    op("addcdiv", "input tensor1 tensor2 value?", |call| add_product(call, &DIV)),
];

pub(super) const ADD: Binary =
    Binary { typed: Typed::Same, f: |x, y| x + y, partials: |_, _, _| (1.0, 1.0) };
pub(super) const SUB: Binary =
    Binary { typed: Typed::Same, f: |x, y| x - y, partials: |_, _, _| (1.0, -1.0) };
pub(super) const MUL: Binary =
    Binary { typed: Typed::Same, f: |x, y| x * y, partials: |x, y, _| (y, x) };
pub(super) const DIV: Binary =
    Binary { typed: Typed::Fractional, f: |x, y| x / y, partials: |_, y, z| (1.0 / y, -z / y) };
const FLOOR_DIV: Binary =
    Binary { typed: Typed::Same, f: |x, y| (x / y).floor(), partials: |_, _, _| (0.0, 0.0) };
const TRUNC_DIV: Binary =
    Binary { typed: Typed::Same, f: |x, y| (x / y).trunc(), partials: |_, _, _| (0.0, 0.0) };
const MOD: Binary =
    Binary { typed: Typed::Same, f: modulo, partials: |x, y, _| (1.0, -(x / y).floor()) };
const FMOD: Binary =
    Binary { typed: Typed::Same, f: |x, y| x % y, partials: |x, y, _| (1.0, -(x / y).trunc()) };
pub(super) const POW: Binary =
    Binary { typed: Typed::Same, f: libm::pow, partials: power_partials };
pub(super) const MAX: Binary = Binary {
    typed: Typed::Same,
    f: greater,
    partials: |x, y, _| if x == y { (0.5, 0.5) } else { first_if(x > y || x.is_nan()) },
};
pub(super) const MIN: Binary = Binary {
    typed: Typed::Same,
    f: lesser,
    partials: |x, y, _| if x == y { (0.5, 0.5) } else { first_if(x < y || x.is_nan()) },
};
const FMAX: Binary =
    Binary { typed: Typed::Same, f: f64::max, partials: |x, y, _| first_if(x >= y || y.is_nan()) };
const FMIN: Binary =
    Binary { typed: Typed::Same, f: f64::min, partials: |x, y, _| first_if(x <= y || y.is_nan()) };
const ATAN2: Binary = Binary {
    typed: Typed::Fractional,
    f: libm::atan2,
    partials: |y, x, _| (x / (x * x + y * y), -y / (x * x + y * y)),
};
const HYPOT: Binary =
    Binary { typed: Typed::Same, f: libm::hypot, partials: |x, y, z| (x / z, y / z) };
const LOGADDEXP: Binary = Binary {
    typed: Typed::Same,
    f: |x, y| {
        if x == y && x.is_infinite() {
            x
        } else {
            x.max(y) + libm::log1p(libm::exp(-(x - y).abs()))
        }
    },
    partials: |x, y, _| (1.0 / (1.0 + libm::exp(y - x)), 1.0 / (1.0 + libm::exp(x - y))),
};
pub(super) const XLOGY: Binary = Binary {
    typed: Typed::Fractional,
    f: |x, y| times_log(x, y, libm::log(y)),
    partials: |x, y, _| (if x == 0.0 && y <= 0.0 { 0.0 } else { libm::log(y) }, x / y),
};
const XLOG1PY: Binary = Binary {
    typed: Typed::Fractional,
    f: |x, y| times_log(x, y, libm::log1p(y)),
    partials: |x, y, _| (if x == 0.0 && y <= -1.0 { 0.0 } else { libm::log1p(y) }, x / (y + 1.0)),
};
const BASE2_TO_E: Unary = Unary {
    typed: Typed::Fractional,
    f: |x| x * std::f64::consts::LN_2,
    derivative: |_, _| std::f64::consts::LN_2,
};

/// The greater one; a NaN stays.
pub(super) fn greater(x: f64, y: f64) -> f64 {
    if x > y || x.is_nan() { x } else { y }
}

/// The lesser one; a NaN stays.
pub(super) fn lesser(x: f64, y: f64) -> f64 {
    if x < y || x.is_nan() { x } else { y }
}

/// Python's `%`: the result has the sign of the divisor.
pub(super) fn modulo(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
}

fn first_if(first: bool) -> (f64, f64) {
    if first { (1.0, 0.0) } else { (0.0, 1.0) }
}

fn times_log(x: f64, y: f64, log: f64) -> f64 {
    if y.is_nan() {
        f64::NAN
    } else if x == 0.0 {
        0.0
    } else {
        x * log
    }
}

fn power_partials(x: f64, exponent: f64, result: f64) -> (f64, f64) {
    let base = if exponent == 0.0 { 0.0 } else { exponent * libm::pow(x, exponent - 1.0) };
    let exponent = if x == 0.0 && exponent >= 0.0 { 0.0 } else { result * libm::log(x) };
    (base, exponent)
}

/// Python's arithmetic on two numbers, else torch's.
fn arithmetic(
    call: &mut Call<'_>,
    function: &Binary,
    python: python::Arithmetic,
) -> Fallible<Value> {
    if call.value(2).is_none()
        && let Some(value) = python::apply(call, python)?
    {
        return Ok(value);
    }
    let other = scaled(call)?;
    let input = call.value(0).clone();
    let result = call.two(function, input, other)?;
    Ok(result.into())
}

/// The second argument times `alpha`, the third.
fn scaled(call: &mut Call<'_>) -> Fallible<Value> {
    let (other, alpha) = (call.value(1).clone(), call.value(2).clone());
    if alpha.is_none() { Ok(other) } else { Ok(call.two(&MUL, other, alpha)?.into()) }
}

pub(super) fn both(call: &mut Call<'_>, function: &Binary) -> Fallible<Value> {
    let (left, right) = (call.value(0).clone(), call.value(1).clone());
    Ok(call.two(function, left, right)?.into())
}

fn rsub(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, other, alpha) =
        (call.value(0).clone(), call.value(1).clone(), call.value(2).clone());
    let input = if alpha.is_none() { input } else { call.two(&MUL, input, alpha)?.into() };
    Ok(call.two(&SUB, other, input)?.into())
}

fn div(call: &mut Call<'_>) -> Fallible<Value> {
    let function = match call.text_or(2, "")? {
        "" => &DIV,
        "floor" => &FLOOR_DIV,
        "trunc" => &TRUNC_DIV,
        other => return Err(format!("rounding_mode {other:?} is not known")),
    };
    both(call, function)
}

fn float_power(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, exponent) = (call.operand(0)?, call.operand(1)?);
    let input = call.tape.cast(&input, Dtype::Float64)?;
    let exponent = call.tape.cast(&exponent, Dtype::Float64)?;
    Ok(call.two(&POW, &input, &exponent)?.into())
}

fn logaddexp2(call: &mut Call<'_>) -> Fallible<Value> {
    let (left, right) = (call.tensor(0)?, call.tensor(1)?);
    let (left, right) = (call.one(&BASE2_TO_E, &left)?, call.one(&BASE2_TO_E, &right)?);
    let result = call.two(&LOGADDEXP, &left, &right)?;
    Ok(call.two(&DIV, &result, std::f64::consts::LN_2)?.into())
}

fn choose(call: &mut Call<'_>, condition: usize, input: usize) -> Fallible<Value> {
    let condition = call.tensor(condition)?;
    let (yes, no) = (call.value(input).clone(), call.value(2).clone());
    Ok(call.choose(&condition, yes, no)?.into())
}

/// Within bounds that are numbers, tensors or absent; the gradient goes to what is taken, to the input where
/// it equals a bound.
fn clamp(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let (min, max) = (call.value(1).clone(), call.value(2).clone());
    if min.is_none() && max.is_none() {
        return Err("clamp needs min or max".to_owned());
    }
    Ok(clamped(call, input, &min, &max)?.into())
}

/// As `torch.clamp`; the upper bound wins over the lower one.
pub(super) fn clamped(call: &mut Call<'_>, input: Var, min: &Value, max: &Value) -> Fallible<Var> {
    let mut result = input;
    for (bound, outside) in [
        (min, (|x, bound| f64::from(x < bound)) as fn(f64, f64) -> f64),
        (max, |x, bound| f64::from(x > bound)),
    ] {
        if !bound.is_none() {
            let outside = call.test(outside, &result, bound.clone())?;
            result = call.choose(&outside, bound.clone(), &result)?;
        }
    }
    Ok(result)
}

fn lerp(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, end, weight) = (call.tensor(0)?, call.tensor(1)?, call.value(2).clone());
    let way = call.two(&SUB, &end, &input)?;
    let way = call.two(&MUL, &way, weight)?;
    Ok(call.two(&ADD, &input, &way)?.into())
}

fn add_product(call: &mut Call<'_>, function: &Binary) -> Fallible<Value> {
    let (input, left, right) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
    let mut product = call.two(function, &left, &right)?;
    if !call.value(3).is_none() {
        let value = call.value(3).clone();
        product = call.two(&MUL, &product, value)?;
    }
    Ok(call.two(&ADD, &input, &product)?.into())
}
