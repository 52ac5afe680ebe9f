//! Functions of single elements.

use std::f64::consts::{FRAC_2_SQRT_PI, LN_2, LN_10};

use super::{
    Call, Op,
    call::{Typed, Unary},
    op,
};
use crate::{Dtype, error::Fallible, value::Value};

pub(super) const OPS: &[Op] = &[
    op("neg negative operator.neg", "input", |call| signed(call, &NEG, |x| -x)),
    op("positive operator.pos", "input", |call| Ok(call.value(0).clone())),
    op("abs absolute operator.abs", "input", |call| signed(call, &ABS, f64::abs)),
    op("exp special.exp", "input", |call| each(call, &EXP)),
    op("exp2 special.exp2", "input", |call| each(call, &EXP2)),
    op("expm1 special.expm1", "input", |call| each(call, &EXPM1)),
    op("log", "input", |call| each(call, &LOG)),
    op("log2", "input", |call| each(call, &LOG2)),
    op("log10", "input", |call| each(call, &LOG10)),
    op("log1p special.log1p", "input", |call| each(call, &LOG1P)),
    op("sqrt", "input", |call| each(call, &SQRT)),
    op("rsqrt", "input", |call| each(call, &RSQRT)),
    op("square", "input", |call| each(call, &SQUARE)),
    op("reciprocal", "input", |call| each(call, &RECIPROCAL)),
    op("sigmoid special.expit F.sigmoid", "input", |call| each(call, &SIGMOID)),
    op("F.log_sigmoid F.logsigmoid", "input", |call| each(call, &LOG_SIGMOID)),
    op("logit special.logit", "input eps?", logit),
    op("tanh F.tanh", "input", |call| each(call, &TANH)),
    op("sin", "input", |call| each(call, &SIN)),
    op("cos", "input", |call| each(call, &COS)),
    op("tan", "input", |call| each(call, &TAN)),
    op("asin arcsin", "input", |call| each(call, &ASIN)),
    op("acos arccos", "input", |call| each(call, &ACOS)),
    op("atan arctan", "input", |call| each(call, &ATAN)),
    op("sinh", "input", |call| each(call, &SINH)),
    op("cosh", "input", |call| each(call, &COSH)),
    op("erf special.erf", "input", |call| each(call, &ERF)),
    op("erfc special.erfc", "input", |call| each(call, &ERFC)),
    op("special.entr", "input", |call| each(call, &ENTR)),
    op("sign sgn", "input", |call| each(call, &SIGN)),
    op("floor", "input", |call| each(call, &FLOOR)),
    op("ceil", "input", |call| each(call, &CEIL)),
    op("round special.round", "input decimals?", round),
    op("trunc fix", "input", |call| each(call, &TRUNC)),
    op("frac", "input", |call| each(call, &FRAC)),
    op("relu F.relu", "input", |call| each(call, &RELU)),
    op("F.relu6", "input", |call| each(call, &RELU6)),
    op("F.silu", "input", |call| each(call, &SILU)),
    op("F.softsign", "input", |call| each(call, &SOFTSIGN)),
    op("F.gelu", "input approximate?", gelu),
    op("F.softplus", "input beta? threshold?", softplus),
    op("F.elu", "input alpha?", elu),
    op("F.leaky_relu", "input negative_slope?", leaky_relu),
    op("F.hardtanh", "input min_val? max_val?", hardtanh),
    op("F._threshold F.threshold", "input threshold value", threshold),
    op("nan_to_num", "input nan? posinf? neginf?", nan_to_num),
];

const fn fractional(f: fn(f64) -> f64, derivative: fn(f64, f64) -> f64) -> Unary {
    Unary { typed: Typed::Fractional, f, derivative }
}

const fn same(f: fn(f64) -> f64, derivative: fn(f64, f64) -> f64) -> Unary {
    Unary { typed: Typed::Same, f, derivative }
}

pub(super) const NEG: Unary = same(|x| -x, |_, _| -1.0);
pub(super) const ABS: Unary = same(f64::abs, |x, _| sign(x));
pub(super) const EXP: Unary = fractional(libm::exp, |_, y| y);
const EXP2: Unary = fractional(libm::exp2, |_, y| y * LN_2);
const EXPM1: Unary = fractional(libm::expm1, |_, y| y + 1.0);
pub(super) const LOG: Unary = fractional(libm::log, |x, _| 1.0 / x);
const LOG2: Unary = fractional(libm::log2, |x, _| 1.0 / (x * LN_2));
const LOG10: Unary = fractional(libm::log10, |x, _| 1.0 / (x * LN_10));
const LOG1P: Unary = fractional(libm::log1p, |x, _| 1.0 / (x + 1.0));
pub(super) const SQRT: Unary = fractional(f64::sqrt, |_, y| 0.5 / y);
const RSQRT: Unary = fractional(|x| 1.0 / x.sqrt(), |_, y| -0.5 * y * y * y);
pub(super) const SQUARE: Unary = same(|x| x * x, |x, _| 2.0 * x);
const RECIPROCAL: Unary = fractional(|x| 1.0 / x, |_, y| -y * y);
pub(super) const SIGMOID: Unary = fractional(sigmoid, |_, y| y * (1.0 - y));
pub(super) const LOG_SIGMOID: Unary = fractional(|x| -log1p_exp(-x), |x, _| sigmoid(-x));
const TANH: Unary = fractional(libm::tanh, |_, y| 1.0 - y * y);
const SIN: Unary = fractional(libm::sin, |x, _| libm::cos(x));
const COS: Unary = fractional(libm::cos, |x, _| -libm::sin(x));
const TAN: Unary = fractional(libm::tan, |_, y| 1.0 + y * y);
const ASIN: Unary = fractional(libm::asin, |x, _| 1.0 / (1.0 - x * x).sqrt());
const ACOS: Unary = fractional(libm::acos, |x, _| -1.0 / (1.0 - x * x).sqrt());
const ATAN: Unary = fractional(libm::atan, |x, _| 1.0 / (1.0 + x * x));
const SINH: Unary = fractional(libm::sinh, |x, _| libm::cosh(x));
const COSH: Unary = fractional(libm::cosh, |x, _| libm::sinh(x));
const ERF: Unary = fractional(libm::erf, |x, _| FRAC_2_SQRT_PI * libm::exp(-x * x));
const ERFC: Unary = fractional(libm::erfc, |x, _| -FRAC_2_SQRT_PI * libm::exp(-x * x));
const ENTR: Unary = fractional(
    |x| match x {
        0.0 => 0.0,
        x if x < 0.0 => f64::NEG_INFINITY,
        x => -x * libm::log(x),
    },
    |x, _| -libm::log(x) - 1.0,
);
const SIGN: Unary = same(sign, |_, _| 0.0);
const FLOOR: Unary = same(f64::floor, |_, _| 0.0);
const CEIL: Unary = same(f64::ceil, |_, _| 0.0);
const ROUND: Unary = same(f64::round_ties_even, |_, _| 0.0);
const TRUNC: Unary = same(f64::trunc, |_, _| 0.0);
const FRAC: Unary = same(f64::fract, |_, _| 1.0);
pub(super) const RELU: Unary = same(|x| if x <= 0.0 { 0.0 } else { x }, |_, y| f64::from(y > 0.0));
const RELU6: Unary =
    same(|x| if x.is_nan() { x } else { x.clamp(0.0, 6.0) }, |x, _| f64::from(x > 0.0 && x < 6.0));
const SILU: Unary = same(|x| x * sigmoid(x), |x, _| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))));
const SOFTSIGN: Unary =
    same(|x| x / (1.0 + x.abs()), |x, _| 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs())));

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// `log(1 + e^x)`, also where `e^x` is beyond all bounds.
pub(super) fn log1p_exp(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x * 0.0
    }
}

pub(super) fn each(call: &mut Call<'_>, function: &Unary) -> Fallible<Value> {
    let input = call.tensor(0)?;
    Ok(call.one(function, &input)?.into())
}

/// Python's on a number, else torch's.
fn signed(call: &mut Call<'_>, function: &Unary, python: fn(f64) -> f64) -> Fallible<Value> {
    if let Value::Int(value) = call.value(0) {
        let float = Value::Int(*value).to_f64()?;
        let negated = value.checked_neg().ok_or("an integer of more than 64 bits")?;
        return Ok(Value::Int(if (python(float) < 0.0) == (*value < 0) {
            *value
        } else {
            negated
        }));
    }
    if let Value::Float(value) = call.value(0) {
        return Ok(Value::Float(python(*value)));
    }
    each(call, function)
}

fn logit(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dtype = input.dtype().fractional();
    let eps = if call.value(1).is_none() { None } else { Some(call.float_or(1, 0.0)?) };
    let bounded = move |x: f64| match eps {
        Some(eps) if x < eps => eps,
        Some(eps) if x > 1.0 - eps => 1.0 - eps,
        _ => x,
    };
    let f = move |x| libm::log(bounded(x) / (1.0 - bounded(x)));
    let derivative = move |x: f64, _| match eps {
        Some(eps) if x < eps || x > 1.0 - eps => 0.0,
        _ => 1.0 / (x * (1.0 - x)),
    };
    Ok(call.tape.unary(&input, dtype, f, derivative)?.into())
}

fn round(call: &mut Call<'_>) -> Fallible<Value> {
    let decimals = call.int_or(1, 0)?;
    if decimals == 0 {
        return each(call, &ROUND);
    }
    let input = call.tensor(0)?;
    let exponent = i32::try_from(decimals).map_err(|_| format!("decimals {decimals}"))?;
    let scale = 10.0f64.powi(exponent);
    let f = move |x: f64| (x * scale).round_ties_even() / scale;
    Ok(call.tape.unary(&input, input.dtype(), f, |_, _| 0.0)?.into())
}

fn gelu(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let tanh = match call.text_or(1, "none")? {
        "none" => false,
        "tanh" => true,
        other => return Err(format!("approximate {other:?} is not known")),
    };
    let dtype = input.dtype();
    let result = if tanh {
        let scale = (2.0 / std::f64::consts::PI).sqrt();
        let inner = move |x: f64| scale * (x + 0.044_715 * x * x * x);
        let f = move |x: f64| 0.5 * x * (1.0 + libm::tanh(inner(x)));
        call.tape.unary(&input, dtype, f, move |x, _| {
            let t = libm::tanh(inner(x));
            let slope = scale * (1.0 + 3.0 * 0.044_715 * x * x);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
        })
    } else {
        let normal = |x: f64| 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
        let density = |x: f64| {
            libm::exp(-0.5 * x * x) * 0.5 * FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2
        };
        let derivative = move |x: f64, _: f64| normal(x) + x * density(x);
        call.tape.unary(&input, dtype, move |x| x * normal(x), derivative)
    };
    Ok(result?.into())
}

fn softplus(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, beta, threshold) =
        (call.tensor(0)?, call.float_or(1, 1.0)?, call.float_or(2, 20.0)?);
    let f = move |x: f64| {
        if x * beta > threshold { x } else { log1p_exp(x * beta) / beta }
    };
    let derivative = move |x: f64, _| if x * beta > threshold { 1.0 } else { sigmoid(x * beta) };
    Ok(call.tape.unary(&input, input.dtype(), f, derivative)?.into())
}

fn elu(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, alpha) = (call.tensor(0)?, call.float_or(1, 1.0)?);
    let f = move |x: f64| if x > 0.0 { x } else { alpha * libm::expm1(x) };
    let derivative = move |x: f64, _| if x > 0.0 { 1.0 } else { alpha * libm::exp(x) };
    Ok(call.tape.unary(&input, input.dtype(), f, derivative)?.into())
}

fn leaky_relu(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, slope) = (call.tensor(0)?, call.float_or(1, 0.01)?);
    let f = move |x: f64| if x > 0.0 { x } else { x * slope };
    let derivative = move |x: f64, _| if x > 0.0 { 1.0 } else { slope };
    Ok(call.tape.unary(&input, input.dtype(), f, derivative)?.into())
}

fn hardtanh(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, min, max) = (call.tensor(0)?, call.float_or(1, -1.0)?, call.float_or(2, 1.0)?);
    let f = move |x: f64| {
        if x < min {
            min
        } else if x > max {
            max
        } else {
            x
        }
    };
    let derivative = move |x: f64, _| f64::from(x > min && x < max);
    Ok(call.tape.unary(&input, input.dtype(), f, derivative)?.into())
}

fn threshold(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, bound, value) = (call.tensor(0)?, call.float_or(1, 0.0)?, call.float_or(2, 0.0)?);
    let f = move |x: f64| if x <= bound { value } else { x };
    let derivative = move |x: f64, _| f64::from(x > bound);
    Ok(call.tape.unary(&input, input.dtype(), f, derivative)?.into())
}

fn nan_to_num(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let greatest = match input.dtype() {
        Dtype::Float16 => 65_504.0,
        Dtype::Bfloat16 => half::bf16::MAX.to_f64(),
        Dtype::Float64 => f64::MAX,
        Dtype::Float32
        | Dtype::Bool
        | Dtype::Uint8
        | Dtype::Int8
        | Dtype::Int16
        | Dtype::Int32
        | Dtype::Int64 => f64::from(f32::MAX),
    };
    let nan = call.float_or(1, 0.0)?;
    let (posinf, neginf) = (call.float_or(2, greatest)?, call.float_or(3, -greatest)?);
    let f = move |x: f64| match x {
        x if x.is_nan() => nan,
        f64::INFINITY => posinf,
        f64::NEG_INFINITY => neginf,
        x => x,
    };
    let derivative = |x: f64, _| f64::from(x.is_finite());
    Ok(call.tape.unary(&input, input.dtype(), f, derivative)?.into())
}
