//! New tensors, and tensors of another type.

use super::{Call, Op, op};
use crate::{
    Dtype,
    error::Fallible,
    shape::elements,
    value::{Number, Value, count},
};

pub(super) const OPS: &[Op] = &[
    op("zeros_like", "input dtype?", |call| like(call, 0.0)),
    op("ones_like", "input dtype?", |call| like(call, 1.0)),
    op("full_like", "input fill_value dtype?", |call| {
        let value = call.float_or(1, 0.0)?;
        call.slots.remove(1);
        like(call, value)
    }),
    op(".new_zeros", "input *size", |call| new(call, 0.0)),
    op(".new_ones", "input *size", |call| new(call, 1.0)),
    op(".new_full", "input size fill_value", |call| {
        let value = call.float_or(2, 0.0)?;
        new(call, value)
    }),
    op(".new_tensor", "input data", |call| tensor(call, 1, call.tensor(0)?.dtype())),
    op("torch.zeros", "*size dtype?", |call| filled(call, &Value::Float(0.0), 1)),
    op("torch.ones", "*size dtype?", |call| filled(call, &Value::Float(1.0), 1)),
    op("torch.full", "size fill_value dtype?", |call| {
        let value = call.value(1).clone();
        filled(call, &value, 2)
    }),
    op("torch.tensor torch.as_tensor torch.scalar_tensor", "data dtype?", |call| {
        let whole = |value: &Value| matches!(value.number(), Some(Number::Int(_)));
        let dtype = if whole(call.value(0)) { Dtype::Int64 } else { Dtype::Float32 };
        let dtype = call.dtype(1)?.unwrap_or(dtype);
        tensor(call, 0, dtype)
    }),
    op("torch.arange", "start end? step? dtype?", arange),
    op("torch.linspace", "start end steps dtype?", linspace),
    op("torch.eye", "n m? dtype?", eye),
    op(".float", "input", |call| cast(call, Dtype::Float32)),
    op(".double", "input", |call| cast(call, Dtype::Float64)),
    op(".half", "input", |call| cast(call, Dtype::Float16)),
    op(".bfloat16", "input", |call| cast(call, Dtype::Bfloat16)),
    op(".bool", "input", |call| cast(call, Dtype::Bool)),
    op(".byte", "input", |call| cast(call, Dtype::Uint8)),
    op(".short", "input", |call| cast(call, Dtype::Int16)),
    op(".int", "input", |call| cast(call, Dtype::Int32)),
    op(".long", "input", |call| cast(call, Dtype::Int64)),
    op(".type_as", "input other", |call| cast(call, call.tensor(1)?.dtype())),
    op(".to .type", "input device? dtype? other? copy?", to),
    op("F.one_hot", "tensor num_classes?", one_hot),
];

fn like(call: &mut Call<'_>, value: f64) -> Fallible<Value> {
    let input = call.tensor(0)?;
    let dtype = call.dtype(1)?.unwrap_or_else(|| input.dtype());
    let data = vec![value; input.data().len()];
    Ok(call.tape.constant(dtype, input.shape().to_vec(), data)?.into())
}

/// Asks for the memory before it is there.
fn fill(call: &mut Call<'_>, (dtype, shape): (Dtype, Vec<usize>), value: f64) -> Fallible<Value> {
    let count = elements(&shape);
    call.tape.budget.tensor(count, 0)?;
    Ok(call.tape.constant(dtype, shape, vec![value; count])?.into())
}

fn new(call: &mut Call<'_>, value: f64) -> Fallible<Value> {
    let (dtype, shape) = (call.tensor(0)?.dtype(), call.sizes(1)?);
    fill(call, (dtype, shape), value)
}

fn filled(call: &mut Call<'_>, value: &Value, dtype: usize) -> Fallible<Value> {
    let own = if matches!(value, Value::Bool(_)) {
        Dtype::Bool
    } else if matches!(value.number(), Some(Number::Int(_))) {
        Dtype::Int64
    } else {
        Dtype::Float32
    };
    let (dtype, shape) = (call.dtype(dtype)?.unwrap_or(own), call.sizes(0)?);
    fill(call, (dtype, shape), value.to_f64()?)
}

/// Numbers in lists as a tensor; a tensor's values without its gradient.
fn tensor(call: &mut Call<'_>, slot: usize, dtype: Dtype) -> Fallible<Value> {
    if let Value::Tensor(var) = call.value(slot) {
        let var = var.detached();
        return Ok(call.tape.cast(&var, dtype)?.into());
    }
    let mut data = Vec::new();
    let shape = nested(call.value(slot), &mut data)?;
    Ok(call.tape.constant(dtype, shape, data)?.into())
}

fn nested(value: &Value, data: &mut Vec<f64>) -> Fallible<Vec<usize>> {
    let Value::Sequence(values) = value else {
        data.push(value.to_f64()?);
        return Ok(Vec::new());
    };
    let mut inner: Option<Vec<usize>> = None;
    for value in values {
        let shape = nested(value, data)?;
        if inner.get_or_insert_with(|| shape.clone()) != &shape {
            return Err("rows of different lengths".to_owned());
        }
    }
    let mut shape = vec![values.len()];
    shape.extend(inner.unwrap_or_default());
    Ok(shape)
}

fn arange(call: &mut Call<'_>) -> Fallible<Value> {
    let whole = |slot: usize| {
        let value = call.value(slot);
        value.is_none() || matches!(value.number(), Some(Number::Int(_)))
    };
    let dtype = if (0..3).all(whole) { Dtype::Int64 } else { Dtype::Float32 };
    let dtype = call.dtype(3)?.unwrap_or(dtype);
    let (start, end) = if call.value(1).is_none() {
        (0.0, call.float_or(0, 0.0)?)
    } else {
        (call.float_or(0, 0.0)?, call.float_or(1, 0.0)?)
    };
    let step = call.float_or(2, 1.0)?;
    let steps = ((end - start) / step).ceil();
    if !steps.is_finite() || steps < 0.0 {
        return Err(format!("a range from {start} to {end} by {step}"));
    }
    let steps = usize::try_from(crate::value::whole(steps)).map_err(|_| "a range is too long")?;
    call.tape.budget.tensor(steps, 0)?;
    let data = (0..steps).map(|place| start + count(place) * step).collect();
    Ok(call.tape.constant(dtype, vec![steps], data)?.into())
}

fn linspace(call: &mut Call<'_>) -> Fallible<Value> {
    let (start, end) = (call.float_or(0, 0.0)?, call.float_or(1, 0.0)?);
    let steps = usize::try_from(call.int(2)?).map_err(|_| "a negative number of steps")?;
    let dtype = call.dtype(3)?.unwrap_or(Dtype::Float32);
    call.tape.budget.tensor(steps, 0)?;
    let step = (end - start) / count(steps.saturating_sub(1).max(1));
    let data = (0..steps).map(|place| start + count(place) * step).collect();
    Ok(call.tape.constant(dtype, vec![steps], data)?.into())
}

fn eye(call: &mut Call<'_>) -> Fallible<Value> {
    let size = |size: i64| usize::try_from(size).map_err(|_| format!("a size of {size}"));
    let rows = size(call.int(0)?)?;
    let columns = if call.value(1).is_none() { rows } else { size(call.int(1)?)? };
    let dtype = call.dtype(2)?.unwrap_or(Dtype::Float32);
    let count = rows.saturating_mul(columns);
    call.tape.budget.tensor(count, 0)?;
    let data = (0..count).map(|i| f64::from(u8::from(i / columns == i % columns))).collect();
    Ok(call.tape.constant(dtype, vec![rows, columns], data)?.into())
}

fn cast(call: &mut Call<'_>, dtype: Dtype) -> Fallible<Value> {
    let input = call.tensor(0)?;
    Ok(call.tape.cast(&input, dtype)?.into())
}

/// `to(dtype)`, `to(other)`, `to(device)`, `to(device, dtype)`.
fn to(call: &mut Call<'_>) -> Fallible<Value> {
    let mut dtype = None;
    for slot in 1..4 {
        if let Value::Dtype(wanted) = call.value(slot) {
            dtype = Some(*wanted);
        } else if let Value::Tensor(other) = call.value(slot) {
            dtype = Some(other.dtype());
        } else if matches!(call.value(slot), Value::Text(text) if !text.starts_with("cpu")) {
            return Err("a loss runs on the CPU's values; leave the device out".to_owned());
        }
    }
    let input = call.tensor(0)?;
    Ok(call.tape.cast(&input, dtype.unwrap_or_else(|| input.dtype()))?.into())
}

fn one_hot(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, classes) = (call.tensor(0)?, call.int_or(1, -1)?);
    let greatest = input.data().iter().copied().fold(-1.0, f64::max);
    let classes =
        if classes < 0 { crate::value::whole(greatest).saturating_add(1) } else { classes };
    let classes = usize::try_from(classes).map_err(|_| "a negative number of classes")?;
    let places = super::index::places(&input, classes)?;
    call.tape.budget.tensor(places.len().saturating_mul(classes), 0)?;
    let mut data = vec![0.0; places.len() * classes];
    for (row, place) in places.iter().enumerate() {
        data[row * classes + place] = 1.0;
    }
    let mut shape = input.shape().to_vec();
    shape.push(classes);
    Ok(call.tape.constant(Dtype::Int64, shape, data)?.into())
}
