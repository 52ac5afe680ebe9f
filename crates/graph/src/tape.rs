//! What was computed, in order, and how a gradient goes back through it.

use std::sync::Arc;

use crate::{
    Dtype, Tensor,
    error::Fallible,
    limits::{Budget, Limits},
    shape::{self, Source},
    tensor,
};

/// A tensor during an evaluation; one that the gradient goes through has a place on the tape.
#[derive(Clone, Debug)]
pub(crate) struct Var {
    pub(crate) tensor: Tensor,
    place: Option<usize>,
}

/// Gives each parent's gradient, in the parent's layout, from the result's.
type Backward = Box<dyn Fn(&[f64]) -> Vec<Vec<f64>>>;

struct Entry {
    dtype: Dtype,
    /// Places of the parents, in the order of what `backward` gives.
    parents: Vec<Option<usize>>,
    /// None for a leaf.
    backward: Option<Backward>,
}

/// The tape of one evaluation.
pub(crate) struct Tape {
    entries: Vec<Entry>,
    pub(crate) budget: Budget,
}

/// A function of two numbers.
pub(crate) type Function = fn(f64, f64) -> f64;
/// Its partial derivatives, from both arguments and the result.
pub(crate) type Partials = fn(f64, f64, f64) -> (f64, f64);

/// In an index map: an element that comes from nowhere.
pub(crate) const NOWHERE: usize = usize::MAX;

impl Var {
    pub(crate) fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    pub(crate) fn data(&self) -> &[f64] {
        &self.tensor.data
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.tensor.dtype
    }

    pub(crate) fn rank(&self) -> usize {
        self.tensor.shape.len()
    }

    pub(crate) fn has_gradient(&self) -> bool {
        self.place.is_some()
    }

    /// The same values, through which no gradient goes.
    pub(crate) fn detached(&self) -> Self {
        Self { tensor: self.tensor.clone(), place: None }
    }
}

impl Tape {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { entries: Vec::new(), budget: Budget::new(limits) }
    }

    /// A tensor with respect to which the gradient is wanted.
    pub(crate) fn leaf(&mut self, tensor: Tensor) -> Fallible<Var> {
        self.budget.tensor(tensor.data.len(), 2)?;
        let entry = Entry { dtype: tensor.dtype, parents: Vec::new(), backward: None };
        self.entries.push(entry);
        Ok(Var { tensor, place: Some(self.entries.len() - 1) })
    }

    /// A tensor that no gradient goes through; its elements are rounded to `dtype`.
    pub(crate) fn constant(
        &mut self,
        dtype: Dtype,
        shape: Vec<usize>,
        mut data: Vec<f64>,
    ) -> Fallible<Var> {
        debug_assert_eq!(shape::elements(&shape), data.len(), "{shape:?}");
        self.budget.tensor(data.len(), 1)?;
        tensor::round(dtype, &mut data);
        Ok(Var { tensor: Tensor { dtype, shape, data: Arc::new(data) }, place: None })
    }

    /// A tensor that was computed from others: `backward` is kept if one of them carries a gradient.
    pub(crate) fn computed(
        &mut self,
        parents: &[&Var],
        (dtype, shape): (Dtype, Vec<usize>),
        data: Vec<f64>,
        backward: impl FnOnce(&Tensor) -> Backward,
    ) -> Fallible<Var> {
        let mut var = self.constant(dtype, shape, data)?;
        if dtype.is_float() && parents.iter().any(|parent| parent.has_gradient()) {
            self.budget.tensor(var.data().len(), 2)?;
            let parents = parents.iter().map(|parent| parent.place).collect();
            let backward = Some(backward(&var.tensor));
            self.entries.push(Entry { dtype, parents, backward });
            var.place = Some(self.entries.len() - 1);
        }
        Ok(var)
    }

    /// `f` of every element; `derivative` is given argument and result.
    pub(crate) fn unary(
        &mut self,
        input: &Var,
        dtype: Dtype,
        f: impl Fn(f64) -> f64,
        derivative: impl Fn(f64, f64) -> f64 + 'static,
    ) -> Fallible<Var> {
        self.budget.tensor(input.data().len(), 0)?;
        let data = input.data().iter().map(|x| f(dtype.round(*x))).collect();
        let x = Arc::clone(&input.tensor.data);
        self.computed(&[input], (dtype, input.shape().to_vec()), data, |output| {
            let y = Arc::clone(&output.data);
            Box::new(move |gradient| {
                let one = |i: usize| gradient[i] * derivative(x[i], y[i]);
                vec![(0..x.len()).map(one).collect()]
            })
        })
    }

    /// `f` of every pair of elements, computed in the type `dtype`.
    pub(crate) fn binary(
        &mut self,
        (left, right): (&Var, &Var),
        dtype: Dtype,
        f: Function,
        partials: Partials,
    ) -> Fallible<Var> {
        let shape = shape::broadcast(left.shape(), right.shape())?;
        let count = shape::elements(&shape);
        self.budget.tensor(count, 2)?;
        let sources = [Source::new(left.shape(), &shape), Source::new(right.shape(), &shape)];
        let [x, y] = [cast(dtype, left), cast(dtype, right)];
        let data = (0..count).map(|i| f(x[sources[0].at(i)], y[sources[1].at(i)])).collect();
        self.computed(&[left, right], (dtype, shape), data, |output| {
            let z = Arc::clone(&output.data);
            Box::new(move |gradient| {
                let mut gradients = vec![vec![0.0; x.len()], vec![0.0; y.len()]];
                for (i, gradient) in gradient.iter().enumerate() {
                    let [from, to] = [sources[0].at(i), sources[1].at(i)];
                    let (left, right) = partials(x[from], y[to], z[i]);
                    gradients[0][from] += gradient * left;
                    gradients[1][to] += gradient * right;
                }
                gradients
            })
        })
    }

    /// `f` of every pair of elements, as a tensor of `dtype` that carries no gradient; the elements are
    /// compared in the type `operands`.
    pub(crate) fn pairs(
        &mut self,
        (left, right): (&Var, &Var),
        (operands, dtype): (Dtype, Dtype),
        f: Function,
    ) -> Fallible<Var> {
        let shape = shape::broadcast(left.shape(), right.shape())?;
        let count = shape::elements(&shape);
        self.budget.tensor(count, 2)?;
        let sources = [Source::new(left.shape(), &shape), Source::new(right.shape(), &shape)];
        let [x, y] = [cast(operands, left), cast(operands, right)];
        let data = (0..count).map(|i| f(x[sources[0].at(i)], y[sources[1].at(i)])).collect();
        self.constant(dtype, shape, data)
    }

    /// The elements of `input` at the places of `map`, `fill` where it says [`NOWHERE`].
    pub(crate) fn take(
        &mut self,
        input: &Var,
        shape: Vec<usize>,
        map: Vec<usize>,
        fill: f64,
    ) -> Fallible<Var> {
        self.budget.tensor(map.len(), 1)?;
        let values = input.data();
        let data = map.iter().map(|&i| if i == NOWHERE { fill } else { values[i] }).collect();
        let count = values.len();
        self.computed(&[input], (input.dtype(), shape), data, |_| {
            Box::new(move |gradient| {
                let mut into = vec![0.0; count];
                for (place, gradient) in map.iter().zip(gradient).filter(|(i, _)| **i != NOWHERE) {
                    into[*place] += gradient;
                }
                vec![into]
            })
        })
    }

    /// The same elements in another shape.
    pub(crate) fn reshaped(&mut self, input: &Var, shape: Vec<usize>) -> Fallible<Var> {
        debug_assert_eq!(shape::elements(&shape), input.data().len(), "{shape:?}");
        let data = input.data().to_vec();
        self.computed(&[input], (input.dtype(), shape), data, |_| {
            Box::new(|gradient| vec![gradient.to_vec()])
        })
    }

    /// The same elements rounded to another type.
    pub(crate) fn cast(&mut self, input: &Var, dtype: Dtype) -> Fallible<Var> {
        if input.dtype() == dtype {
            return Ok(input.clone());
        }
        let data = input.data().to_vec();
        self.computed(&[input], (dtype, input.shape().to_vec()), data, |_| {
            Box::new(|gradient| vec![gradient.to_vec()])
        })
    }

    /// `dloss/dleaf` of the first leaf, in its layout; `None` where the loss does not depend on it.
    pub(crate) fn gradient(&self, loss: &Var, leaf: &Var) -> Option<Vec<f64>> {
        let (last, leaf) = (loss.place?, leaf.place?);
        let mut gradients: Vec<Option<Vec<f64>>> = Vec::new();
        gradients.resize_with(self.entries.len(), || None);
        gradients[last] = Some(vec![1.0; loss.data().len()]);
        for place in (leaf + 1..=last).rev() {
            let entry = &self.entries[place];
            let (Some(gradient), Some(backward)) = (gradients[place].take(), &entry.backward)
            else {
                continue;
            };
            for (parent, gradient) in entry.parents.iter().zip(backward(&gradient)) {
                let Some(parent) = *parent else { continue };
                gather(self.entries[parent].dtype, &mut gradients[parent], gradient);
            }
        }
        gradients[leaf].take()
    }
}

/// Adds a gradient to what is there, as elements of the tensor's type.
fn gather(dtype: Dtype, into: &mut Option<Vec<f64>>, mut gradient: Vec<f64>) {
    tensor::round(dtype, &mut gradient);
    match into {
        None => *into = Some(gradient),
        Some(into) => {
            for (into, gradient) in into.iter_mut().zip(gradient) {
                *into = dtype.round(*into + gradient);
            }
        }
    }
}

/// A tensor's elements as elements of `dtype`; one number beside a tensor of a narrow type stays float32.
fn cast(dtype: Dtype, var: &Var) -> Arc<Vec<f64>> {
    let narrow = matches!(dtype, Dtype::Float16 | Dtype::Bfloat16);
    let dtype = if narrow && var.rank() == 0 { Dtype::Float32 } else { dtype };
    if var.dtype() == dtype || dtype == Dtype::Float64 {
        return Arc::clone(&var.tensor.data);
    }
    Arc::new(var.data().iter().map(|value| dtype.round(*value)).collect())
}
