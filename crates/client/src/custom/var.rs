//! A value of a calculation: what losses are written with.

use std::{borrow::Borrow, fmt, ops, rc::Rc};

use super::{
    array::Array,
    gradient, inputs,
    op::{Binary, Compare, Op, Reduce, Unary},
    tape::{Mode, Operand, Tape},
};
use crate::{Datum, Error, Result};

/// A scalar, a vector `[t]` or a matrix `[t, k]` of a calculation that can be differentiated.
///
/// Shapes are broadcast as in PyTorch. Whatever cannot be done (shapes that do not fit, a value that is not there)
/// makes the whole loss fail with a message, so that arithmetic needs no `?`. Methods that have to choose a direction
/// say `last` for the last dimension; the others of [`Self::cumulative_sum`]'s kind go along the tokens.
#[derive(Clone)]
pub struct Var {
    tape: Rc<Tape>,
    place: usize,
}

/// A number or a [`Var`], where both are taken.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a>(Kind<'a>);

#[derive(Clone, Copy, Debug)]
enum Kind<'a> {
    Number(f64),
    Var(&'a Var),
}

impl From<f64> for Term<'_> {
    fn from(number: f64) -> Self {
        Self(Kind::Number(number))
    }
}

impl<'a> From<&'a Var> for Term<'a> {
    fn from(var: &'a Var) -> Self {
        Self(Kind::Var(var))
    }
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $op:ident,)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> Self {
            self.apply(Op::Unary(Unary::$op))
        }
    )*};
}

macro_rules! comparison {
    ($($(#[$doc:meta])* $name:ident $op:ident,)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name<'a>(&self, other: impl Into<Term<'a>>) -> Self {
            self.compare(Compare::$op, other)
        }
    )*};
}

macro_rules! reduction {
    ($($(#[$doc:meta])* $name:ident $op:ident $last:literal,)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> Self {
            self.apply(Op::Reduce { kind: Reduce::$op, last: $last })
        }
    )*};
}

impl Var {
    unary! {
        /// e to the power of each.
        exp Exp,
        /// `e^x - 1`, exact for small x.
        expm1 Expm1,
        /// The natural logarithm.
        log Log,
        /// `log(1 + x)`, exact for small x.
        log1p Log1p,
        /// The square root.
        sqrt Sqrt,
        /// The square.
        square Square,
        /// `1 / x`.
        reciprocal Reciprocal,
        /// The absolute value; at 0 its gradient is 0.
        abs Abs,
        /// -1, 0 or 1; without a gradient.
        sign Sign,
        /// `1 / (1 + e^-x)`.
        sigmoid Sigmoid,
        /// `log(sigmoid(x))` without underflow.
        log_sigmoid LogSigmoid,
        /// `log(1 + e^x)` without overflow.
        softplus Softplus,
        /// The hyperbolic tangent.
        tanh Tanh,
        /// `max(x, 0)`; at 0 its gradient is 0.
        relu Relu,
    }

    comparison! {
        /// 1 where it is less, else 0; without a gradient.
        less Less,
        /// 1 where it is less or equal, else 0; without a gradient.
        less_or_equal LessOrEqual,
        /// 1 where it is greater, else 0; without a gradient.
        greater Greater,
        /// 1 where it is greater or equal, else 0; without a gradient.
        greater_or_equal GreaterOrEqual,
        /// 1 where both are equal, else 0; without a gradient.
        equal Equal,
        /// 1 where both differ, else 0; without a gradient.
        not_equal NotEqual,
    }

    reduction! {
        /// The sum of all numbers, a scalar.
        sum Sum false,
        /// The mean of all numbers, a scalar.
        mean Mean false,
        /// The greatest of all numbers; several that are the greatest share its gradient.
        max Max false,
        /// The least of all numbers; several that are the least share its gradient.
        min Min false,
        /// Sums along the last dimension, which goes away.
        sum_last Sum true,
        /// Means along the last dimension, which goes away.
        mean_last Mean true,
        /// The greatest of each line along the last dimension, which goes away.
        max_last Max true,
        /// The least of each line along the last dimension, which goes away.
        min_last Min true,
    }

    pub(super) fn new(tape: &Rc<Tape>, place: usize) -> Self {
        Self { tape: Rc::clone(tape), place }
    }

    pub(super) fn tape(&self) -> &Rc<Tape> {
        &self.tape
    }

    pub(super) fn place(&self) -> usize {
        self.place
    }

    pub(super) fn apply(&self, op: Op) -> Self {
        self.tape.push(op, vec![Operand::Node(self.place)])
    }

    pub(super) fn operand<'a>(&self, other: impl Into<Term<'a>>) -> Operand {
        match other.into().0 {
            Kind::Number(number) => Operand::Number(number),
            Kind::Var(var) => {
                if !Rc::ptr_eq(&self.tape, &var.tape) {
                    self.tape.fail("values of two different calculations meet");
                    return Operand::Number(f64::NAN);
                }
                Operand::Node(var.place)
            }
        }
    }

    fn binary<'a>(&self, binary: Binary, other: impl Into<Term<'a>>) -> Self {
        let other = self.operand(other);
        self.tape.push(Op::Binary(binary), vec![Operand::Node(self.place), other])
    }

    /// `number - self` and `number / self`.
    fn reversed(&self, binary: Binary, number: f64) -> Self {
        let args = vec![Operand::Number(number), Operand::Node(self.place)];
        self.tape.push(Op::Binary(binary), args)
    }

    pub(super) fn compare<'a>(&self, compare: Compare, other: impl Into<Term<'a>>) -> Self {
        let other = self.operand(other);
        self.tape.push(Op::Compare(compare), vec![Operand::Node(self.place), other])
    }

    /// The greater of both; where they are equal each gets half of the gradient.
    #[must_use]
    pub fn maximum(&self, other: &Self) -> Self {
        self.binary(Binary::Maximum, other)
    }

    /// The lesser of both; where they are equal each gets half of the gradient.
    #[must_use]
    pub fn minimum(&self, other: &Self) -> Self {
        self.binary(Binary::Minimum, other)
    }

    /// `x^exponent`.
    #[must_use]
    pub fn powf(&self, exponent: f64) -> Self {
        self.apply(Op::Power(exponent))
    }

    /// Held within `min..=max`; what lies outside has no gradient, the bounds themselves have.
    #[must_use]
    pub fn clamp(&self, min: f64, max: f64) -> Self {
        self.apply(Op::Clamp { min: Some(min), max: Some(max) })
    }

    /// Held at `min` or above.
    #[must_use]
    pub fn at_least(&self, min: f64) -> Self {
        self.apply(Op::Clamp { min: Some(min), max: None })
    }

    /// Held at `max` or below.
    #[must_use]
    pub fn at_most(&self, max: f64) -> Self {
        self.apply(Op::Clamp { min: None, max: Some(max) })
    }

    /// `yes` where this is not 0, else `no`; what is not chosen may be infinite or NaN.
    #[must_use]
    pub fn choose<'a>(&self, yes: impl Into<Term<'a>>, no: impl Into<Term<'a>>) -> Self {
        let args = vec![Operand::Node(self.place), self.operand(yes), self.operand(no)];
        self.tape.push(Op::Where, args)
    }

    /// The same values, through which no gradient goes.
    #[must_use]
    pub fn detach(&self) -> Self {
        self.apply(Op::Detach)
    }

    /// `log(sum(exp(x)))` along the last dimension, which goes away.
    #[must_use]
    pub fn logsumexp(&self) -> Self {
        self.apply(Op::LogSumExp)
    }

    /// Log-probabilities along the last dimension.
    #[must_use]
    pub fn log_softmax(&self) -> Self {
        self - self.logsumexp().unsqueeze()
    }

    /// Probabilities along the last dimension.
    #[must_use]
    pub fn softmax(&self) -> Self {
        self.log_softmax().exp()
    }

    /// The sum of the products, a scalar.
    #[must_use]
    pub fn dot(&self, other: &Self) -> Self {
        (self * other).sum()
    }

    /// `[m, k]` by `[k, n]`.
    #[must_use]
    pub fn matmul(&self, other: &Self) -> Self {
        let other = self.operand(other);
        self.tape.push(Op::MatMul, vec![Operand::Node(self.place), other])
    }

    /// Rows as columns.
    #[must_use]
    pub fn transpose(&self) -> Self {
        self.apply(Op::Transpose)
    }

    /// Running sums along the tokens (the first dimension).
    #[must_use]
    pub fn cumulative_sum(&self) -> Self {
        self.apply(Op::CumulativeSum)
    }

    /// The tokens (the first dimension) backwards.
    #[must_use]
    pub fn flip(&self) -> Self {
        self.apply(Op::Flip)
    }

    /// Token `place`: a scalar of a vector, a row of a matrix.
    #[must_use]
    pub fn index(&self, place: usize) -> Self {
        self.apply(Op::Index(place))
    }

    /// Some of the tokens.
    #[must_use]
    pub fn slice(&self, tokens: ops::Range<usize>) -> Self {
        self.apply(Op::Slice(tokens.start, tokens.end))
    }

    /// `[t]` as `[t, 1]`, a scalar as `[1]`.
    #[must_use]
    pub fn unsqueeze(&self) -> Self {
        self.apply(Op::Unsqueeze)
    }

    /// All of them, one after the other along the tokens.
    ///
    /// # Errors
    /// No values.
    pub fn concat<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Result<Self> {
        Self::joined(Op::Concat, parts)
    }

    /// Scalars as one vector, vectors as the rows of a matrix.
    ///
    /// # Errors
    /// No values.
    pub fn stack<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Result<Self> {
        Self::joined(Op::Stack, parts)
    }

    fn joined<'a>(op: Op, parts: impl IntoIterator<Item = &'a Self>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else {
            return Err(Error::Validation { message: "there is no value to join".to_owned() });
        };
        let mut args = vec![Operand::Node(first.place)];
        args.extend(parts.map(|part| first.operand(part)));
        Ok(first.tape.push(op, args))
    }

    /// Numbers beside this value in its calculation: a vector without a gradient. In a loss that the server runs they
    /// have to be an input of the datum instead.
    #[must_use]
    pub fn constant(&self, numbers: &[f64]) -> Self {
        if self.tape.mode() == Mode::Traced {
            self.tape.fail("constant: numbers that a traced loss needs must be among its inputs");
            return self.clone();
        }
        match Array::new(vec![numbers.len()], numbers.to_vec()) {
            Ok(array) => self.tape.leaf(array),
            Err(message) => {
                self.tape.fail(&message);
                self.clone()
            }
        }
    }

    /// What a datum gives to its loss under this name, beside this value in its calculation: of the shape that it has
    /// there, without a gradient.
    ///
    /// # Errors
    /// The datum has no such input.
    pub fn input(&self, datum: &Datum, name: &str) -> Result<Self> {
        if self.tape.mode() == Mode::Traced {
            self.tape.fail("input: a traced loss declares its inputs by name and rank");
            return Ok(self.clone());
        }
        Ok(self.tape.leaf(inputs::input(datum, name)?))
    }

    /// `d(sum of this) / d(each input)`, in the shapes of the inputs. The result is part of the calculation: a loss may
    /// depend on it. Not in a loss that the server runs.
    #[must_use]
    pub fn gradient(&self, inputs: &[Self]) -> Vec<Self> {
        gradient::gradients(self, inputs)
    }

    /// The number of a scalar, NaN where it is not known.
    pub fn item(&self) -> f64 {
        match self.known().data() {
            [value] => *value,
            numbers => {
                self.tape.fail(&format!("item: {} numbers are not a scalar", numbers.len()));
                f64::NAN
            }
        }
    }

    /// The numbers, row after row.
    pub fn to_vec(&self) -> Vec<f64> {
        self.known().data().to_vec()
    }

    /// `[]`, `[t]` or `[t, k]`.
    pub fn shape(&self) -> Vec<usize> {
        self.known().shape().to_vec()
    }

    /// Number of numbers.
    pub fn count(&self) -> usize {
        self.known().data().len()
    }

    /// 0 for a scalar, 1 for a vector, 2 for a matrix.
    pub fn rank(&self) -> usize {
        self.tape.rank(self.place)
    }

    fn known(&self) -> Array {
        self.tape.value(self.place).unwrap_or_else(|| {
            self.tape.fail("no value is known while a loss is traced: it may not depend on one");
            Array::scalar(f64::NAN)
        })
    }
}

impl fmt::Debug for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tape.value(self.place) {
            Some(value) => write!(f, "Var{:?} {:?}", value.shape(), value.data()),
            None => write!(f, "Var of rank {}, traced", self.rank()),
        }
    }
}

impl ops::Neg for &Var {
    type Output = Var;

    fn neg(self) -> Var {
        self.apply(Op::Unary(Unary::Neg))
    }
}

impl ops::Neg for Var {
    type Output = Self;

    fn neg(self) -> Self {
        -&self
    }
}

macro_rules! operator {
    ($($trait:ident $method:ident,)*) => {$(
        operator! { impl $trait $method for Var, Var }
        operator! { impl $trait $method for Var, &Var }
        operator! { impl $trait $method for &Var, Var }
        operator! { impl $trait $method for &Var, &Var }

        impl ops::$trait<f64> for Var {
            type Output = Self;

            fn $method(self, other: f64) -> Self {
                self.binary(Binary::$trait, other)
            }
        }

        impl ops::$trait<f64> for &Var {
            type Output = Var;

            fn $method(self, other: f64) -> Var {
                self.binary(Binary::$trait, other)
            }
        }

        impl ops::$trait<Var> for f64 {
            type Output = Var;

            fn $method(self, other: Var) -> Var {
                other.reversed(Binary::$trait, self)
            }
        }

        impl ops::$trait<&Var> for f64 {
            type Output = Var;

            fn $method(self, other: &Var) -> Var {
                other.reversed(Binary::$trait, self)
            }
        }
    )*};
    (impl $trait:ident $method:ident for $left:ty, $right:ty) => {
        impl ops::$trait<$right> for $left {
            type Output = Var;

            fn $method(self, other: $right) -> Var {
                self.binary(Binary::$trait, Borrow::<Var>::borrow(&other))
            }
        }
    };
}

operator! {
    Add add,
    Sub sub,
    Mul mul,
    Div div,
}
