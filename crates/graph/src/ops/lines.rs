//! What runs along one dimension: running sums, softmax, sorting.

use std::{cmp::Ordering, sync::Arc};

use super::{Call, Op, elementwise::SUB, math::NEG, op, reduce::log_sum_exp};
use crate::{
    Dtype,
    error::Fallible,
    shape::Lines,
    tape::Var,
    value::{Value, count},
};

pub(super) const OPS: &[Op] = &[
    op("cumsum", "input dim dtype?", cumsum),
    op("cumprod", "input dim dtype?", cumprod),
    op("logcumsumexp", "input dim", logcumsumexp),
    op("cummax", "input dim", |call| running(call, |old, new| new >= old || new.is_nan())),
    op("cummin", "input dim", |call| running(call, |old, new| new <= old || new.is_nan())),
    op("diff", "input n? dim? -prepend? -append?", diff),
    op("softmax F.softmax special.softmax", "input dim? dtype?", softmax),
    op("log_softmax F.log_softmax special.log_softmax", "input dim? dtype?", log_softmax),
    op("F.softmin", "input dim? dtype?", |call| {
        let input = call.tensor(0)?;
        call.slots[0] = call.one(&NEG, &input)?.into();
        softmax(call)
    }),
    op("sort", "input dim? descending? stable?", |call| {
        let (values, indices) = sorted(call, 1, 2)?;
        Ok(Value::Sequence(vec![values.into(), indices.into()]))
    }),
    op("argsort", "input dim? descending? stable?", |call| Ok(sorted(call, 1, 2)?.1.into())),
    op("topk", "input k dim? largest? sorted?", topk),
    op("median", "input dim? keepdim?", median),
];

/// The tensor and the dimension, as the type that is asked for.
fn read(call: &mut Call<'_>, dtype: Dtype, dim: usize) -> Fallible<(Var, Lines)> {
    let input = call.tensor(0)?;
    let input = call.tape.cast(&input, dtype)?;
    let dim = call.dim_or(dim, -1, input.rank())?;
    let lines = Lines::new(input.shape(), dim);
    call.tape.budget.tensor(input.data().len(), 0)?;
    Ok((input, lines))
}

fn cumsum(call: &mut Call<'_>) -> Fallible<Value> {
    let dtype = call.dtype(2)?.unwrap_or(call.tensor(0)?.dtype().summed());
    let (input, lines) = read(call, dtype, 1)?;
    let mut sums = input.data().to_vec();
    for line in 0..lines.count {
        for index in 1..lines.length {
            sums[lines.place(line, index)] += sums[lines.place(line, index - 1)];
        }
    }
    let shape = input.shape().to_vec();
    let result = call.tape.computed(&[&input], (dtype, shape), sums, |_| {
        Box::new(move |gradient| {
            let mut sums = gradient.to_vec();
            for line in 0..lines.count {
                for index in (1..lines.length).rev() {
                    sums[lines.place(line, index - 1)] += sums[lines.place(line, index)];
                }
            }
            vec![sums]
        })
    })?;
    Ok(result.into())
}

fn cumprod(call: &mut Call<'_>) -> Fallible<Value> {
    let dtype = call.dtype(2)?.unwrap_or(call.tensor(0)?.dtype().summed());
    let (input, lines) = read(call, dtype, 1)?;
    // The gradient below takes a number of steps that is quadratic in a line's length.
    call.tape.budget.steps(input.data().len().saturating_mul(lines.length))?;
    let mut products = input.data().to_vec();
    for line in 0..lines.count {
        for index in 1..lines.length {
            products[lines.place(line, index)] *= products[lines.place(line, index - 1)];
        }
    }
    let (x, shape) = (Arc::clone(&input.tensor.data), input.shape().to_vec());
    let result = call.tape.computed(&[&input], (dtype, shape), products, |_| {
        Box::new(move |gradient| {
            let mut result = vec![0.0; x.len()];
            for line in 0..lines.count {
                cumprod_gradient((lines, line), &x, gradient, &mut result);
            }
            vec![result]
        })
    })?;
    Ok(result.into())
}

/// Adds the gradient of one line: each element takes part in its own product and in all later ones.
fn cumprod_gradient(
    (lines, line): (Lines, usize),
    x: &[f64],
    gradient: &[f64],
    result: &mut [f64],
) {
    let mut before = 1.0;
    for index in 0..lines.length {
        let place = lines.place(line, index);
        let mut product = before;
        result[place] += product * gradient[place];
        for later in (index + 1..lines.length).map(|later| lines.place(line, later)) {
            product *= x[later];
            result[place] += product * gradient[later];
        }
        before *= x[place];
    }
}

fn logcumsumexp(call: &mut Call<'_>) -> Fallible<Value> {
    let dtype = call.tensor(0)?.dtype().fractional();
    let (input, lines) = read(call, dtype, 1)?;
    let add = |x: f64, y: f64| {
        if x == f64::NEG_INFINITY {
            return y;
        }
        x.max(y) + libm::log1p(libm::exp(-(x - y).abs()))
    };
    let mut sums = input.data().to_vec();
    for line in 0..lines.count {
        for index in 1..lines.length {
            let before = sums[lines.place(line, index - 1)];
            let place = lines.place(line, index);
            sums[place] = add(before, sums[place]);
        }
    }
    call.tape.budget.steps(input.data().len().saturating_mul(lines.length))?;
    let (x, shape) = (Arc::clone(&input.tensor.data), input.shape().to_vec());
    let result = call.tape.computed(&[&input], (dtype, shape), sums, |output| {
        let sums = Arc::clone(&output.data);
        Box::new(move |gradient| {
            let mut result = vec![0.0; x.len()];
            for (line, index) in
                (0..lines.count).flat_map(|line| (0..lines.length).map(move |index| (line, index)))
            {
                let place = lines.place(line, index);
                for later in (index..lines.length).map(|later| lines.place(line, later)) {
                    result[place] += gradient[later] * libm::exp(x[place] - sums[later]);
                }
            }
            vec![result]
        })
    })?;
    Ok(result.into())
}

/// The extreme so far and its index, the last among equals.
fn running(call: &mut Call<'_>, wins: fn(f64, f64) -> bool) -> Fallible<Value> {
    let (input, lines) = read(call, call.tensor(0)?.dtype(), 1)?;
    let (values, shape) = (input.data(), input.shape().to_vec());
    let (mut map, mut indices) = (vec![0; values.len()], vec![0.0; values.len()]);
    for line in 0..lines.count {
        let mut best = 0;
        for index in 0..lines.length {
            let place = lines.place(line, index);
            if wins(values[lines.place(line, best)], values[place]) {
                best = index;
            }
            map[place] = lines.place(line, best);
            indices[place] = count(best);
        }
    }
    let values = call.tape.take(&input, shape.clone(), map, 0.0)?;
    let indices = call.tape.constant(Dtype::Int64, shape, indices)?;
    Ok(Value::Sequence(vec![values.into(), indices.into()]))
}

fn diff(call: &mut Call<'_>) -> Fallible<Value> {
    let mut input = call.tensor(0)?;
    let (times, dim) = (call.int_or(1, 1)?, call.dim_or(2, -1, input.rank())?);
    if input.rank() == 0 {
        return Err("diff needs at least one dimension".to_owned());
    }
    for _ in 0..times {
        let length = input.shape()[dim];
        if length == 0 {
            break;
        }
        let part = |call: &mut Call<'_>, start| {
            super::index::narrowed(call, &input, dim, (start, length - 1))
        };
        let (later, earlier) = (part(call, 1)?, part(call, 0)?);
        input = call.two(&SUB, &later, &earlier)?;
    }
    Ok(input.into())
}

/// The dimension that torch takes where none is given.
fn default_dim(call: &Call<'_>) -> Fallible<usize> {
    let rank = call.tensor(0)?.rank();
    call.dim_or(1, if matches!(rank, 0 | 1 | 3) { 0 } else { 1 }, rank)
}

fn softmax(call: &mut Call<'_>) -> Fallible<Value> {
    let dim = default_dim(call)?;
    let dtype = call.dtype(2)?.unwrap_or(call.tensor(0)?.dtype());
    let input = call.tensor(0)?;
    let input = call.tape.cast(&input, dtype)?;
    let lines = Lines::new(input.shape(), dim);
    call.tape.budget.tensor(input.data().len(), 0)?;
    let mut shares = input.data().to_vec();
    for line in 0..lines.count {
        let places = || (0..lines.length).map(|index| lines.place(line, index));
        let greatest = places().map(|i| shares[i]).fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for place in places() {
            shares[place] = libm::exp(shares[place] - greatest);
            sum += shares[place];
        }
        places().for_each(|place| shares[place] /= sum);
    }
    let shape = input.shape().to_vec();
    let result = call.tape.computed(&[&input], (dtype, shape), shares, |output| {
        let y = Arc::clone(&output.data);
        Box::new(move |gradient| {
            let mut result = vec![0.0; y.len()];
            for line in 0..lines.count {
                let places = || (0..lines.length).map(|index| lines.place(line, index));
                let sum: f64 = places().map(|i| gradient[i] * y[i]).sum();
                places().for_each(|i| result[i] = y[i] * (gradient[i] - sum));
            }
            vec![result]
        })
    })?;
    Ok(result.into())
}

fn log_softmax(call: &mut Call<'_>) -> Fallible<Value> {
    let dim = default_dim(call)?;
    let dtype = call.dtype(2)?.unwrap_or(call.tensor(0)?.dtype());
    let input = call.tensor(0)?;
    let input = call.tape.cast(&input, dtype)?;
    let dims: Vec<usize> = if input.rank() == 0 { Vec::new() } else { vec![dim] };
    Ok(log_softmaxed(call, &input, &dims)?.into())
}

pub(super) fn log_softmaxed(call: &mut Call<'_>, input: &Var, dims: &[usize]) -> Fallible<Var> {
    let sum = log_sum_exp(call, input, dims, true)?;
    call.two(&SUB, input, &sum)
}

/// Places of each line's elements in order; a NaN is above all numbers.
fn order(
    call: &mut Call<'_>,
    input: &Var,
    lines: Lines,
    descending: bool,
) -> Fallible<Vec<Vec<usize>>> {
    let steps = usize::try_from(usize::BITS - lines.length.leading_zeros()).unwrap_or(1);
    call.tape.budget.steps(input.data().len().saturating_mul(steps))?;
    let values = input.data();
    let ascending = |x: f64, y: f64| {
        x.partial_cmp(&y).unwrap_or_else(|| match (x.is_nan(), y.is_nan()) {
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => Ordering::Equal,
        })
    };
    let sort = |line: usize| {
        let mut indices: Vec<usize> = (0..lines.length).collect();
        let at = |index: usize| values[lines.place(line, index)];
        indices.sort_by(|x, y| {
            if descending { ascending(at(*y), at(*x)) } else { ascending(at(*x), at(*y)) }
        });
        indices
    };
    Ok((0..lines.count).map(sort).collect())
}

/// The first `keep` of each line in this order: values and indices.
fn pick(
    call: &mut Call<'_>,
    input: &Var,
    (lines, dim): (Lines, usize),
    (order, keep): (&[Vec<usize>], usize),
) -> Fallible<(Var, Var)> {
    let mut shape = input.shape().to_vec();
    if let Some(size) = shape.get_mut(dim) {
        *size = keep;
    }
    let kept = Lines { length: keep, ..lines };
    let (mut map, mut indices) = (vec![0; keep * lines.count], vec![0.0; keep * lines.count]);
    for (line, order) in order.iter().enumerate() {
        for (rank, index) in order.iter().take(keep).enumerate() {
            map[kept.place(line, rank)] = lines.place(line, *index);
            indices[kept.place(line, rank)] = count(*index);
        }
    }
    let values = call.tape.take(input, shape.clone(), map, 0.0)?;
    Ok((values, call.tape.constant(Dtype::Int64, shape, indices)?))
}

fn sorted(call: &mut Call<'_>, dim: usize, descending: usize) -> Fallible<(Var, Var)> {
    let input = call.tensor(0)?;
    let dim = call.dim_or(dim, -1, input.rank())?;
    let descending = call.flag(descending, false)?;
    let lines = Lines::new(input.shape(), dim);
    let order = order(call, &input, lines, descending)?;
    pick(call, &input, (lines, dim), (&order, lines.length))
}

fn topk(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let (dim, largest) = (call.dim_or(2, -1, input.rank())?, call.flag(3, true)?);
    let lines = Lines::new(input.shape(), dim);
    let keep = usize::try_from(call.int(1)?).ok().filter(|keep| *keep <= lines.length);
    let keep = keep.ok_or_else(|| format!("topk of more than the {} elements", lines.length))?;
    if input.rank() == 0 && keep == 0 {
        return Err("topk of none of a scalar".to_owned());
    }
    let order = order(call, &input, lines, largest)?;
    let (values, indices) = pick(call, &input, (lines, dim), (&order, keep))?;
    Ok(Value::Sequence(vec![values.into(), indices.into()]))
}

/// The lower of two in the middle, as torch's.
fn median(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let whole = call.value(1).is_none();
    let input = if whole { call.tape.reshaped(&input, vec![input.data().len()])? } else { input };
    let (dim, keep) = (call.dim_or(1, 0, input.rank())?, call.flag(2, false)?);
    let lines = Lines::new(input.shape(), dim);
    if lines.length == 0 {
        return Err("there is no median of no elements".to_owned());
    }
    let order = order(call, &input, lines, false)?;
    let middle = |order: Vec<usize>| {
        let nan = |index: usize| input.data()[index].is_nan();
        let last = order[order.len() - 1];
        vec![if whole && nan(last) { last } else { order[(order.len() - 1) / 2] }]
    };
    let middle: Vec<Vec<usize>> = order.into_iter().map(middle).collect();
    let (values, indices) = pick(call, &input, (lines, dim), (&middle, 1))?;
    let shape = super::reduce::without(input.shape(), dim, keep);
    let values = call.tape.reshaped(&values, if whole { Vec::new() } else { shape.clone() })?;
    if whole {
        return Ok(values.into());
    }
    let indices = call.tape.reshaped(&indices, shape)?;
    Ok(Value::Sequence(vec![values.into(), indices.into()]))
}
