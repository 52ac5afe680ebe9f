//! What makes one number of many: sums, means, extremes, norms.

use std::sync::Arc;

use super::{
    Call, Op,
    call::{Binary, Typed},
    elementwise::{ADD, DIV, MUL, SUB, greater, lesser},
    math::{ABS, EXP, LOG, SQRT, SQUARE},
    op,
};
use crate::{
    Dtype,
    error::Fallible,
    shape::{self, Lines},
    tape::Var,
    value::{Value, count},
};

pub(super) const OPS: &[Op] = &[
    op("sum", "input dim? keepdim? dtype?", sum),
    op("nansum", "input dim? keepdim? dtype?", |call| {
        without_nan(call)?;
        sum(call)
    }),
    op("mean", "input dim? keepdim? dtype?", mean),
    op("nanmean", "input dim? keepdim? dtype?", nanmean),
    op("prod", "input dim? keepdim? dtype?", prod),
    op("amax", "input dim? keepdim?", |call| extreme(call, greater)),
    op("amin", "input dim? keepdim?", |call| extreme(call, lesser)),
    op("max", "input other? keepdim? dim?", |call| best(call, greater)),
    op("min", "input other? keepdim? dim?", |call| best(call, lesser)),
    op("argmax", "input dim? keepdim?", |call| argument(call, greater)),
    op("argmin", "input dim? keepdim?", |call| argument(call, lesser)),
    op("all", "input dim? keepdim?", |call| logic(call, |all, any| all || any)),
    op("any", "input dim? keepdim?", |call| logic(call, |_, any| any)),
    op("count_nonzero", "input dim?", count_nonzero),
    op("var", "input dim? unbiased? keepdim? correction?", |call| Ok(variance(call)?.into())),
    op("std", "input dim? unbiased? keepdim? correction?", |call| {
        let variance = variance(call)?;
        Ok(call.one(&SQRT, &variance)?.into())
    }),
    op("norm", "input p? dim? keepdim? dtype?", norm),
    op("linalg.norm linalg.vector_norm", "input ord? dim? keepdim? dtype?", norm),
    op("logsumexp special.logsumexp", "input dim keepdim?", logsumexp),
];

/// The shape without the dimensions, or with ones in their place, and for each element of the input the place
/// of the result that it goes to.
pub(super) fn groups(shape: &[usize], dims: &[usize], keep: bool) -> (Vec<usize>, Vec<usize>) {
    let size = |dim: usize| if dims.contains(&dim) { 1 } else { shape[dim] };
    let kept: Vec<usize> = (0..shape.len()).map(size).collect();
    let own = shape::strides(&kept);
    let stride = |dim: usize| if dims.contains(&dim) { 0 } else { own[dim] };
    let strides: Vec<usize> = (0..shape.len()).map(stride).collect();
    let map = shape::walk(shape, &strides, 0);
    let shape = (0..shape.len()).filter(|dim| keep || !dims.contains(dim)).map(size).collect();
    (shape, map)
}

/// The sum over dimensions, as `dtype`.
pub(super) fn summed(
    call: &mut Call<'_>,
    input: &Var,
    dims: &[usize],
    keep: bool,
    dtype: Dtype,
) -> Fallible<Var> {
    call.tape.budget.tensor(input.data().len(), 1)?;
    let (shape, map) = groups(input.shape(), dims, keep);
    let mut sums = vec![0.0; shape::elements(&shape)];
    for (value, place) in input.data().iter().zip(&map) {
        sums[*place] += value;
    }
    call.tape.computed(&[input], (dtype, shape), sums, |_| {
        Box::new(move |gradient| vec![map.iter().map(|place| gradient[*place]).collect()])
    })
}

/// All elements in one sum.
pub(super) fn total(call: &mut Call<'_>, input: &Var) -> Fallible<Var> {
    let dims: Vec<usize> = (0..input.rank()).collect();
    summed(call, input, &dims, false, input.dtype().summed())
}

/// The mean over dimensions.
pub(super) fn averaged(
    call: &mut Call<'_>,
    input: &Var,
    dims: &[usize],
    keep: bool,
) -> Fallible<Var> {
    if !input.dtype().is_float() {
        return Err(format!("mean needs fractions, not {}; cast with .float()", input.dtype()));
    }
    let number = dims.iter().map(|dim| input.shape()[*dim]).product();
    let sum = summed(call, input, dims, keep, input.dtype())?;
    call.two(&DIV, &sum, count(number))
}

fn cast(call: &mut Call<'_>, slot: usize) -> Fallible<Var> {
    let input = call.tensor(0)?;
    match call.dtype(slot)? {
        Some(dtype) => call.tape.cast(&input, dtype),
        None => Ok(input),
    }
}

fn sum(call: &mut Call<'_>) -> Fallible<Value> {
    let input = cast(call, 3)?;
    let dtype = call.dtype(3)?.unwrap_or_else(|| input.dtype().summed());
    let (dims, keep) = (call.dims(1, input.rank())?, call.flag(2, false)?);
    Ok(summed(call, &input, &dims, keep, dtype)?.into())
}

fn mean(call: &mut Call<'_>) -> Fallible<Value> {
    let input = cast(call, 3)?;
    let (dims, keep) = (call.dims(1, input.rank())?, call.flag(2, false)?);
    Ok(averaged(call, &input, &dims, keep)?.into())
}

/// Puts zeros in place of what is not a number, and says which elements are numbers.
fn without_nan(call: &mut Call<'_>) -> Fallible<Var> {
    let input = call.tensor(0)?;
    let real = call.test(|x, y| f64::from(x == y), &input, &input)?;
    call.slots[0] = call.choose(&real, &input, Value::Int(0))?.into();
    Ok(real)
}

fn nanmean(call: &mut Call<'_>) -> Fallible<Value> {
    let real = without_nan(call)?;
    let input = cast(call, 3)?;
    let (dims, keep) = (call.dims(1, input.rank())?, call.flag(2, false)?);
    let sum = summed(call, &input, &dims, keep, input.dtype())?;
    let real = summed(call, &real, &dims, keep, Dtype::Int64)?;
    Ok(call.two(&DIV, &sum, &real)?.into())
}

fn prod(call: &mut Call<'_>) -> Fallible<Value> {
    let input = cast(call, 3)?;
    let (dims, keep) = (call.dims(1, input.rank())?, call.flag(2, false)?);
    let dtype = input.dtype().summed();
    call.tape.budget.tensor(input.data().len(), 1)?;
    let (shape, map) = groups(input.shape(), &dims, keep);
    let mut products = vec![1.0; shape::elements(&shape)];
    for (value, place) in input.data().iter().zip(&map) {
        products[*place] *= value;
    }
    let (x, groups) = (Arc::clone(&input.tensor.data), products.len());
    let result = call.tape.computed(&[&input], (dtype, shape), products, |_| {
        Box::new(move |gradient| {
            // Each element's gradient is the product of the others, which a zero hides.
            let mut zeros = vec![0usize; groups];
            let mut others = vec![1.0; groups];
            for (value, place) in x.iter().zip(&map) {
                if *value == 0.0 {
                    zeros[*place] += 1;
                } else {
                    others[*place] *= value;
                }
            }
            let one = |(value, place): (&f64, &usize)| match (zeros[*place], *value == 0.0) {
                (0, _) => gradient[*place] * (others[*place] / value),
                (1, true) => gradient[*place] * others[*place],
                _ => 0.0,
            };
            vec![x.iter().zip(&map).map(one).collect()]
        })
    })?;
    Ok(result.into())
}

type Better = fn(f64, f64) -> f64;

/// The extreme of each group; its gradient is shared evenly by the elements that equal it.
pub(super) fn extremes(
    call: &mut Call<'_>,
    input: &Var,
    dims: &[usize],
    keep: bool,
    better: Better,
) -> Fallible<Var> {
    if input.data().is_empty() {
        return Err("there is no extreme of no elements".to_owned());
    }
    call.tape.budget.tensor(input.data().len(), 1)?;
    let (shape, map) = groups(input.shape(), dims, keep);
    let mut found: Vec<Option<f64>> = vec![None; shape::elements(&shape)];
    for (value, place) in input.data().iter().zip(&map) {
        let best = &mut found[*place];
        *best = Some(best.map_or(*value, |best| better(best, *value)));
    }
    let found: Vec<f64> = found.into_iter().flatten().collect();
    let x = Arc::clone(&input.tensor.data);
    call.tape.computed(&[input], (input.dtype(), shape), found, |output| {
        let best = Arc::clone(&output.data);
        Box::new(move |gradient| {
            let equal = |(value, place): (&f64, &usize)| *value == best[*place];
            let mut sharers = vec![0usize; best.len()];
            for (value, place) in x.iter().zip(&map) {
                sharers[*place] += usize::from(equal((value, place)));
            }
            let share = |(value, place): (&f64, &usize)| {
                if equal((value, place)) { gradient[*place] / count(sharers[*place]) } else { 0.0 }
            };
            vec![x.iter().zip(&map).map(share).collect()]
        })
    })
}

fn extreme(call: &mut Call<'_>, better: Better) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let (dims, keep) = (call.dims(1, input.rank())?, call.flag(2, false)?);
    Ok(extremes(call, &input, &dims, keep, better)?.into())
}

/// For each line the place of its best element, the first among equals.
fn places(call: &mut Call<'_>, input: &Var, dim: usize, better: Better) -> Fallible<Vec<usize>> {
    let lines = Lines::new(input.shape(), dim);
    if lines.length == 0 {
        return Err("there is no extreme of no elements".to_owned());
    }
    call.tape.budget.tensor(input.data().len(), 0)?;
    let values = input.data();
    let place = |line: usize| {
        (1..lines.length).fold(0, |best, index| {
            let (old, new) = (values[lines.place(line, best)], values[lines.place(line, index)]);
            let wins = !old.is_nan() && (new.is_nan() || (new != old && better(old, new) == new));
            if wins { index } else { best }
        })
    };
    Ok((0..lines.count).map(place).collect())
}

/// `max(x)`, `max(x, other)` or `max(x, dim)`: the last gives values and indices.
fn best(call: &mut Call<'_>, better: Better) -> Fallible<Value> {
    let input = call.tensor(0)?;
    if !call.value(3).is_none() {
        call.slots.swap(1, 3);
    }
    if let Value::Tensor(_) = call.value(1) {
        let maximum = better(0.0, 1.0) == 1.0;
        let function = if maximum { &super::elementwise::MAX } else { &super::elementwise::MIN };
        return super::elementwise::both(call, function);
    }
    if call.value(1).is_none() {
        let dims: Vec<usize> = (0..input.rank()).collect();
        return Ok(extremes(call, &input, &dims, false, better)?.into());
    }
    let (dim, keep) = (call.dim_or(1, 0, input.rank())?, call.flag(2, false)?);
    let best = places(call, &input, dim, better)?;
    let lines = Lines::new(input.shape(), dim);
    let map = best.iter().enumerate().map(|(line, index)| lines.place(line, *index)).collect();
    let shape = without(input.shape(), dim, keep);
    let values = call.tape.take(&input, shape.clone(), map, 0.0)?;
    let indices = best.into_iter().map(count).collect();
    let indices = call.tape.constant(Dtype::Int64, shape, indices)?;
    Ok(Value::Sequence(vec![values.into(), indices.into()]))
}

/// The shape without one dimension, or with a one in its place.
pub(super) fn without(shape: &[usize], dim: usize, keep: bool) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if keep && dim < shape.len() {
        shape[dim] = 1;
    } else if dim < shape.len() {
        shape.remove(dim);
    }
    shape
}

fn argument(call: &mut Call<'_>, better: Better) -> Fallible<Value> {
    let input = call.tensor(0)?;
    if call.value(1).is_none() {
        let flat = call.tape.reshaped(&input.detached(), vec![input.data().len()])?;
        let place = places(call, &flat, 0, better)?;
        let shape = if call.flag(2, false)? { vec![1; input.rank()] } else { Vec::new() };
        let place = place.into_iter().map(count).collect();
        return Ok(call.tape.constant(Dtype::Int64, shape, place)?.into());
    }
    let (dim, keep) = (call.dim_or(1, 0, input.rank())?, call.flag(2, false)?);
    let places = places(call, &input, dim, better)?.into_iter().map(count).collect();
    let shape = without(input.shape(), dim, keep);
    Ok(call.tape.constant(Dtype::Int64, shape, places)?.into())
}

/// `holds` is given whether all and whether any elements are not zero, and is true of no elements for `all`.
fn logic(call: &mut Call<'_>, holds: fn(bool, bool) -> bool) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let (dims, keep) = (call.dims(1, input.rank())?, call.flag(2, false)?);
    call.tape.budget.tensor(input.data().len(), 1)?;
    let (shape, map) = groups(input.shape(), &dims, keep);
    let wants_all = holds(true, false);
    let mut result = vec![f64::from(wants_all); shape::elements(&shape)];
    for (value, place) in input.data().iter().zip(&map) {
        if (*value == 0.0) == wants_all {
            result[*place] = f64::from(!wants_all);
        }
    }
    Ok(call.tape.constant(Dtype::Bool, shape, result)?.into())
}

fn count_nonzero(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dims = call.dims(1, input.rank())?;
    let some = call.test(|x, y| f64::from(x != y), &input, Value::Int(0))?;
    Ok(summed(call, &some, &dims, false, Dtype::Int64)?.into())
}

/// `var(x, dim, unbiased, keepdim)`, with `correction` in place of `unbiased`; `var(x, unbiased)` too.
fn variance(call: &mut Call<'_>) -> Fallible<Var> {
    let input = call.tensor(0)?;
    if let Value::Bool(unbiased) = *call.value(1) {
        call.slots[1] = Value::None;
        call.slots[2] = Value::Bool(unbiased);
    }
    let (dims, keep) = (call.dims(1, input.rank())?, call.flag(3, false)?);
    let unbiased = if call.flag(2, true)? { 1.0 } else { 0.0 };
    let correction = call.float_or(4, unbiased)?;
    let mean = averaged(call, &input, &dims, true)?;
    let difference = call.two(&SUB, &input, &mean)?;
    let squares = call.one(&SQUARE, &difference)?;
    let sum = summed(call, &squares, &dims, keep, squares.dtype())?;
    let number: usize = dims.iter().map(|dim| input.shape()[*dim]).product();
    call.two(&DIV, &sum, (count(number) - correction).max(0.0))
}

/// `|x|^p`, whose derivative at zero is zero.
fn power(p: f64) -> (impl Fn(f64) -> f64, impl Fn(f64, f64) -> f64 + 'static) {
    let derivative = move |x: f64, _: f64| {
        if x == 0.0 { 0.0 } else { p * libm::pow(x.abs(), p - 1.0) * x.signum() }
    };
    (move |x: f64| libm::pow(x.abs(), p), derivative)
}

/// The root of a sum of squares; its gradient at zero is zero, as torch's.
const ROOT: super::call::Unary = super::call::Unary {
    typed: Typed::Same,
    f: f64::sqrt,
    derivative: |_, y| if y == 0.0 { 0.0 } else { 0.5 / y },
};

fn norm(call: &mut Call<'_>) -> Fallible<Value> {
    let input = cast(call, 4)?;
    if matches!(call.value(1), Value::Text(text) if text != "fro") {
        return Err("of the norms by name only \"fro\" is supported".to_owned());
    }
    let p = if matches!(call.value(1), Value::Text(_)) { 2.0 } else { call.float_or(1, 2.0)? };
    let (dims, keep) = (call.dims(2, input.rank())?, call.flag(3, false)?);
    Ok(normed(call, &input, (p, &dims), keep)?.into())
}

/// The `p`-norm over dimensions.
pub(super) fn normed(
    call: &mut Call<'_>,
    input: &Var,
    (p, dims): (f64, &[usize]),
    keep: bool,
) -> Fallible<Var> {
    if p.is_infinite() {
        let sizes = call.one(&ABS, input)?;
        return extremes(call, &sizes, dims, keep, if p > 0.0 { greater } else { lesser });
    }
    if p == 1.0 {
        let sizes = call.one(&ABS, input)?;
        return summed(call, &sizes, dims, keep, sizes.dtype());
    }
    if p == 2.0 {
        let squares = call.one(&SQUARE, input)?;
        let sum = summed(call, &squares, dims, keep, squares.dtype())?;
        return call.one(&ROOT, &sum);
    }
    if p == 0.0 {
        let some = call.test(|x, y| f64::from(x != y), input, Value::Int(0))?;
        return summed(call, &some, dims, keep, input.dtype());
    }
    let (f, derivative) = power(p);
    let powers = call.tape.unary(input, input.dtype(), f, derivative)?;
    let sum = summed(call, &powers, dims, keep, powers.dtype())?;
    let (f, derivative) = power(1.0 / p);
    call.tape.unary(&sum, sum.dtype(), f, derivative)
}

fn logsumexp(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let (dims, keep) = (call.dims(1, input.rank())?, call.flag(2, false)?);
    Ok(log_sum_exp(call, &input, &dims, keep)?.into())
}

/// `log Σ exp x`, each sum relative to its greatest element.
pub(super) fn log_sum_exp(
    call: &mut Call<'_>,
    input: &Var,
    dims: &[usize],
    keep: bool,
) -> Fallible<Var> {
    let greatest = extremes(call, &input.detached(), dims, true, greater)?;
    let finite = call.test(|x, y| f64::from((x - y).abs() < f64::INFINITY), &greatest, 0.0)?;
    let base = call.choose(&finite, &greatest, 0.0)?;
    let shifted = call.two(&SUB, input, &base)?;
    let powers = call.one(&EXP, &shifted)?;
    let sum = summed(call, &powers, dims, keep, powers.dtype())?;
    let log = call.one(&LOG, &sum)?;
    let base = if keep { base } else { call.tape.reshaped(&base, sum.shape().to_vec())? };
    call.two(&ADD, &log, &base)
}

/// `Σ x * y` over dimensions.
pub(super) fn dot(call: &mut Call<'_>, left: &Var, right: &Var, dims: &[usize]) -> Fallible<Var> {
    let products = call.two(&MUL as &Binary, left, right)?;
    let dtype = products.dtype();
    summed(call, &products, dims, false, dtype)
}
