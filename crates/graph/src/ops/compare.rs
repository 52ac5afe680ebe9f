//! Comparisons and logic.

use super::{Call, Op, op};
use crate::{
    Dtype,
    error::Fallible,
    tape::Function,
    value::{Number, Value, whole},
};

pub(super) const OPS: &[Op] = &[
    op("eq operator.eq", "input other", |call| compare(call, |x, y| f64::from(x == y))),
    op("ne not_equal operator.ne", "input other", |call| compare(call, |x, y| f64::from(x != y))),
    op("lt less operator.lt", "input other", |call| compare(call, |x, y| f64::from(x < y))),
    op("le less_equal operator.le", "input other", |call| compare(call, |x, y| f64::from(x <= y))),
    op("gt greater operator.gt", "input other", |call| compare(call, |x, y| f64::from(x > y))),
    op("ge greater_equal operator.ge", "input other", |call| {
        compare(call, |x, y| f64::from(x >= y))
    }),
    op("logical_and", "input other", |call| compare(call, |x, y| f64::from(x != 0.0 && y != 0.0))),
    op("logical_or", "input other", |call| compare(call, |x, y| f64::from(x != 0.0 || y != 0.0))),
    op("logical_xor", "input other", |call| {
        compare(call, |x, y| f64::from((x != 0.0) != (y != 0.0)))
    }),
    op("logical_not", "input", |call| predicate(call, |x| x == 0.0)),
    op("isnan", "input", |call| predicate(call, f64::is_nan)),
    op("isinf", "input", |call| predicate(call, f64::is_infinite)),
    op("isfinite", "input", |call| predicate(call, f64::is_finite)),
    op("isposinf", "input", |call| predicate(call, |x| x == f64::INFINITY)),
    op("isneginf", "input", |call| predicate(call, |x| x == f64::NEG_INFINITY)),
    op("signbit", "input", |call| predicate(call, |x| x < 0.0)),
    op("isclose", "input other rtol? atol? equal_nan?", isclose),
    op("bitwise_and operator.and_", "input other", |call| bits(call, |x, y| x & y)),
    op("bitwise_or operator.or_", "input other", |call| bits(call, |x, y| x | y)),
    op("bitwise_xor operator.xor", "input other", |call| bits(call, |x, y| x ^ y)),
    op("bitwise_not operator.invert operator.inv", "input", invert),
    op("operator.not_", "input", |call| {
        let value = call.value(0).to_f64()?;
        Ok(Value::Bool(value == 0.0))
    }),
];

fn compare(call: &mut Call<'_>, function: Function) -> Fallible<Value> {
    let (left, right) = (call.value(0).clone(), call.value(1).clone());
    if let (Some(left), Some(right)) = (left.number(), right.number()) {
        return Ok(Value::Bool(function(left.to_f64(), right.to_f64()) != 0.0));
    }
    if let (Value::Sequence(_), Value::Sequence(_)) = (&left, &right) {
        let equal = f64::from(call.ints(0)? == call.ints(1)?);
        return Ok(Value::Bool(function(equal, 1.0) != 0.0));
    }
    Ok(call.test(function, left, right)?.into())
}

fn predicate(call: &mut Call<'_>, holds: fn(f64) -> bool) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let data = input.data().iter().map(|x| f64::from(holds(*x))).collect();
    Ok(call.tape.constant(Dtype::Bool, input.shape().to_vec(), data)?.into())
}

fn isclose(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, other) = (call.tensor(0)?, call.tensor(1)?);
    let (relative, absolute) = (call.float_or(2, 1e-5)?, call.float_or(3, 1e-8)?);
    let nan_too = call.flag(4, false)?;
    let shape = crate::shape::broadcast(input.shape(), other.shape())?;
    let sources = [&input, &other].map(|var| crate::shape::Source::new(var.shape(), &shape));
    let near = |i: usize| {
        let (x, y) = (input.data()[sources[0].at(i)], other.data()[sources[1].at(i)]);
        let close = (x - y).abs() <= absolute + relative * y.abs() && (x - y).is_finite();
        f64::from(x == y || close || (nan_too && x.is_nan() && y.is_nan()))
    };
    let count = crate::shape::elements(&shape);
    call.tape.budget.tensor(count, 2)?;
    let data = (0..count).map(near).collect();
    Ok(call.tape.constant(Dtype::Bool, shape, data)?.into())
}

fn bits(call: &mut Call<'_>, function: fn(i64, i64) -> i64) -> Fallible<Value> {
    let values = [call.value(0).clone(), call.value(1).clone()];
    if let [Value::Bool(left), Value::Bool(right)] = values {
        return Ok(Value::Bool(function(i64::from(left), i64::from(right)) != 0));
    }
    if let (Some(Number::Int(left)), Some(Number::Int(right))) =
        (values[0].number(), values[1].number())
    {
        return Ok(Value::Int(function(left, right)));
    }
    let (vars, dtype) = call.common(&values)?;
    if dtype.is_float() {
        return Err(format!("bitwise operations are for whole numbers and bools, not {dtype}"));
    }
    let shape = crate::shape::broadcast(vars[0].shape(), vars[1].shape())?;
    let sources = [0, 1].map(|i: usize| crate::shape::Source::new(vars[i].shape(), &shape));
    let count = crate::shape::elements(&shape);
    call.tape.budget.tensor(count, 2)?;
    let at = |var: usize, i: usize| whole(vars[var].data()[sources[var].at(i)]);
    let data = (0..count).map(|i| Value::Int(function(at(0, i), at(1, i))).to_f64());
    let data = data.collect::<Fallible<_>>()?;
    Ok(call.tape.constant(dtype, shape, data)?.into())
}

fn invert(call: &mut Call<'_>) -> Fallible<Value> {
    if let Some(Number::Int(value)) = call.value(0).number() {
        return Ok(Value::Int(!value));
    }
    let input = call.tensor(0)?;
    let dtype = input.dtype();
    if dtype.is_float() {
        return Err(format!("~ is for whole numbers and bools, not {dtype}"));
    }
    let flip = |x: &f64| if dtype == Dtype::Bool { f64::from(*x == 0.0) } else { -1.0 - x };
    let data = input.data().iter().map(flip).collect();
    Ok(call.tape.constant(dtype, input.shape().to_vec(), data)?.into())
}
