//! Any operation on any arguments, as whoever sends a graph may choose them: an error or a value, never a panic.

use super::*;
use crate::{
    Dtype, Limits, Tensor,
    tape::{Tape, Var},
    value::Value,
};

const LIMITS: Limits = Limits {
    nodes_max: 10,
    arguments_max: 100,
    elements_max: 5000,
    bytes_max: 1 << 20,
    steps_max: 1_000_000,
};

/// Calls of each operation.
const ROUNDS: usize = 500;

/// Xorshift: the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn float(&mut self) -> f64 {
        const EDGES: [f64; 8] =
            [0.0, -0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300];
        let below = i32::try_from(self.below(200)).unwrap();
        if below < 20 { EDGES[self.below(8)] } else { f64::from(below - 100) / 37.0 }
    }

    fn int(&mut self) -> i64 {
        const EDGES: [i64; 6] = [i64::MIN, i64::MAX, i64::MIN + 1, 1 << 53, -100, 1 << 40];
        let below = i64::try_from(self.below(40)).unwrap();
        if below < 6 { EDGES[self.below(6)] } else { below % 9 - 4 }
    }

    fn shape(&mut self) -> Vec<usize> {
        const SHAPES: [&[usize]; 12] = [
            &[],
            &[],
            &[0],
            &[1],
            &[3],
            &[3],
            &[2, 3],
            &[3, 3],
            &[0, 3],
            &[2, 0],
            &[1, 3, 2],
            &[2, 1, 1, 3],
        ];
        SHAPES[self.below(SHAPES.len())].to_vec()
    }

    fn tensor(&mut self, tape: &mut Tape) -> Var {
        const DTYPES: [Dtype; 6] = [
            Dtype::Float32,
            Dtype::Float32,
            Dtype::Int64,
            Dtype::Bool,
            Dtype::Float64,
            Dtype::Bfloat16,
        ];
        let (dtype, shape) = (DTYPES[self.below(6)], self.shape());
        let small = |value: f64| if dtype == Dtype::Int64 { value.clamp(-9.0, 9.0) } else { value };
        let data = (0..crate::shape::elements(&shape)).map(|_| small(self.float())).collect();
        let tensor = Tensor::new(dtype, shape, data).unwrap();
        if dtype.is_float() {
            tape.leaf(tensor).unwrap()
        } else {
            tape.constant(dtype, tensor.shape.clone(), tensor.data.to_vec()).unwrap()
        }
    }

    fn value(&mut self, tape: &mut Tape, depth: usize) -> Value {
        const TEXTS: [&str; 9] =
            ["mean", "sum", "none", "floor", "fro", "tanh", "ij,jk->ik", "ii->i", "->,"];
        match self.below(20) {
            0..=8 => Value::Tensor(self.tensor(tape)),
            9..=11 => Value::Int(self.int()),
            12 => Value::Float(self.float()),
            13 | 14 => Value::None,
            15 => Value::Bool(self.below(2) == 0),
            16 => Value::Text(TEXTS[self.below(TEXTS.len())].to_owned()),
            17 if depth > 0 => {
                let part = |random: &mut Self| match random.below(2) {
                    0 => Value::None,
                    _ => Value::Int(random.int()),
                };
                Value::Slice(Box::new([part(self), part(self), part(self)]))
            }
            18 => Value::Dtype(Dtype::Float16),
            _ if depth > 0 => {
                let length = self.below(4);
                let plain = self.below(2) == 0;
                let value = |_| match plain {
                    true => Value::Int(self.int()),
                    false => self.value(tape, depth - 1),
                };
                Value::Sequence((0..length).map(value).collect())
            }
            _ => Value::Ellipsis,
        }
    }
}

/// A tensor among an operation's results, if there is one with a gradient.
fn differentiable(value: &Value) -> Option<Var> {
    if let Value::Sequence(values) = value {
        return values.iter().find_map(differentiable);
    }
    let Value::Tensor(var) = value else { return None };
    var.has_gradient().then(|| var.clone())
}

#[test]
fn nothing_panics_whatever_it_is_given() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut values, mut errors) = (0, 0);
    for op in TABLES.iter().flat_map(|table| table.iter()) {
        let parameters = op.parameters.split(' ').filter(|parameter| !parameter.is_empty());
        let parameters: Vec<_> = parameters.collect();
        for _ in 0..ROUNDS {
            let mut tape = Tape::new(LIMITS);
            let first = tape.leaf(Tensor::new(Dtype::Float32, vec![2], vec![0.5, 1.5]).unwrap());
            let first = first.unwrap();
            let slot = |(place, parameter): (usize, &&str)| {
                if parameter.starts_with('-') {
                    return Value::None;
                }
                if parameter.starts_with('*') {
                    let length = random.below(4);
                    let values = (0..length).map(|_| random.value(&mut tape, 1)).collect();
                    return Value::Sequence(values);
                }
                match (place, random.below(8)) {
                    (0, 1..) => Value::Tensor(random.tensor(&mut tape)),
                    _ => random.value(&mut tape, 2),
                }
            };
            let slots = parameters.iter().enumerate().map(slot).collect();
            let mut call = Call { tape: &mut tape, slots };
            match (op.run)(&mut call) {
                Ok(value) => {
                    values += 1;
                    if let Some(var) = differentiable(&value) {
                        drop(tape.gradient(&var, &first));
                    }
                }
                Err(_) => errors += 1,
            }
        }
    }
    // So that looking at nothing does not pass.
    assert!(values > 10_000 && errors > 10_000, "{values} {errors}");
}
