//! The same elements in another arrangement.

use super::{Call, Op, op};
use crate::{
    Dtype,
    error::Fallible,
    shape::{self, dimension, elements, strides, walk},
    tape::{NOWHERE, Var},
    value::Value,
};

pub(super) const OPS: &[Op] = &[
    op("reshape .view .view_as .reshape_as", "input *shape", reshape),
    op("flatten ravel", "input start_dim? end_dim?", flatten),
    op("unflatten", "input dim sizes", unflatten),
    op("squeeze", "input dim?", squeeze),
    op("unsqueeze", "input dim", unsqueeze),
    op("get.T get.mT t", "input", transpose_last),
    op("transpose swapaxes swapdims", "input dim0 dim1", transpose),
    op("permute", "input *dim", permute),
    op("movedim moveaxis", "input source destination", movedim),
    op(".expand broadcast_to torch.broadcast_to", "input *size", expand),
    op(".expand_as", "input other", |call| {
        let (input, other) = (call.tensor(0)?, call.tensor(1)?);
        Ok(expanded(call, &input, other.shape())?.into())
    }),
    op("torch.broadcast_tensors", "*tensors", broadcast_tensors),
    op(".repeat tile", "input *repeats", repeat),
    op("repeat_interleave", "input repeats dim?", repeat_interleave),
    op("flip", "input *dims", flip),
    op("roll", "input shifts dims?", roll),
    op("torch.cat torch.concat torch.concatenate", "tensors dim?", cat),
    op("torch.stack", "tensors dim?", stack),
    op("torch.hstack", "tensors", hstack),
    op("chunk", "input chunks dim?", chunk),
    op("split", "input split_size_or_sections dim?", split),
    op("unbind", "input dim?", unbind),
    op("tril", "input diagonal?", |call| triangle(call, |below| below >= 0)),
    op("triu", "input diagonal?", |call| triangle(call, |below| below <= 0)),
    op("diagonal diag", "input diagonal?", diagonal),
    op("F.pad", "input pad mode? value?", pad),
    op("atleast_1d", "input", |call| at_least(call, 1)),
    op("atleast_2d", "input", |call| at_least(call, 2)),
    op("contiguous clone", "input", |call| Ok(call.tensor(0)?.into())),
    op("detach get.data", "input", |call| Ok(call.tensor(0)?.detached().into())),
    op(".cpu", "input", |call| Ok(call.tensor(0)?.into())),
];

fn reshape(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    if let Value::Sequence(values) = call.value(1)
        && let [Value::Tensor(other)] = values.as_slice()
        && (other.rank() > 0 || other.dtype().is_float())
    {
        let shape = other.shape().to_vec();
        return Ok(with_shape(call, &input, shape)?.into());
    }
    let sizes = call.ints(1)?;
    let shape = inferred(&sizes, input.data().len())?;
    Ok(with_shape(call, &input, shape)?.into())
}

/// Sizes, one of which may be -1: what the others leave.
fn inferred(sizes: &[i64], count: usize) -> Fallible<Vec<usize>> {
    let wrong = || format!("{count} elements do not have the shape {sizes:?}");
    let known = sizes.iter().filter(|size| **size != -1).map(|size| usize::try_from(*size));
    let known = known.collect::<Result<Vec<_>, _>>().map_err(|_| wrong())?;
    let product = elements(&known);
    if sizes.len() - known.len() > 1 || (known.len() < sizes.len() && product == 0) {
        return Err(wrong());
    }
    let size = |size: &i64| usize::try_from(*size).unwrap_or_else(|_| count / product.max(1));
    let shape: Vec<usize> = sizes.iter().map(size).collect();
    if elements(&shape) == count { Ok(shape) } else { Err(wrong()) }
}

fn with_shape(call: &mut Call<'_>, input: &Var, shape: Vec<usize>) -> Fallible<Var> {
    if elements(&shape) != input.data().len() {
        return Err(format!("the shape {:?} does not become {shape:?}", input.shape()));
    }
    call.tape.reshaped(input, shape)
}

fn flatten(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let (start, end) = (call.dim_or(1, 0, input.rank())?, call.dim_or(2, -1, input.rank())?);
    if start > end {
        return Err(format!("flatten from dimension {start} to {end}"));
    }
    let shape = input.shape();
    let mut flat = shape.get(..start).unwrap_or_default().to_vec();
    flat.push(elements(shape.get(start..=end).unwrap_or_default()));
    flat.extend(shape.get(end + 1..).unwrap_or_default());
    Ok(with_shape(call, &input, flat)?.into())
}

fn unflatten(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dim = call.dim_or(1, 0, input.rank())?;
    let mut shape = input.shape().to_vec();
    let size = shape.get(dim).copied().unwrap_or(1);
    let sizes = inferred(&call.ints(2)?, size)?;
    shape.splice(dim..(dim + 1).min(input.rank()), sizes);
    Ok(with_shape(call, &input, shape)?.into())
}

fn squeeze(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dims = call.dims(1, input.rank())?;
    let kept = |(dim, size): (usize, &usize)| (*size != 1 || !dims.contains(&dim)).then_some(*size);
    let shape = input.shape().iter().enumerate().filter_map(kept).collect();
    Ok(call.tape.reshaped(&input, shape)?.into())
}

fn unsqueeze(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dim = call.dim_or(1, 0, input.rank() + 1)?;
    let mut shape = input.shape().to_vec();
    shape.insert(dim, 1);
    Ok(call.tape.reshaped(&input, shape)?.into())
}

/// The dimensions in another order.
pub(super) fn permuted(call: &mut Call<'_>, input: &Var, dims: &[usize]) -> Fallible<Var> {
    let own = strides(input.shape());
    let shape: Vec<usize> = dims.iter().map(|dim| input.shape()[*dim]).collect();
    let strides: Vec<usize> = dims.iter().map(|dim| own[*dim]).collect();
    call.tape.budget.tensor(input.data().len(), 1)?;
    let map = walk(&shape, &strides, 0);
    call.tape.take(input, shape, map, 0.0)
}

fn transpose_last(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    match input.rank() {
        0 | 1 => Ok(input.into()),
        2 => Ok(permuted(call, &input, &[1, 0])?.into()),
        rank => Err(format!("the transpose of a tensor of rank {rank}; use transpose(dim0, dim1)")),
    }
}

fn transpose(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let (left, right) = (call.dim_or(1, 0, input.rank())?, call.dim_or(2, 0, input.rank())?);
    let mut dims: Vec<usize> = (0..input.rank()).collect();
    if !dims.is_empty() {
        dims.swap(left, right);
    }
    Ok(permuted(call, &input, &dims)?.into())
}

fn permute(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let rank = input.rank();
    let dims = call.ints(1)?.into_iter().map(|dim| dimension(dim, rank));
    let dims = dims.collect::<Fallible<Vec<_>>>()?;
    if dims.len() != rank || (0..rank).any(|dim| !dims.contains(&dim)) {
        return Err(format!("permute needs each of the {rank} dimensions once"));
    }
    Ok(permuted(call, &input, &dims)?.into())
}

fn movedim(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let rank = input.rank();
    let (from, to) = (call.dim_or(1, 0, rank)?, call.dim_or(2, 0, rank)?);
    if rank == 0 {
        return Ok(input.into());
    }
    let mut dims: Vec<usize> = (0..rank).filter(|dim| *dim != from).collect();
    dims.insert(to.min(dims.len()), from);
    Ok(permuted(call, &input, &dims)?.into())
}

fn expand(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let sizes = call.ints(1)?;
    let missing = sizes.len().checked_sub(input.rank());
    let missing = missing.ok_or_else(|| format!("rank {} does not shrink", input.rank()))?;
    let mut shape = Vec::with_capacity(sizes.len());
    for (dim, size) in sizes.iter().enumerate() {
        let own = dim.checked_sub(missing).map(|dim| input.shape()[dim]);
        shape.push(match (usize::try_from(*size), own) {
            (Ok(size), _) => size,
            (Err(_), Some(own)) if *size == -1 => own,
            (Err(_), _) => return Err(format!("expand to a size of {size}")),
        });
    }
    Ok(expanded(call, &input, &shape)?.into())
}

fn expanded(call: &mut Call<'_>, input: &Var, shape: &[usize]) -> Fallible<Var> {
    if shape::broadcast(input.shape(), shape)? != shape {
        return Err(format!("the shape {:?} does not expand to {shape:?}", input.shape()));
    }
    let count = elements(shape);
    call.tape.budget.tensor(count, 1)?;
    let source = shape::Source::new(input.shape(), shape);
    let map = (0..count).map(|place| source.at(place)).collect();
    call.tape.take(input, shape.to_vec(), map, 0.0)
}

fn broadcast_tensors(call: &mut Call<'_>) -> Fallible<Value> {
    let tensors = call.tensors(0)?;
    let mut shape = Vec::new();
    for tensor in &tensors {
        shape = shape::broadcast(&shape, tensor.shape())?;
    }
    let all = tensors.iter().map(|tensor| Ok(expanded(call, tensor, &shape)?.into()));
    Ok(Value::Sequence(all.collect::<Fallible<_>>()?))
}

fn repeat(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let mut repeats = call.sizes(1)?;
    while repeats.len() < input.rank() {
        repeats.insert(0, 1);
    }
    let mut shape = vec![1; repeats.len() - input.rank()];
    shape.extend(input.shape());
    let sizes: Vec<usize> =
        shape.iter().zip(&repeats).map(|(size, times)| size.saturating_mul(*times)).collect();
    let count = elements(&sizes);
    call.tape.budget.tensor(count, 1)?;
    let (own, new) = (strides(&shape), strides(&sizes));
    let source = |place: usize| {
        (0..sizes.len()).map(|d| place / new[d] % sizes[d] % shape[d] * own[d]).sum()
    };
    let map = (0..count).map(source).collect();
    Ok(call.tape.take(&input, sizes, map, 0.0)?.into())
}

fn repeat_interleave(call: &mut Call<'_>) -> Fallible<Value> {
    let mut input = call.tensor(0)?;
    let times = usize::try_from(call.int(1)?).map_err(|_| "a negative number of repeats")?;
    if call.value(2).is_none() {
        input = call.tape.reshaped(&input, vec![input.data().len()])?;
    }
    let dim = call.dim_or(2, 0, input.rank())?;
    let length = input.shape().get(dim).copied().unwrap_or(1);
    call.tape.budget.tensor(length.saturating_mul(times), 1)?;
    let indices: Vec<usize> = (0..length * times).map(|place| place / times).collect();
    Ok(super::index::selected(call, &input, dim, &indices)?.into())
}

fn flip(call: &mut Call<'_>) -> Fallible<Value> {
    let mut input = call.tensor(0)?;
    for dim in call.ints(1)? {
        let dim = dimension(dim, input.rank())?;
        if let Some(length) = input.shape().get(dim) {
            let indices: Vec<usize> = (0..*length).rev().collect();
            input = super::index::selected(call, &input, dim, &indices)?;
        }
    }
    Ok(input.into())
}

fn roll(call: &mut Call<'_>) -> Fallible<Value> {
    let original = call.tensor(0)?;
    let shifts = call.ints(1)?;
    let flat = call.value(2).is_none();
    let mut input = original.clone();
    if flat {
        input = call.tape.reshaped(&input, vec![original.data().len()])?;
    }
    let dims = if flat { vec![0] } else { call.ints(2)? };
    if dims.len() != shifts.len() {
        return Err(format!("{} shifts for {} dimensions", shifts.len(), dims.len()));
    }
    for (shift, dim) in shifts.iter().zip(dims) {
        let dim = dimension(dim, input.rank())?;
        let Some(size) = input.shape().get(dim).copied() else { continue };
        let length = size.max(1);
        let signed = i64::try_from(length).map_err(|_| "a dimension is too long")?;
        let back = usize::try_from(shift.rem_euclid(signed)).map_err(|_| "a shift is too long")?;
        let indices: Vec<usize> = (0..size).map(|place| (place + length - back) % length).collect();
        input = super::index::selected(call, &input, dim, &indices)?;
    }
    Ok(call.tape.reshaped(&input, original.shape().to_vec())?.into())
}

fn cat(call: &mut Call<'_>) -> Fallible<Value> {
    let tensors = call.tensors(0)?;
    let rank = tensors.first().ok_or("cat of no tensors")?.rank();
    let dim = call.dim_or(1, 0, rank)?;
    Ok(joined(call, &tensors, dim)?.into())
}

/// Tensors one after the other along a dimension.
pub(super) fn joined(call: &mut Call<'_>, tensors: &[Var], dim: usize) -> Fallible<Var> {
    let first = tensors.first().ok_or("a list of no tensors")?;
    let (mut shape, mut dtype) = (first.shape().to_vec(), first.dtype());
    if dim >= shape.len() {
        return Err("scalars cannot be joined; stack them".to_owned());
    }
    shape[dim] = 0;
    for tensor in tensors {
        let mut other = tensor.shape().to_vec();
        let length = other.get(dim).copied().unwrap_or(0);
        if let Some(size) = other.get_mut(dim) {
            *size = shape[dim];
        }
        if other != shape {
            return Err(format!("shapes {:?} and {:?} do not join", first.shape(), tensor.shape()));
        }
        shape[dim] += length;
        dtype = dtype.promote(tensor.dtype());
    }
    call.tape.budget.tensor(elements(&shape), 1)?;
    let inner = elements(&shape[dim + 1..]);
    let outer = elements(&shape[..dim]);
    let rows: Vec<usize> = tensors.iter().map(|tensor| tensor.shape()[dim] * inner).collect();
    let mut data = Vec::with_capacity(elements(&shape));
    for block in 0..outer {
        for (tensor, row) in tensors.iter().zip(&rows) {
            data.extend_from_slice(&tensor.data()[block * row..(block + 1) * row]);
        }
    }
    let parents: Vec<&Var> = tensors.iter().collect();
    call.tape.computed(&parents, (dtype, shape), data, |_| {
        Box::new(move |gradient| {
            let mut gradients: Vec<Vec<f64>> = rows.iter().map(|_| Vec::new()).collect();
            let mut rest = gradient;
            for _ in 0..outer {
                for (gradient, row) in gradients.iter_mut().zip(&rows) {
                    let (own, after) = rest.split_at(*row);
                    gradient.extend_from_slice(own);
                    rest = after;
                }
            }
            gradients
        })
    })
}

fn stack(call: &mut Call<'_>) -> Fallible<Value> {
    let tensors = call.tensors(0)?;
    let rank = tensors.first().ok_or("stack of no tensors")?.rank();
    let dim = call.dim_or(1, 0, rank + 1)?;
    let mut rows = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let mut shape = tensor.shape().to_vec();
        shape.insert(dim.min(shape.len()), 1);
        rows.push(call.tape.reshaped(tensor, shape)?);
    }
    Ok(joined(call, &rows, dim)?.into())
}

fn hstack(call: &mut Call<'_>) -> Fallible<Value> {
    let mut tensors = call.tensors(0)?;
    for tensor in &mut tensors {
        if tensor.rank() == 0 {
            *tensor = call.tape.reshaped(tensor, vec![1])?;
        }
    }
    let rank = tensors.first().ok_or("hstack of no tensors")?.rank();
    Ok(joined(call, &tensors, usize::from(rank > 1))?.into())
}

/// Parts of these lengths along a dimension.
fn parts(call: &mut Call<'_>, dim: usize, lengths: &[usize]) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let mut start = 0;
    let mut parts = Vec::with_capacity(lengths.len());
    for length in lengths {
        parts.push(super::index::narrowed(call, &input, dim, (start, *length))?.into());
        start += length;
    }
    Ok(Value::Sequence(parts))
}

/// The dimension of a slot and its size; scalars have none.
fn sized(call: &Call<'_>, slot: usize) -> Fallible<(usize, usize)> {
    let input = call.tensor(0)?;
    let dim = call.dim_or(slot, 0, input.rank())?;
    let size = input.shape().get(dim).ok_or("a scalar has no dimensions")?;
    Ok((dim, *size))
}

fn equal_parts(total: usize, length: usize) -> Vec<usize> {
    let length = length.max(1);
    let count = total.div_ceil(length).max(1);
    (0..count).map(|part| length.min(total - part * length)).collect()
}

fn chunk(call: &mut Call<'_>) -> Fallible<Value> {
    let (dim, size) = sized(call, 2)?;
    let chunks = usize::try_from(call.int(1)?).ok().filter(|chunks| *chunks > 0);
    let chunks = chunks.ok_or("chunks must be at least 1")?;
    parts(call, dim, &equal_parts(size, size.div_ceil(chunks)))
}

fn split(call: &mut Call<'_>) -> Fallible<Value> {
    let (dim, size) = sized(call, 2)?;
    let lengths = call.sizes(1)?;
    if matches!(call.value(1), Value::Sequence(_)) {
        if lengths.iter().sum::<usize>() != size {
            return Err(format!("the lengths {lengths:?} do not add up to {size}"));
        }
        return parts(call, dim, &lengths);
    }
    parts(call, dim, &equal_parts(size, lengths.first().copied().unwrap_or(size)))
}

fn unbind(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let (dim, size) = sized(call, 1)?;
    let shape = super::reduce::without(input.shape(), dim, false);
    let mut parts = Vec::with_capacity(size);
    for index in 0..size {
        let part = super::index::narrowed(call, &input, dim, (index, 1))?;
        parts.push(call.tape.reshaped(&part, shape.clone())?.into());
    }
    Ok(Value::Sequence(parts))
}

/// Keeps where `kept` holds of `row + diagonal - column`.
fn triangle(call: &mut Call<'_>, kept: fn(i64) -> bool) -> Fallible<Value> {
    let (input, diagonal) = (call.tensor(0)?, call.int_or(1, 0)?);
    let [.., rows, columns] = *input.shape() else {
        return Err("a triangle needs at least two dimensions".to_owned());
    };
    call.tape.budget.tensor(input.data().len(), 1)?;
    let signed = |place: usize| i64::try_from(place).unwrap_or(i64::MAX);
    let source = |place: usize| {
        let (row, column) = (place / columns % rows, place % columns);
        let below = signed(row).saturating_add(diagonal).saturating_sub(signed(column));
        if kept(below) { place } else { NOWHERE }
    };
    let map = (0..input.data().len()).map(source).collect();
    Ok(call.tape.take(&input, input.shape().to_vec(), map, 0.0)?.into())
}

fn diagonal(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, offset) = (call.tensor(0)?, call.int_or(1, 0)?);
    let shift = usize::try_from(offset.unsigned_abs()).map_err(|_| "the diagonal is too far")?;
    if let [length] = *input.shape() {
        let size = length + shift;
        call.tape.budget.tensor(size.saturating_mul(size), 1)?;
        let mut map = vec![NOWHERE; size * size];
        for place in 0..length {
            let (row, column) =
                if offset >= 0 { (place, place + shift) } else { (place + shift, place) };
            map[row * size + column] = place;
        }
        return Ok(call.tape.take(&input, vec![size, size], map, 0.0)?.into());
    }
    let [rows, columns] = *input.shape() else {
        return Err("the diagonal of a tensor that is neither a vector nor a matrix".to_owned());
    };
    let (row, column) = if offset >= 0 { (0, shift) } else { (shift, 0) };
    let length = rows.saturating_sub(row).min(columns.saturating_sub(column));
    let map = (0..length).map(|i| (row + i) * columns + column + i).collect();
    Ok(call.tape.take(&input, vec![length], map, 0.0)?.into())
}

/// Constant padding; pairs of `(before, after)` from the last dimension backwards.
fn pad(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, pads, fill) = (call.tensor(0)?, call.ints(1)?, call.float_or(3, 0.0)?);
    if call.text_or(2, "constant")? != "constant" {
        return Err("of the padding modes only \"constant\" is supported".to_owned());
    }
    if pads.len() % 2 != 0 || pads.len() / 2 > input.rank() {
        return Err(format!("pads {pads:?} of a tensor of rank {}", input.rank()));
    }
    let signed =
        |size: usize| i64::try_from(size).map_err(|_| "a dimension is too long".to_owned());
    let (mut shape, mut before) = (input.shape().to_vec(), vec![0; input.rank()]);
    for (pair, dim) in pads.chunks(2).zip((0..input.rank()).rev()) {
        let size = signed(shape[dim])?.saturating_add(pair[0]).saturating_add(pair[1]);
        shape[dim] = usize::try_from(size).map_err(|_| format!("pads {pads:?} leave nothing"))?;
        before[dim] = pair[0];
    }
    call.tape.budget.tensor(elements(&shape), 1)?;
    let (own, new) = (strides(input.shape()), strides(&shape));
    let source = |place: usize| {
        (0..shape.len()).try_fold(0, |sum, dim| {
            let index = signed(place / new[dim] % shape[dim]).ok()? - before[dim];
            let index = usize::try_from(index).ok().filter(|i| *i < input.shape()[dim])?;
            Some(sum + index * own[dim])
        })
    };
    let map = (0..elements(&shape)).map(|place| source(place).unwrap_or(NOWHERE)).collect();
    let fill = if input.dtype() == Dtype::Bool { f64::from(fill != 0.0) } else { fill };
    Ok(call.tape.take(&input, shape, map, fill)?.into())
}

fn at_least(call: &mut Call<'_>, rank: usize) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let mut shape = vec![1; rank.saturating_sub(input.rank())];
    shape.extend(input.shape());
    Ok(call.tape.reshaped(&input, shape)?.into())
}
