//! Element types: how each rounds, and which type an operation on several has (torch's type promotion).

use std::{fmt, str::FromStr};

/// A tensor's element type. Whatever it is, elements are held as f64: integers are exact up to 2^53.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Dtype {
    /// `torch.bool`
    Bool,
    /// `torch.uint8`
    Uint8,
    /// `torch.int8`
    Int8,
    /// `torch.int16`
    Int16,
    /// `torch.int32`
    Int32,
    /// `torch.int64`
    Int64,
    /// `torch.float16`
    Float16,
    /// `torch.bfloat16`
    Bfloat16,
    /// `torch.float32`
    Float32,
    /// `torch.float64`
    Float64,
}

/// Kinds of types, each of which holds the ones before.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Category {
    Bool,
    Integer,
    Float,
}

/// How much an operand has to say about the result's type: a Python number least, a tensor with dimensions most.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Standing {
    Number,
    Scalar,
    Dimensioned,
}

const NAMES: [(&str, Dtype); 17] = [
    ("bool", Dtype::Bool),
    ("uint8", Dtype::Uint8),
    ("int8", Dtype::Int8),
    ("int16", Dtype::Int16),
    ("int32", Dtype::Int32),
    ("int64", Dtype::Int64),
    ("float16", Dtype::Float16),
    ("bfloat16", Dtype::Bfloat16),
    ("float32", Dtype::Float32),
    ("float64", Dtype::Float64),
    ("short", Dtype::Int16),
    ("int", Dtype::Int32),
    ("long", Dtype::Int64),
    ("half", Dtype::Float16),
    ("float", Dtype::Float32),
    ("double", Dtype::Float64),
    ("byte", Dtype::Uint8),
];

impl Dtype {
    pub(crate) fn category(self) -> Category {
        match self {
            Self::Bool => Category::Bool,
            Self::Uint8 | Self::Int8 | Self::Int16 | Self::Int32 | Self::Int64 => Category::Integer,
            Self::Float16 | Self::Bfloat16 | Self::Float32 | Self::Float64 => Category::Float,
        }
    }

    pub(crate) fn is_float(self) -> bool {
        self.category() == Category::Float
    }

    /// What an operation that gives fractions makes of this type.
    pub(crate) fn fractional(self) -> Self {
        if self.is_float() { self } else { Self::Float32 }
    }

    /// What a sum makes of this type.
    pub(crate) fn summed(self) -> Self {
        if self.is_float() { self } else { Self::Int64 }
    }

    /// The nearest element of this type; integers drop the fraction and wrap around.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounding to a narrower type is what this is for"
    )]
    pub(crate) fn round(self, value: f64) -> f64 {
        match self {
            Self::Bool => f64::from(u8::from(value != 0.0)),
            Self::Uint8 => f64::from(value as i64 as u8),
            Self::Int8 => f64::from(value as i64 as i8),
            Self::Int16 => f64::from(value as i64 as i16),
            Self::Int32 => f64::from(value as i64 as i32),
            Self::Int64 => value.trunc(),
            Self::Float16 => half::f16::from_f64(value).to_f64(),
            Self::Bfloat16 => half::bf16::from_f64(value).to_f64(),
            Self::Float32 => f64::from(value as f32),
            Self::Float64 => value,
        }
    }

    /// The smallest type that holds both.
    pub(crate) fn promote(self, other: Self) -> Self {
        let (low, high) = if self <= other { (self, other) } else { (other, self) };
        match (low, high) {
            (Self::Uint8, Self::Int8) => Self::Int16,
            (Self::Float16, Self::Bfloat16) => Self::Float32,
            (
                Self::Bool
                | Self::Uint8
                | Self::Int8
                | Self::Int16
                | Self::Int32
                | Self::Int64
                | Self::Float16
                | Self::Bfloat16
                | Self::Float32
                | Self::Float64,
                high,
            ) => high,
        }
    }

    /// The type of an operation on these operands.
    pub(crate) fn of_operands(operands: impl Iterator<Item = (Self, Standing)>) -> Self {
        let mut of_standing: [Option<Self>; 3] = [None; 3];
        for (dtype, standing) in operands {
            let place = &mut of_standing[standing as usize];
            *place = Some(place.map_or(dtype, |other| other.promote(dtype)));
        }
        let [number, scalar, dimensioned] = of_standing;
        let combine = |higher: Option<Self>, lower: Option<Self>| match (higher, lower) {
            (Some(higher), Some(lower)) if higher.category() >= lower.category() => Some(higher),
            (Some(higher), Some(lower)) => Some(higher.promote(lower)),
            (one, None) | (None, one) => one,
        };
        combine(dimensioned, combine(scalar, number)).unwrap_or(Self::Float32)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, dtype)| dtype == self).map_or("?", |(name, _)| name);
        formatter.write_str(name)
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        NAMES
            .iter()
            .find_map(|(known, dtype)| (*known == name).then_some(*dtype))
            .ok_or_else(|| format!("dtype {name:?} is not supported"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotes_as_torch_does() {
        use Standing::{Dimensioned, Number, Scalar};
        let cases = [
            (vec![(Dtype::Int64, Dimensioned), (Dtype::Float32, Number)], Dtype::Float32),
            (vec![(Dtype::Float32, Dimensioned), (Dtype::Float64, Scalar)], Dtype::Float32),
            (vec![(Dtype::Float32, Dimensioned), (Dtype::Float64, Dimensioned)], Dtype::Float64),
            (vec![(Dtype::Bool, Dimensioned), (Dtype::Int64, Number)], Dtype::Int64),
            (vec![(Dtype::Bfloat16, Dimensioned), (Dtype::Float32, Number)], Dtype::Bfloat16),
            (vec![(Dtype::Int32, Dimensioned), (Dtype::Float64, Scalar)], Dtype::Float64),
            (vec![(Dtype::Uint8, Dimensioned), (Dtype::Int8, Dimensioned)], Dtype::Int16),
            (vec![(Dtype::Float16, Scalar), (Dtype::Bfloat16, Scalar)], Dtype::Float32),
        ];
        for (operands, want) in cases {
            assert_eq!(Dtype::of_operands(operands.iter().copied()), want, "{operands:?}");
        }
    }

    #[test]
    fn rounds_to_the_type() {
        assert_eq!(Dtype::Int64.round(-2.7).to_bits(), (-2.0f64).to_bits());
        assert_eq!(Dtype::Uint8.round(257.0).to_bits(), 1.0f64.to_bits());
        assert!(Dtype::Float32.round(1e300).is_infinite());
        assert!(Dtype::Float64.round(1e300).is_finite());
    }
}
