//! Shapes: counting, broadcasting, and walking along a dimension.

use crate::error::Fallible;

/// Elements of a tensor of this shape.
pub(crate) fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product: usize, size| product.saturating_mul(*size))
}

/// Distance between neighbours of each dimension in row-major order.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim].saturating_mul(shape[dim]);
    }
    strides
}

/// The dimension that a Python index from `-rank` to `rank - 1` means; a scalar counts as of rank one.
pub(crate) fn dimension(dim: i64, rank: usize) -> Fallible<usize> {
    let count = rank.max(1);
    position(dim, count).ok_or_else(|| format!("dimension {dim} of a tensor of rank {rank}"))
}

/// The place that a Python index from `-count` to `count - 1` means.
pub(crate) fn position(index: i64, count: usize) -> Option<usize> {
    let signed = i64::try_from(count).ok()?;
    let index = if index < 0 { index.checked_add(signed)? } else { index };
    usize::try_from(index).ok().filter(|place| *place < count)
}

/// The shape that both can be expanded to.
pub(crate) fn broadcast(left: &[usize], right: &[usize]) -> Fallible<Vec<usize>> {
    let rank = left.len().max(right.len());
    let size = |shape: &[usize], dim: usize| {
        let missing = rank - shape.len();
        if dim < missing { 1 } else { shape[dim - missing] }
    };
    let mut shape = Vec::with_capacity(rank);
    for dim in 0..rank {
        shape.push(match (size(left, dim), size(right, dim)) {
            (one, other) if one == other => one,
            (1, other) | (other, 1) => other,
            _ => return Err(format!("shapes {left:?} and {right:?} cannot be broadcast")),
        });
    }
    Ok(shape)
}

/// Where each element of a broadcast tensor comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The same place.
    Same,
    /// The only element.
    Only,
    /// The place in this list.
    Map(Vec<usize>),
}

impl Source {
    /// For a tensor of shape `from` expanded to `to`, with which it is broadcast.
    pub(crate) fn new(from: &[usize], to: &[usize]) -> Self {
        if from == to {
            return Self::Same;
        }
        if elements(from) == 1 {
            return Self::Only;
        }
        let missing = to.len() - from.len();
        let own = strides(from);
        let stride = |dim: usize| {
            if dim < missing || from[dim - missing] == 1 { 0 } else { own[dim - missing] }
        };
        let strides: Vec<usize> = (0..to.len()).map(stride).collect();
        Self::Map(walk(to, &strides, 0))
    }

    pub(crate) fn at(&self, place: usize) -> usize {
        match self {
            Self::Same => place,
            Self::Only => 0,
            Self::Map(map) => map[place],
        }
    }
}

/// The places `start + Σ index[d] * strides[d]` of every index of `shape`, in row-major order.
pub(crate) fn walk(shape: &[usize], strides: &[usize], start: usize) -> Vec<usize> {
    let count = elements(shape);
    let mut places = Vec::with_capacity(count);
    let mut index = vec![0; shape.len()];
    let mut place = start;
    for _ in 0..count {
        places.push(place);
        for dim in (0..shape.len()).rev() {
            index[dim] += 1;
            place += strides[dim];
            if index[dim] < shape[dim] {
                break;
            }
            place -= strides[dim] * shape[dim];
            index[dim] = 0;
        }
    }
    places
}

/// A tensor as lines along one dimension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines {
    /// Elements of a line.
    pub(crate) length: usize,
    /// Distance between neighbours of a line; also the number of lines that lie side by side.
    pub(crate) stride: usize,
    /// Lines in all.
    pub(crate) count: usize,
}

impl Lines {
    /// Lines along `dim`; a scalar is one line of one element.
    pub(crate) fn new(shape: &[usize], dim: usize) -> Self {
        let length = shape.get(dim).copied().unwrap_or(1);
        let stride = elements(shape.get(dim + 1..).unwrap_or_default());
        let outer = elements(shape.get(..dim).unwrap_or_default());
        Self { length, stride, count: outer * stride }
    }

    /// The place of element `index` of a line.
    pub(crate) fn place(&self, line: usize, index: usize) -> usize {
        let (outer, inner) = (line / self.stride.max(1), line % self.stride.max(1));
        (outer * self.length + index) * self.stride + inner
    }
}
