//! Choosing elements: `x[…]` with everything that may stand between the brackets, and the functions like it.

use super::{Call, Op, op, python};
use crate::{
    Dtype,
    error::Fallible,
    shape::{self, Lines, elements, position, strides, walk},
    tape::Var,
    value::{Value, count, whole},
};

/// `x[…]`
pub(super) const GETITEM: &str = "operator.getitem";

pub(super) const OPS: &[Op] = &[
    op(GETITEM, "input index", getitem),
    op("select", "input dim index", select),
    op("narrow", "input dim start length", narrow),
    op("gather", "input dim index -sparse_grad", gather),
    op("take_along_dim", "input indices dim", |call| {
        call.slots.swap(1, 2);
        gather(call)
    }),
    op("index_select", "input dim index", index_select),
    op("take", "input index", take),
    op("masked_select", "input mask", masked_select),
    op("masked_fill", "input mask value", masked_fill),
    op("nonzero torch.argwhere .argwhere", "input", nonzero),
];

/// The places that a slice of a dimension of `length` means, as Python counts; steps are positive.
pub(super) fn slice(parts: &[Value; 3], length: usize) -> Fallible<Vec<usize>> {
    let part = |value: &Value| -> Fallible<Option<i64>> {
        if value.is_none() { Ok(None) } else { value.to_i64().map(Some) }
    };
    let signed = i64::try_from(length).map_err(|_| "a dimension is too long")?;
    let bound = |index: i64| {
        let index = if index < 0 { index.saturating_add(signed) } else { index };
        usize::try_from(index.clamp(0, signed)).unwrap_or(0)
    };
    let start = part(&parts[0])?.map_or(0, bound);
    let stop = part(&parts[1])?.map_or(length, bound);
    let step = part(&parts[2])?.unwrap_or(1);
    let step = usize::try_from(step).ok().filter(|step| *step > 0);
    let step = step.ok_or("a slice's step must be positive; use flip")?;
    Ok((start..stop.max(start)).step_by(step).collect())
}

/// The elements at these indices of a dimension.
pub(super) fn selected(
    call: &mut Call<'_>,
    input: &Var,
    dim: usize,
    indices: &[usize],
) -> Fallible<Var> {
    let lines = Lines::new(input.shape(), dim);
    let mut shape = input.shape().to_vec();
    if let Some(size) = shape.get_mut(dim) {
        *size = indices.len();
    } else if indices.len() != 1 {
        return Err(format!("{} elements of a scalar", indices.len()));
    }
    let count = elements(&shape);
    call.tape.budget.tensor(count, 1)?;
    let kept = Lines { length: indices.len(), ..lines };
    let mut map = vec![0; count];
    for line in 0..lines.count {
        for (rank, index) in indices.iter().enumerate() {
            map[kept.place(line, rank)] = lines.place(line, *index);
        }
    }
    call.tape.take(input, shape, map, 0.0)
}

/// `length` elements of a dimension from `start` on.
pub(super) fn narrowed(
    call: &mut Call<'_>,
    input: &Var,
    dim: usize,
    (start, length): (usize, usize),
) -> Fallible<Var> {
    let size = input.shape().get(dim).copied().unwrap_or(1);
    if start + length > size {
        return Err(format!("elements {start} to {} of {size}", start + length));
    }
    let indices: Vec<usize> = (start..start + length).collect();
    selected(call, input, dim, &indices)
}

/// What an index does with the next dimensions of a tensor.
enum Part {
    New,
    /// All of it.
    Whole,
    Places(Vec<usize>),
    One(i64),
    /// Places of a dimension, in this shape.
    Each {
        shape: Vec<usize>,
        places: Vec<f64>,
    },
}

fn getitem(call: &mut Call<'_>) -> Fallible<Value> {
    let index = call.value(1).clone();
    if let Value::Sequence(values) = call.value(0) {
        return python::item(values, &index);
    }
    let input = call.tensor(0)?;
    let parts = if let Value::Sequence(parts) = index { parts } else { vec![index] };
    let parts = read(call, &input, &parts)?;
    chosen(call, &input, parts)
}

/// The parts of an index, an ellipsis spelled out and masks made into places.
fn read(call: &mut Call<'_>, input: &Var, index: &[Value]) -> Fallible<Vec<Part>> {
    let takes = |value: &Value| {
        if let Value::Tensor(var) = value
            && var.dtype() == Dtype::Bool
        {
            return var.rank();
        }
        usize::from(!matches!(value, Value::None | Value::Ellipsis))
    };
    let taken: usize = index.iter().map(takes).sum();
    let spare = input.rank().checked_sub(taken);
    let spare = spare.ok_or_else(|| format!("{taken} indices of rank {}", input.rank()))?;
    let mut parts: Vec<Part> = Vec::new();
    let (mut dim, mut ellipsis) = (0, false);
    for value in index {
        if let Value::Ellipsis = value {
            if ellipsis {
                return Err("two ellipses in an index".to_owned());
            }
            ellipsis = true;
            parts.extend((0..spare).map(|_| Part::Whole));
            dim += spare;
        } else if value.is_none() {
            parts.push(Part::New);
        } else if let Value::Slice(bounds) = value {
            parts.push(Part::Places(slice(bounds, input.shape()[dim])?));
            dim += 1;
        } else if let Value::Tensor(var) = value {
            each(call, var, &input.shape()[dim..], &mut parts)?;
            dim += takes(value);
        } else if let Value::Sequence(values) = value {
            let places: Vec<f64> = values.iter().map(Value::to_f64).collect::<Fallible<_>>()?;
            parts.push(Part::Each { shape: vec![places.len()], places });
            dim += 1;
        } else if let Value::Bool(_) = value {
            return Err("a bool cannot be an index".to_owned());
        } else {
            parts.push(Part::One(value.to_i64()?));
            dim += 1;
        }
    }
    if !ellipsis {
        parts.extend((0..spare).map(|_| Part::Whole));
    }
    Ok(parts)
}

/// A tensor as an index: a mask stands for the places where it holds, one list for each of its dimensions.
fn each(call: &mut Call<'_>, var: &Var, sizes: &[usize], parts: &mut Vec<Part>) -> Fallible<()> {
    if var.dtype().is_float() {
        return Err(format!("a tensor of type {} cannot be an index", var.dtype()));
    }
    if var.dtype() != Dtype::Bool {
        parts.push(Part::Each { shape: var.shape().to_vec(), places: var.data().to_vec() });
        return Ok(());
    }
    if var.rank() == 0 || var.shape() != &sizes[..var.rank()] {
        return Err(format!("a mask of shape {:?} for {sizes:?}", var.shape()));
    }
    let places: Vec<usize> = (0..var.data().len()).filter(|i| var.data()[*i] != 0.0).collect();
    call.tape.budget.tensor(places.len(), var.rank())?;
    for (stride, size) in strides(var.shape()).into_iter().zip(var.shape()) {
        let places: Vec<f64> = places.iter().map(|place| count(place / stride % size)).collect();
        parts.push(Part::Each { shape: vec![places.len()], places });
    }
    Ok(())
}

/// The elements of an index: slices and single places first, then the lists, as torch does.
fn chosen(call: &mut Call<'_>, input: &Var, parts: Vec<Part>) -> Fallible<Value> {
    let own = strides(input.shape());
    let (mut dim, mut start) = (0, 0);
    // What each dimension of the result adds to an element's place.
    let mut plain: Vec<Vec<usize>> = Vec::new();
    let mut lists: Vec<(usize, Vec<usize>, Vec<usize>)> = Vec::new();
    let mut apart = false;
    for part in parts {
        if let Part::New = part {
            plain.push(vec![0]);
            continue;
        }
        let (size, stride) = (input.shape()[dim], own[dim]);
        dim += 1;
        match part {
            Part::New => {}
            Part::Whole => plain.push((0..size).map(|place| place * stride).collect()),
            Part::Places(places) => {
                plain.push(places.into_iter().map(|place| place * stride).collect());
            }
            Part::One(index) => {
                let place = position(index, size);
                start += place.ok_or_else(|| outside(index, size))? * stride;
            }
            Part::Each { shape, places } => {
                let place = |index: &f64| {
                    let place = position(whole(*index), size);
                    place.map(|place| place * stride).ok_or_else(|| outside(whole(*index), size))
                };
                let places = places.iter().map(place).collect::<Fallible<Vec<_>>>()?;
                apart |= lists.last().is_some_and(|(at, _, _)| *at != plain.len());
                lists.push((plain.len(), shape, places));
            }
        }
    }
    let at = if apart { 0 } else { lists.first().map_or(0, |(at, _, _)| *at) };
    let (listed, offsets) = listed(call, &lists)?;
    let before = plain.split_at(at).0;
    let after = plain.split_at(at).1;
    let mut shape: Vec<usize> = before.iter().map(Vec::len).collect();
    shape.extend(&listed);
    shape.extend(after.iter().map(Vec::len));
    call.tape.budget.tensor(elements(&shape), 1)?;
    let mut map = vec![start];
    let dimensions = before.iter().chain(std::iter::once(&offsets)).chain(after);
    for offsets in dimensions {
        map = map.iter().flat_map(|base| offsets.iter().map(move |more| base + more)).collect();
    }
    Ok(call.tape.take(input, shape, map, 0.0)?.into())
}

fn outside(index: i64, size: usize) -> String {
    format!("index {index} of a dimension of {size}")
}

/// Lists of places broadcast with one another and added up.
fn listed(
    call: &mut Call<'_>,
    lists: &[(usize, Vec<usize>, Vec<usize>)],
) -> Fallible<(Vec<usize>, Vec<usize>)> {
    let mut shape = Vec::new();
    for (_, own, _) in lists {
        shape = shape::broadcast(&shape, own)?;
    }
    let count = elements(&shape);
    call.tape.budget.tensor(count, 1)?;
    let mut offsets = vec![0; count];
    for (_, own, places) in lists {
        let source = shape::Source::new(own, &shape);
        for (place, offset) in offsets.iter_mut().enumerate() {
            *offset += places[source.at(place)];
        }
    }
    Ok((shape, offsets))
}

fn select(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dim = call.dim_or(1, 0, input.rank())?;
    let size = input.shape().get(dim).copied().ok_or("a scalar has no dimensions")?;
    let place = position(call.int(2)?, size).ok_or_else(|| format!("an index beyond {size}"))?;
    let part = narrowed(call, &input, dim, (place, 1))?;
    let shape = super::reduce::without(input.shape(), dim, false);
    Ok(call.tape.reshaped(&part, shape)?.into())
}

fn narrow(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dim = call.dim_or(1, 0, input.rank())?;
    let size = input.shape().get(dim).copied().ok_or("a scalar has no dimensions")?;
    let start = call.int(2)?;
    let signed = i64::try_from(size).map_err(|_| "a dimension is too long")?;
    let start = usize::try_from(if start < 0 { start.saturating_add(signed) } else { start });
    let (Ok(start), Ok(length)) = (start, usize::try_from(call.int(3)?)) else {
        return Err(format!("narrow beyond the {size} elements"));
    };
    Ok(narrowed(call, &input, dim, (start, length))?.into())
}

/// Whole places of an index tensor, each below `size`.
pub(super) fn places(index: &Var, size: usize) -> Fallible<Vec<usize>> {
    if index.dtype().is_float() || index.dtype() == Dtype::Bool {
        return Err(format!("an index of type {}", index.dtype()));
    }
    let place = |value: &f64| {
        usize::try_from(whole(*value))
            .ok()
            .filter(|place| *place < size)
            .ok_or_else(|| outside(whole(*value), size))
    };
    index.data().iter().map(place).collect()
}

/// For each element of an index tensor the place of the element of `shape` that it means along `dim`.
pub(super) fn along(
    call: &mut Call<'_>,
    shape: &[usize],
    dim: usize,
    index: &Var,
) -> Fallible<Vec<usize>> {
    let fits = index.rank() == shape.len()
        && (0..shape.len()).all(|d| d == dim || index.shape()[d] <= shape[d]);
    if !fits {
        return Err(format!("an index of shape {:?} for {shape:?}", index.shape()));
    }
    call.tape.budget.tensor(index.data().len(), 1)?;
    let mut own = strides(shape);
    let (size, stride) =
        if shape.is_empty() { (1, 1) } else { (shape[dim], std::mem::take(&mut own[dim])) };
    let places = places(index, size)?;
    let bases = walk(index.shape(), &own, 0);
    Ok(bases.iter().zip(places).map(|(base, place)| base + place * stride).collect())
}

fn gather(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, index) = (call.tensor(0)?, call.tensor(2)?);
    let dim = call.dim_or(1, 0, input.rank())?;
    let map = along(call, input.shape(), dim, &index)?;
    Ok(call.tape.take(&input, index.shape().to_vec(), map, 0.0)?.into())
}

fn index_select(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, index) = (call.tensor(0)?, call.tensor(2)?);
    let dim = call.dim_or(1, 0, input.rank())?;
    let indices = places(&index, input.shape().get(dim).copied().unwrap_or(1))?;
    Ok(selected(call, &input, dim, &indices)?.into())
}

fn take(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, index) = (call.tensor(0)?, call.tensor(1)?);
    let map = places(&index, input.data().len())?;
    Ok(call.tape.take(&input, index.shape().to_vec(), map, 0.0)?.into())
}

fn mask(call: &Call<'_>) -> Fallible<Var> {
    let mask = call.tensor(1)?;
    if mask.dtype() == Dtype::Bool {
        Ok(mask)
    } else {
        Err(format!("the mask is of type {}, not bool", mask.dtype()))
    }
}

fn masked_select(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, mask) = (call.tensor(0)?, mask(call)?);
    let shape = shape::broadcast(input.shape(), mask.shape())?;
    let sources = [&input, &mask].map(|var| shape::Source::new(var.shape(), &shape));
    call.tape.budget.tensor(elements(&shape), 2)?;
    let kept = (0..elements(&shape)).filter(|place| mask.data()[sources[1].at(*place)] != 0.0);
    let map: Vec<usize> = kept.map(|place| sources[0].at(place)).collect();
    Ok(call.tape.take(&input, vec![map.len()], map, 0.0)?.into())
}

fn masked_fill(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, mask, value) = (call.tensor(0)?, mask(call)?, call.value(2).clone());
    let fill = call.as_tensor(&value)?;
    if fill.rank() > 0 {
        return Err("masked_fill takes one value, not a tensor of several".to_owned());
    }
    let fill = call.tape.cast(&fill, input.dtype())?;
    Ok(call.choose(&mask, &fill, &input)?.into())
}

fn nonzero(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let places: Vec<usize> = (0..input.data().len()).filter(|i| input.data()[*i] != 0.0).collect();
    let own = strides(input.shape());
    let index = |place: &usize| {
        let place = *place;
        own.iter().zip(input.shape()).map(move |(stride, size)| count(place / stride % size))
    };
    let data: Vec<f64> = places.iter().flat_map(index).collect();
    let shape = vec![places.len(), input.rank()];
    Ok(call.tape.constant(Dtype::Int64, shape, data)?.into())
}
