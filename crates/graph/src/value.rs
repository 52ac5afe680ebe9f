//! What a node's value can be: a tensor, or one of Python's own.

use crate::{Dtype, error::Fallible, tape::Var, wire::Argument};

/// The value of a node or of an argument.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tensor(Var),
    /// A list or a tuple: shapes, what `split` gives, the parts of an index.
    Sequence(Vec<Self>),
    /// Start, stop, step.
    Slice(Box<[Self; 3]>),
    Ellipsis,
    Dtype(Dtype),
    /// A device, a layout or a memory format.
    Setting,
}

/// A Python number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Int(i64),
    Float(f64),
}

impl Value {
    /// An argument with the values of the nodes that it refers to.
    pub(crate) fn resolve(argument: &Argument, nodes: &[Self]) -> Self {
        let all = |arguments: &[Argument]| -> Vec<Self> {
            arguments.iter().map(|argument| Self::resolve(argument, nodes)).collect()
        };
        match argument {
            Argument::None => Self::None,
            Argument::Bool(value) => Self::Bool(*value),
            Argument::Int(value) => Self::Int(*value),
            Argument::Float(value) => Self::Float(*value),
            Argument::Text(text) => Self::Text(text.clone()),
            Argument::Node(place) => nodes[*place].clone(),
            Argument::List(values) | Argument::Tuple(values) => Self::Sequence(all(values)),
            Argument::Dict(entries) => Self::Sequence(
                entries.iter().map(|(_, argument)| Self::resolve(argument, nodes)).collect(),
            ),
            Argument::Slice(parts) => {
                let part = |i: usize| parts.get(i).map_or(Self::None, |p| Self::resolve(p, nodes));
                Self::Slice(Box::new([part(0), part(1), part(2)]))
            }
            Argument::Ellipsis => Self::Ellipsis,
            Argument::Dtype(dtype) => Self::Dtype(*dtype),
            Argument::Setting => Self::Setting,
        }
    }

    /// What it is called in messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an int",
            Self::Float(_) => "a float",
            Self::Text(_) => "a str",
            Self::Tensor(_) => "a tensor",
            Self::Sequence(_) => "a tuple",
            Self::Slice(_) => "a slice",
            Self::Ellipsis => "an ellipsis",
            Self::Dtype(_) => "a dtype",
            Self::Setting => "a device, layout or memory format",
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// A Python number; a tensor is none.
    pub(crate) fn number(&self) -> Option<Number> {
        if let Self::Bool(value) = self {
            Some(Number::Int(i64::from(*value)))
        } else if let Self::Int(value) = self {
            Some(Number::Int(*value))
        } else if let Self::Float(value) = self {
            Some(Number::Float(*value))
        } else {
            None
        }
    }

    /// A number, or a tensor's only element.
    pub(crate) fn to_f64(&self) -> Fallible<f64> {
        match (self.number(), self) {
            (Some(number), _) => Ok(number.to_f64()),
            (None, Self::Tensor(var)) => var
                .tensor
                .item()
                .ok_or_else(|| format!("a tensor of shape {:?} is no number", var.shape())),
            (None, other) => Err(format!("{} is no number", other.kind())),
        }
    }

    /// A whole number, or a whole tensor's only element.
    pub(crate) fn to_i64(&self) -> Fallible<i64> {
        if let Some(Number::Int(value)) = self.number() {
            return Ok(value);
        }
        if let Self::Tensor(var) = self
            && !var.dtype().is_float()
            && let Some(value) = var.tensor.item()
        {
            return Ok(whole(value));
        }
        Err(format!("{} is no whole number", self.kind()))
    }
}

impl Number {
    #[expect(clippy::cast_precision_loss, reason = "what Python's float() does")]
    pub(crate) fn to_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

/// The integer that an element of an integer tensor holds.
#[expect(clippy::cast_possible_truncation, reason = "elements of integer tensors are whole")]
pub(crate) fn whole(value: f64) -> i64 {
    value as i64
}

/// A count as an element.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub(crate) fn count(value: usize) -> f64 {
    value as f64
}

impl From<Number> for Value {
    fn from(number: Number) -> Self {
        match number {
            Number::Int(value) => Self::Int(value),
            Number::Float(value) => Self::Float(value),
        }
    }
}

impl From<Var> for Value {
    fn from(var: Var) -> Self {
        Self::Tensor(var)
    }
}

impl From<&Var> for Value {
    fn from(var: &Var) -> Self {
        Self::Tensor(var.clone())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}
