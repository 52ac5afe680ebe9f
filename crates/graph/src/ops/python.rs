//! What Python does without torch: arithmetic on numbers, `math`, and attributes of tensors.

use super::{Call, Op, op};
use crate::{
    error::Fallible,
    shape,
    value::{Number, Value},
};

/// Arithmetic on two Python numbers.
pub(super) type Arithmetic = fn(Number, Number) -> Fallible<Number>;

pub(super) const OPS: &[Op] = &[
    op("get.shape .size", "input dim?", size),
    op("get.ndim dim ndimension", "input", |call| integer(call.tensor(0)?.rank())),
    op("numel nelement", "input", |call| integer(call.tensor(0)?.data().len())),
    op("get.dtype", "input", |call| Ok(Value::Dtype(call.tensor(0)?.dtype()))),
    op("get.device get.layout", "input", |_| Ok(Value::Setting)),
    op("get.values", "input", |call| part(call, 0)),
    op("get.indices", "input", |call| part(call, 1)),
    op("is_floating_point", "input", |call| Ok(Value::Bool(call.tensor(0)?.dtype().is_float()))),
    op("math.sqrt", "input", |call| function(call, f64::sqrt)),
    op("math.exp", "input", |call| function(call, libm::exp)),
    op("math.expm1", "input", |call| function(call, libm::expm1)),
    op("math.log", "input base?", |call| log(call)),
    op("math.log2", "input", |call| function(call, libm::log2)),
    op("math.log10", "input", |call| function(call, libm::log10)),
    op("math.log1p", "input", |call| function(call, libm::log1p)),
    op("math.sin", "input", |call| function(call, libm::sin)),
    op("math.cos", "input", |call| function(call, libm::cos)),
    op("math.tanh", "input", |call| function(call, libm::tanh)),
    op("math.erf", "input", |call| function(call, libm::erf)),
    op("math.fabs", "input", |call| function(call, f64::abs)),
    op("math.pow", "input other", |call| {
        let result = libm::pow(call.value(0).to_f64()?, call.value(1).to_f64()?);
        Ok(Value::Float(finite(result)?))
    }),
    op("math.floor", "input", |call| rounded(call, f64::floor)),
    op("math.ceil", "input", |call| rounded(call, f64::ceil)),
    op("math.trunc", "input", |call| rounded(call, f64::trunc)),
];

/// The result of two Python numbers, or of two tuples that are joined; `None` where a tensor takes part.
pub(super) fn apply(call: &Call<'_>, function: Arithmetic) -> Fallible<Option<Value>> {
    if let (Value::Sequence(left), Value::Sequence(right)) = (call.value(0), call.value(1)) {
        return Ok(Some(Value::Sequence(left.iter().chain(right).cloned().collect())));
    }
    match (call.value(0).number(), call.value(1).number()) {
        (Some(left), Some(right)) => Ok(Some(function(left, right)?.into())),
        _ => Ok(None),
    }
}

const OVERFLOW: &str = "an integer of more than 64 bits";

fn whole_or(
    (left, right): (Number, Number),
    whole: fn(i64, i64) -> Option<i64>,
    float: fn(f64, f64) -> f64,
) -> Fallible<Number> {
    if let (Number::Int(left), Number::Int(right)) = (left, right) {
        return whole(left, right).map(Number::Int).ok_or_else(|| OVERFLOW.to_owned());
    }
    Ok(Number::Float(float(left.to_f64(), right.to_f64())))
}

pub(super) fn add(left: Number, right: Number) -> Fallible<Number> {
    whole_or((left, right), i64::checked_add, |x, y| x + y)
}

pub(super) fn sub(left: Number, right: Number) -> Fallible<Number> {
    whole_or((left, right), i64::checked_sub, |x, y| x - y)
}

pub(super) fn mul(left: Number, right: Number) -> Fallible<Number> {
    whole_or((left, right), i64::checked_mul, |x, y| x * y)
}

fn divisor(right: Number) -> Fallible<()> {
    if right.to_f64() == 0.0 { Err("division by zero".to_owned()) } else { Ok(()) }
}

pub(super) fn div(left: Number, right: Number) -> Fallible<Number> {
    divisor(right)?;
    Ok(Number::Float(left.to_f64() / right.to_f64()))
}

pub(super) fn floor_div(left: Number, right: Number) -> Fallible<Number> {
    divisor(right)?;
    let whole = |x: i64, y: i64| {
        let quotient = x.checked_div(y)?;
        Some(if x % y != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient })
    };
    whole_or((left, right), whole, |x, y| (x / y).floor())
}

pub(super) fn modulo(left: Number, right: Number) -> Fallible<Number> {
    divisor(right)?;
    let whole = |x: i64, y: i64| {
        let rest = x.checked_rem(y)?;
        Some(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest })
    };
    whole_or((left, right), whole, super::elementwise::modulo)
}

pub(super) fn pow(left: Number, right: Number) -> Fallible<Number> {
    if let (Number::Int(base), Number::Int(exponent)) = (left, right)
        && exponent >= 0
    {
        let exponent = u32::try_from(exponent).map_err(|_| OVERFLOW.to_owned())?;
        return base.checked_pow(exponent).map(Number::Int).ok_or_else(|| OVERFLOW.to_owned());
    }
    let result = libm::pow(left.to_f64(), right.to_f64());
    Ok(Number::Float(finite(result)?))
}

/// Python raises where a function has no finite value.
fn finite(value: f64) -> Fallible<f64> {
    if value.is_finite() { Ok(value) } else { Err(format!("math domain or range error: {value}")) }
}

fn integer(value: usize) -> Fallible<Value> {
    Ok(Value::Int(i64::try_from(value).map_err(|_| OVERFLOW.to_owned())?))
}

fn size(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    if call.value(1).is_none() {
        let sizes = input.shape().iter().map(|size| integer(*size));
        return Ok(Value::Sequence(sizes.collect::<Fallible<_>>()?));
    }
    let dim = call.dim_or(1, 0, input.rank())?;
    let size = input.shape().get(dim).ok_or("a scalar has no dimensions")?;
    integer(*size)
}

/// A part of what `max`, `min`, `sort` or `topk` gave along a dimension.
fn part(call: &Call<'_>, place: usize) -> Fallible<Value> {
    let value = call.value(0);
    if let Value::Sequence(values) = value
        && let Some(value) = values.get(place)
    {
        return Ok(value.clone());
    }
    Err(format!("{} has no such part", value.kind()))
}

fn function(call: &Call<'_>, f: fn(f64) -> f64) -> Fallible<Value> {
    let value = call.value(0).to_f64()?;
    let result = f(value);
    Ok(Value::Float(if value.is_finite() { finite(result)? } else { result }))
}

fn log(call: &Call<'_>) -> Fallible<Value> {
    let value = libm::log(call.value(0).to_f64()?);
    let base = call.value(1);
    let value = if base.is_none() { value } else { value / libm::log(base.to_f64()?) };
    Ok(Value::Float(finite(value)?))
}

fn rounded(call: &Call<'_>, f: fn(f64) -> f64) -> Fallible<Value> {
    let value = finite(f(call.value(0).to_f64()?))?;
    Ok(Value::Int(crate::value::whole(value)))
}

/// An element of a tuple, or a part of it.
pub(super) fn item(values: &[Value], index: &Value) -> Fallible<Value> {
    if let Value::Slice(parts) = index {
        let places = super::index::slice(parts, values.len())?;
        return Ok(Value::Sequence(places.iter().map(|place| values[*place].clone()).collect()));
    }
    let index = index.to_i64()?;
    let place = shape::position(index, values.len());
    let place = place.ok_or_else(|| format!("index {index} of a tuple of {}", values.len()))?;
    Ok(values[place].clone())
}
