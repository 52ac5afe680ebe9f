//! Products of matrices, vectors and batches of them.

use std::sync::Arc;

use super::{
    Call, Op,
    elementwise::{ADD, MUL},
    op,
    reduce::{dot, summed},
    shapes::permuted,
};
use crate::{error::Fallible, shape, tape::Var, value::Value};

pub(super) const OPS: &[Op] = &[
    op("matmul mm mv bmm operator.matmul linalg.matmul", "input other", |call| {
        let (left, right) = (call.tensor(0)?, call.tensor(1)?);
        Ok(product(call, &left, &right)?.into())
    }),
    op("dot inner vdot linalg.vecdot", "input other", inner),
    op("outer ger", "input vec2", outer),
    op("addmm addmv", "input mat1 mat2 beta? alpha?", add_product),
    op("torch.einsum", "equation *operands", einsum),
];

/// `torch.matmul`: vectors become matrices and back, batches are broadcast.
fn product(call: &mut Call<'_>, left: &Var, right: &Var) -> Fallible<Var> {
    if left.rank() == 0 || right.rank() == 0 {
        return Err("matmul of a scalar".to_owned());
    }
    let dtype = left.dtype().promote(right.dtype());
    let row = left.rank() == 1;
    let column = right.rank() == 1;
    let left_shape = if row { vec![1, left.shape()[0]] } else { left.shape().to_vec() };
    let right_shape = if column { vec![right.shape()[0], 1] } else { right.shape().to_vec() };
    let (left_batch, left_matrix) = left_shape.split_at(left_shape.len() - 2);
    let (right_batch, right_matrix) = right_shape.split_at(right_shape.len() - 2);
    let ([m, k], [other, n]) =
        ([left_matrix[0], left_matrix[1]], [right_matrix[0], right_matrix[1]]);
    if k != other {
        return Err(format!("shapes {:?} and {:?} do not multiply", left.shape(), right.shape()));
    }
    let batch = shape::broadcast(left_batch, right_batch)?;
    let count = shape::elements(&batch);
    let size = count.saturating_mul(m).saturating_mul(n);
    call.tape.budget.tensor(size, 1)?;
    call.tape.budget.steps(size.saturating_mul(k).saturating_mul(3))?;
    let sources = [shape::Source::new(left_batch, &batch), shape::Source::new(right_batch, &batch)];
    let [x, y] = [&left.tensor.data, &right.tensor.data].map(Arc::clone);
    let mut data = vec![0.0; size];
    for part in 0..count {
        let [at, by] = [sources[0].at(part) * m * k, sources[1].at(part) * k * n];
        for i in 0..m {
            for (j, out) in data[(part * m + i) * n..][..n].iter_mut().enumerate() {
                *out = (0..k).map(|l| x[at + i * k + l] * y[by + l * n + j]).sum();
            }
        }
    }
    let mut shape = batch;
    if !row {
        shape.push(m);
    }
    if !column {
        shape.push(n);
    }
    call.tape.computed(&[left, right], (dtype, shape), data, |_| {
        Box::new(move |gradient| {
            let mut gradients = vec![vec![0.0; x.len()], vec![0.0; y.len()]];
            for part in 0..count {
                let [at, by] = [sources[0].at(part) * m * k, sources[1].at(part) * k * n];
                let places = (0..m * n).flat_map(|place| (0..k).map(move |l| (place, l)));
                for (place, l) in places {
                    let gradient = gradient[part * m * n + place];
                    let (left, right) = (at + place / n * k + l, by + l * n + place % n);
                    gradients[0][left] += gradient * y[right];
                    gradients[1][right] += gradient * x[left];
                }
            }
            gradients
        })
    })
}

fn inner(call: &mut Call<'_>) -> Fallible<Value> {
    let (left, right) = (call.tensor(0)?, call.tensor(1)?);
    let last = left.rank().max(right.rank()).saturating_sub(1);
    if left.shape() != right.shape() {
        return Err(format!("shapes {:?} and {:?} differ", left.shape(), right.shape()));
    }
    let dims: Vec<usize> = if left.rank() == 0 { Vec::new() } else { vec![last] };
    Ok(dot(call, &left, &right, &dims)?.into())
}

fn outer(call: &mut Call<'_>) -> Fallible<Value> {
    let (left, right) = (call.tensor(0)?, call.tensor(1)?);
    if left.rank() != 1 || right.rank() != 1 {
        return Err("outer takes two vectors".to_owned());
    }
    let left = call.tape.reshaped(&left, vec![left.data().len(), 1])?;
    Ok(call.two(&MUL, &left, &right)?.into())
}

fn add_product(call: &mut Call<'_>) -> Fallible<Value> {
    let (mut input, left, right) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
    let mut result = product(call, &left, &right)?;
    for (slot, tensor) in [(3, &mut input), (4, &mut result)] {
        if !call.value(slot).is_none() {
            let factor = call.value(slot).clone();
            *tensor = call.two(&MUL, &*tensor, factor)?;
        }
    }
    Ok(call.two(&ADD, &input, &result)?.into())
}

/// Every operand's dimensions in the order of all letters, multiplied, and summed over those not kept.
fn einsum(call: &mut Call<'_>) -> Fallible<Value> {
    let equation = call.text_or(0, "")?.replace(' ', "");
    let operands = call.tensors(1)?;
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs.to_owned(), output.to_owned()),
        None => {
            let mut letters: Vec<char> = equation.chars().filter(|c| *c != ',').collect();
            letters.sort_unstable();
            let once = |c: &char| equation.matches(*c).count() == 1;
            (equation.clone(), letters.iter().filter(|c| once(c)).collect())
        }
    };
    let terms: Vec<&str> = inputs.split(',').collect();
    let letters = inputs.chars().chain(output.chars()).filter(|c| *c != ',');
    if terms.len() != operands.len() || !letters.clone().all(|c| c.is_ascii_alphabetic()) {
        return Err(format!("the equation {equation:?} for {} operands", operands.len()));
    }
    let mut all: Vec<char> = output.chars().collect();
    if all.iter().any(|c| output.matches(*c).count() > 1 || !inputs.contains(*c)) {
        return Err(format!("the equation {equation:?} has a result that is not clear"));
    }
    for letter in inputs.chars().filter(|c| *c != ',') {
        if !all.contains(&letter) {
            all.push(letter);
        }
    }
    let mut result: Option<Var> = None;
    for (term, operand) in terms.iter().zip(&operands) {
        let aligned = aligned(call, term, operand, &all)?;
        result = Some(match result {
            None => aligned,
            Some(before) => call.two(&MUL, &before, &aligned)?,
        });
    }
    let result = result.ok_or("einsum of no operands")?;
    let dims: Vec<usize> = (output.len()..all.len()).collect();
    let dtype = result.dtype();
    Ok(summed(call, &result, &dims, false, dtype)?.into())
}

/// An operand with a dimension for each of `all`, of size one where it does not have the letter.
fn aligned(call: &mut Call<'_>, term: &str, operand: &Var, all: &[char]) -> Fallible<Var> {
    let own: Vec<char> = term.chars().collect();
    if own.len() != operand.rank() || own.iter().any(|c| term.matches(*c).count() > 1) {
        return Err(format!("{term:?} for an operand of shape {:?}", operand.shape()));
    }
    let place = |letter: &char| own.iter().position(|own| own == letter);
    let order: Vec<usize> = all.iter().filter_map(place).collect();
    let shape = all.iter().map(|c| place(c).map_or(1, |dim| operand.shape()[dim])).collect();
    let operand = permuted(call, operand, &order)?;
    call.tape.reshaped(&operand, shape)
}
