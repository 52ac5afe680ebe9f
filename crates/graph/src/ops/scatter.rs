//! Putting elements into a tensor at chosen places; the result is a new tensor.

use super::{
    Call, Op,
    index::{along, places},
    op,
};
use crate::{
    error::Fallible,
    shape::{elements, strides, walk},
    tape::Var,
    value::Value,
};

pub(super) const OPS: &[Op] = &[
    op("scatter", "input dim index src? value? -reduce", |call| scatter(call, false)),
    op("scatter_add", "input dim index src", |call| scatter(call, true)),
    op("index_add", "input dim index source alpha?", index_add),
    op("index_fill", "input dim index value", index_fill),
];

/// The input with other elements at the places of `map`: added, or in place of what is there.
fn put(
    call: &mut Call<'_>,
    input: &Var,
    source: &Var,
    (map, add): (Vec<usize>, bool),
) -> Fallible<Var> {
    let mut data = input.data().to_vec();
    for (value, place) in source.data().iter().zip(&map) {
        data[*place] = if add { data[*place] + value } else { *value };
    }
    let kind = (input.dtype(), input.shape().to_vec());
    call.tape.computed(&[input, source], kind, data, |_| {
        Box::new(move |gradient| {
            let mut kept = gradient.to_vec();
            if !add {
                map.iter().for_each(|place| kept[*place] = 0.0);
            }
            vec![kept, map.iter().map(|place| gradient[*place]).collect()]
        })
    })
}

/// The part of `source` that an index of this shape uses; a number stands for as many of itself.
fn used(call: &mut Call<'_>, source: &Value, index: &Var, like: &Var) -> Fallible<Var> {
    let source = call.as_tensor(source)?;
    let map = if source.rank() == 0 {
        vec![0; index.data().len()]
    } else {
        let fits = source.rank() == index.rank()
            && index.shape().iter().zip(source.shape()).all(|(index, source)| index <= source);
        if !fits {
            return Err(format!(
                "{:?} elements for an index of {:?}",
                source.shape(),
                index.shape()
            ));
        }
        walk(index.shape(), &strides(source.shape()), 0)
    };
    let used = call.tape.take(&source, index.shape().to_vec(), map, 0.0)?;
    call.tape.cast(&used, like.dtype())
}

fn scatter(call: &mut Call<'_>, add: bool) -> Fallible<Value> {
    let (input, index) = (call.tensor(0)?, call.tensor(2)?);
    let dim = call.dim_or(1, 0, input.rank())?;
    let source = if call.value(3).is_none() { call.value(4) } else { call.value(3) }.clone();
    let map = along(call, input.shape(), dim, &index)?;
    let source = used(call, &source, &index, &input)?;
    Ok(put(call, &input, &source, (map, add))?.into())
}

/// The places of whole slices of a tensor, slice after slice in the layout of `shape`.
fn slices(call: &mut Call<'_>, input: &Var, dim: usize) -> Fallible<(Vec<usize>, Vec<usize>)> {
    let index = call.tensor(2)?;
    let size = input.shape().get(dim).copied().ok_or("a scalar has no dimensions")?;
    let indices = places(&index, size)?;
    let mut shape = input.shape().to_vec();
    shape[dim] = indices.len();
    call.tape.budget.tensor(elements(&shape), 1)?;
    let mut own = strides(input.shape());
    let stride = std::mem::take(&mut own[dim]);
    let within = strides(&shape)[dim];
    let bases = walk(&shape, &own, 0);
    let place =
        |(at, base): (usize, &usize)| base + indices[at / within % indices.len().max(1)] * stride;
    Ok((bases.iter().enumerate().map(place).collect(), shape))
}

fn index_add(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, mut source) = (call.tensor(0)?, call.tensor(3)?);
    let dim = call.dim_or(1, 0, input.rank())?;
    let (map, shape) = slices(call, &input, dim)?;
    if source.shape() != shape {
        return Err(format!("a source of shape {:?} where {shape:?} goes", source.shape()));
    }
    if !call.value(4).is_none() {
        let alpha = call.value(4).clone();
        source = call.two(&super::elementwise::MUL, &source, alpha)?;
    }
    Ok(put(call, &input, &source, (map, true))?.into())
}

fn index_fill(call: &mut Call<'_>) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dim = call.dim_or(1, 0, input.rank())?;
    let (map, shape) = slices(call, &input, dim)?;
    let value = call.value(3).clone();
    let value = call.as_tensor(&value)?;
    if value.rank() > 0 {
        return Err("index_fill takes one value".to_owned());
    }
    let value = call.tape.cast(&value, input.dtype())?;
    let filled = call.tape.take(&value, shape, vec![0; map.len()], 0.0)?;
    Ok(put(call, &input, &filled, (map, false))?.into())
}
