//! A call of an operation: its arguments, and the arithmetic that operations are made of.

use crate::{
    Dtype,
    dtype::Standing,
    error::Fallible,
    shape,
    tape::{Function, Partials, Tape, Var},
    value::{Number, Value},
};

/// A call of an operation, with a value for each parameter.
pub(crate) struct Call<'a> {
    pub(crate) tape: &'a mut Tape,
    pub(crate) slots: Vec<Value>,
}

/// The type of a result, from the type of the operands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Typed {
    Same,
    /// Integers become float32.
    Fractional,
}

/// A function of each element.
pub(super) struct Unary {
    pub(super) typed: Typed,
    pub(super) f: fn(f64) -> f64,
    /// From argument and result.
    pub(super) derivative: fn(f64, f64) -> f64,
}

/// A function of each pair of elements.
pub(super) struct Binary {
    pub(super) typed: Typed,
    pub(super) f: Function,
    pub(super) partials: Partials,
}

/// A tensor or number as an operand.
struct Operand {
    var: Var,
    /// What it has to say about the type.
    typed: (Dtype, Standing),
}

impl Call<'_> {
    /// The argument of a parameter; `None` where it was left out.
    pub(super) fn value(&self, slot: usize) -> &Value {
        self.slots.get(slot).unwrap_or(&Value::None)
    }

    /// A tensor.
    pub(super) fn tensor(&self, slot: usize) -> Fallible<Var> {
        if let Value::Tensor(var) = self.value(slot) {
            return Ok(var.clone());
        }
        Err(format!("argument {slot} is {}, not a tensor", self.value(slot).kind()))
    }

    /// A tensor, or a number as one.
    pub(super) fn operand(&mut self, slot: usize) -> Fallible<Var> {
        let value = self.value(slot).clone();
        self.as_tensor(&value)
    }

    pub(super) fn int(&self, slot: usize) -> Fallible<i64> {
        self.value(slot).to_i64().map_err(|message| format!("argument {slot}: {message}"))
    }

    pub(super) fn int_or(&self, slot: usize, default: i64) -> Fallible<i64> {
        if self.value(slot).is_none() { Ok(default) } else { self.int(slot) }
    }

    pub(super) fn float_or(&self, slot: usize, default: f64) -> Fallible<f64> {
        let value = self.value(slot);
        if value.is_none() {
            return Ok(default);
        }
        value.to_f64().map_err(|message| format!("argument {slot}: {message}"))
    }

    pub(super) fn flag(&self, slot: usize, default: bool) -> Fallible<bool> {
        let value = self.value(slot);
        if value.is_none() { Ok(default) } else { Ok(value.to_f64()? != 0.0) }
    }

    pub(super) fn text_or<'a>(&'a self, slot: usize, default: &'a str) -> Fallible<&'a str> {
        if let Value::Text(text) = self.value(slot) {
            return Ok(text);
        }
        if self.value(slot).is_none() {
            Ok(default)
        } else {
            Err(format!("argument {slot} is no str"))
        }
    }

    pub(super) fn dtype(&self, slot: usize) -> Fallible<Option<Dtype>> {
        if let Value::Dtype(dtype) = self.value(slot) {
            return Ok(Some(*dtype));
        }
        if self.value(slot).is_none() {
            Ok(None)
        } else {
            Err(format!("argument {slot} is {}, not a dtype", self.value(slot).kind()))
        }
    }

    /// Whole numbers, however deep their tuples are.
    pub(super) fn ints(&self, slot: usize) -> Fallible<Vec<i64>> {
        let mut ints = Vec::new();
        flatten(self.value(slot), &mut ints)?;
        Ok(ints)
    }

    /// Sizes of dimensions, in as many arguments or in one.
    pub(super) fn sizes(&self, slot: usize) -> Fallible<Vec<usize>> {
        let size = |size: i64| usize::try_from(size).map_err(|_| format!("a size of {size}"));
        self.ints(slot)?.into_iter().map(size).collect()
    }

    /// The tensors of a sequence.
    pub(super) fn tensors(&self, slot: usize) -> Fallible<Vec<Var>> {
        let Value::Sequence(values) = self.value(slot) else {
            return Err(format!("argument {slot} is {}, not a list", self.value(slot).kind()));
        };
        let values = match values.as_slice() {
            [Value::Sequence(inner)] => inner,
            _ => values,
        };
        let tensor = |value: &Value| {
            if let Value::Tensor(var) = value { Some(var.clone()) } else { None }
        };
        let vars: Option<Vec<Var>> = values.iter().map(tensor).collect();
        vars.ok_or_else(|| format!("argument {slot} is a list of other things than tensors"))
    }

    /// Dimensions of a tensor to reduce over: all where none are given.
    pub(super) fn dims(&self, slot: usize, rank: usize) -> Fallible<Vec<usize>> {
        if self.value(slot).is_none() {
            return Ok((0..rank).collect());
        }
        let mut dims = Vec::new();
        for dim in self.ints(slot)? {
            let dim = shape::dimension(dim, rank)?;
            if dims.contains(&dim) {
                return Err(format!("dimension {dim} is named twice"));
            }
            dims.push(dim);
        }
        if dims.is_empty() {
            dims = (0..rank).collect();
        }
        dims.retain(|dim| *dim < rank);
        Ok(dims)
    }

    /// One dimension.
    pub(super) fn dim_or(&self, slot: usize, default: i64, rank: usize) -> Fallible<usize> {
        shape::dimension(self.int_or(slot, default)?, rank)
    }

    /// A number as a tensor.
    pub(super) fn as_tensor(&mut self, value: &Value) -> Fallible<Var> {
        Ok(self.as_operand(value)?.var)
    }

    fn as_operand(&mut self, value: &Value) -> Fallible<Operand> {
        if let Value::Tensor(var) = value {
            let standing = if var.rank() == 0 { Standing::Scalar } else { Standing::Dimensioned };
            return Ok(Operand { var: var.clone(), typed: (var.dtype(), standing) });
        }
        let (held, typed) = match (value, value.number()) {
            (Value::Bool(_), _) => (Dtype::Bool, Dtype::Bool),
            (_, Some(Number::Int(_))) => (Dtype::Int64, Dtype::Int64),
            (_, Some(Number::Float(_))) => (Dtype::Float64, Dtype::Float32),
            (other, None) => return Err(format!("{} where a tensor is needed", other.kind())),
        };
        let var = self.tape.constant(held, Vec::new(), vec![value.to_f64()?])?;
        Ok(Operand { var, typed: (typed, Standing::Number) })
    }

    /// The type in which an operation on these operands computes.
    pub(super) fn common(&mut self, values: &[Value]) -> Fallible<(Vec<Var>, Dtype)> {
        let operands: Vec<_> =
            values.iter().map(|value| self.as_operand(value)).collect::<Fallible<_>>()?;
        let dtype = Dtype::of_operands(operands.iter().map(|operand| operand.typed));
        Ok((operands.into_iter().map(|operand| operand.var).collect(), dtype))
    }

    /// A function of each element.
    pub(super) fn one(&mut self, function: &Unary, input: impl Into<Value>) -> Fallible<Var> {
        let input = self.as_tensor(&input.into())?;
        let dtype = match function.typed {
            Typed::Same => input.dtype(),
            Typed::Fractional => input.dtype().fractional(),
        };
        self.tape.unary(&input, dtype, function.f, function.derivative)
    }

    /// A function of each pair of elements.
    pub(super) fn two(
        &mut self,
        function: &Binary,
        left: impl Into<Value>,
        right: impl Into<Value>,
    ) -> Fallible<Var> {
        let (vars, dtype) = self.common(&[left.into(), right.into()])?;
        let dtype = match function.typed {
            Typed::Same => dtype,
            Typed::Fractional => dtype.fractional(),
        };
        self.tape.binary((&vars[0], &vars[1]), dtype, function.f, function.partials)
    }

    /// A test of each pair of elements.
    pub(super) fn test(
        &mut self,
        function: Function,
        left: impl Into<Value>,
        right: impl Into<Value>,
    ) -> Fallible<Var> {
        let (vars, dtype) = self.common(&[left.into(), right.into()])?;
        self.tape.pairs((&vars[0], &vars[1]), (dtype, Dtype::Bool), function)
    }

    /// The elements of one tensor where `condition` holds, and of the other where not.
    pub(super) fn choose(
        &mut self,
        condition: &Var,
        yes: impl Into<Value>,
        no: impl Into<Value>,
    ) -> Fallible<Var> {
        let (vars, dtype) = self.common(&[yes.into(), no.into()])?;
        let branches = shape::broadcast(vars[0].shape(), vars[1].shape())?;
        let shape = shape::broadcast(condition.shape(), &branches)?;
        let count = shape::elements(&shape);
        self.tape.budget.tensor(count, 3)?;
        let holds = shape::Source::new(condition.shape(), &shape);
        let sources = [0, 1].map(|i: usize| shape::Source::new(vars[i].shape(), &shape));
        let branch: Vec<usize> =
            (0..count).map(|i| usize::from(condition.data()[holds.at(i)] == 0.0)).collect();
        let at = |i: usize| vars[branch[i]].data()[sources[branch[i]].at(i)];
        let data = (0..count).map(at).collect();
        let counts = [vars[0].data().len(), vars[1].data().len()];
        self.tape.computed(&[&vars[0], &vars[1]], (dtype, shape), data, |_| {
            Box::new(move |gradient| {
                let mut gradients = vec![vec![0.0; counts[0]], vec![0.0; counts[1]]];
                for (i, gradient) in gradient.iter().enumerate() {
                    gradients[branch[i]][sources[branch[i]].at(i)] += gradient;
                }
                gradients
            })
        })
    }
}

fn flatten(value: &Value, ints: &mut Vec<i64>) -> Fallible<()> {
    if let Value::Sequence(values) = value {
        for value in values {
            flatten(value, ints)?;
        }
        return Ok(());
    }
    ints.push(value.to_i64()?);
    Ok(())
}
