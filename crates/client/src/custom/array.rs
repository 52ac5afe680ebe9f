//! Arrays of at most two dimensions, row after row, with PyTorch's rules of broadcasting.

use std::rc::Rc;

/// Numbers of the shape `[]`, `[n]` or `[m, n]`. Clones share the numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    shape: Vec<usize>,
    data: Rc<Vec<f64>>,
}

/// What an operation answers: the message gets the operation's name where it is run.
pub(super) type Fallible<T> = Result<T, String>;

impl Array {
    /// `data` has as many numbers as `shape` says.
    pub(super) fn new(shape: Vec<usize>, data: Vec<f64>) -> Fallible<Self> {
        if shape.len() > 2 {
            return Err(format!("the shape {shape:?} has more than two dimensions"));
        }
        if shape.iter().product::<usize>() != data.len() {
            return Err(format!("{} numbers do not have the shape {shape:?}", data.len()));
        }
        Ok(Self { shape, data: Rc::new(data) })
    }

    pub(super) fn scalar(value: f64) -> Self {
        Self { shape: Vec::new(), data: Rc::new(vec![value]) }
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn data(&self) -> &[f64] {
        &self.data
    }

    pub(super) fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Rows and columns; a vector is one row, a scalar one row of one.
    fn grid(&self) -> (usize, usize) {
        grid(&self.shape)
    }

    /// Size of the first dimension.
    pub(super) fn length(&self) -> Fallible<usize> {
        self.shape.first().copied().ok_or_else(|| "a scalar has no elements to choose".to_owned())
    }

    /// The same numbers in another shape.
    pub(super) fn reshape(&self, shape: &[usize]) -> Fallible<Self> {
        if shape.iter().product::<usize>() != self.data.len() {
            return Err(format!("the shape {:?} cannot become {shape:?}", self.shape));
        }
        Ok(Self { shape: shape.to_vec(), data: Rc::clone(&self.data) })
    }

    /// `f` of each number.
    pub(super) fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        let data = self.data.iter().map(|x| f(*x)).collect();
        Self { shape: self.shape.clone(), data: Rc::new(data) }
    }

    /// `f` of each pair of numbers, the shapes broadcast.
    pub(super) fn zip(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Fallible<Self> {
        if self.shape == other.shape {
            let pairs = self.data.iter().zip(other.data.iter());
            let data = pairs.map(|(x, y)| f(*x, *y)).collect();
            return Ok(Self { shape: self.shape.clone(), data: Rc::new(data) });
        }
        let shape = broadcast(&self.shape, &other.shape)?;
        let (left, right) = (self.expand(&shape)?, other.expand(&shape)?);
        left.zip(&right, f)
    }

    /// This array, repeated to a shape that it can be broadcast to.
    pub(super) fn expand(&self, shape: &[usize]) -> Fallible<Self> {
        if self.shape == shape {
            return Ok(self.clone());
        }
        if broadcast(&self.shape, shape)? != shape {
            return Err(format!("the shape {:?} cannot be repeated to {shape:?}", self.shape));
        }
        let ((rows, columns), (own_rows, own_columns)) = (grid(shape), self.grid());
        let mut data = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            let start = if own_rows == 1 { 0 } else { row * own_columns };
            for column in 0..columns {
                data.push(self.data[start + if own_columns == 1 { 0 } else { column }]);
            }
        }
        Self::new(shape.to_vec(), data)
    }

    /// The opposite of [`Self::expand`]: what came from one number is added up.
    pub(super) fn sum_to(&self, shape: &[usize]) -> Fallible<Self> {
        if self.shape == shape {
            return Ok(self.clone());
        }
        let ((rows, columns), (to_rows, to_columns)) = (self.grid(), grid(shape));
        let mut data = vec![0.0; to_rows * to_columns];
        for row in 0..rows {
            let start = if to_rows == 1 { 0 } else { row * to_columns };
            for column in 0..columns {
                let place = start + if to_columns == 1 { 0 } else { column };
                let sum = data.get_mut(place).ok_or("the sizes do not fit")?;
                *sum += self.data[row * columns + column];
            }
        }
        Self::new(shape.to_vec(), data)
    }

    /// `f` of all the numbers.
    pub(super) fn fold(&self, f: impl Fn(&[f64]) -> f64) -> Self {
        Self::scalar(f(&self.data))
    }

    /// `f` of each line along the last dimension, which goes away.
    pub(super) fn fold_last(&self, f: impl Fn(&[f64]) -> f64) -> Fallible<Self> {
        let Some((_, shape)) = self.shape.split_last() else {
            return Err("a scalar has no last dimension".to_owned());
        };
        let (rows, columns) = self.grid();
        let lines = (0..rows).map(|row| f(&self.data[row * columns..(row + 1) * columns]));
        let lines = lines.collect();
        Self::new(shape.to_vec(), lines)
    }

    /// Numbers of one element of the first dimension.
    fn step(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Elements `start..end` of the first dimension.
    pub(super) fn slice(&self, start: usize, end: usize) -> Fallible<Self> {
        let length = self.length()?;
        if start > end || end > length {
            return Err(format!("{start}..{end} does not lie in 0..{length}"));
        }
        let mut shape = self.shape.clone();
        shape[0] = end - start;
        let step = self.step();
        Self::new(shape, self.data[start * step..end * step].to_vec())
    }

    /// Zeros before and after along the first dimension.
    pub(super) fn pad(&self, before: usize, after: usize) -> Fallible<Self> {
        let mut shape = self.shape.clone();
        shape[0] = self.length()? + before + after;
        let step = self.step();
        let mut data = vec![0.0; before * step];
        data.extend_from_slice(&self.data);
        data.resize(data.len() + after * step, 0.0);
        Self::new(shape, data)
    }

    /// One after the other along the first dimension.
    pub(super) fn concat(parts: &[Self]) -> Fallible<Self> {
        let Some(first) = parts.first() else { return Err("there is nothing to join".to_owned()) };
        first.length()?;
        let (mut shape, mut data) = (first.shape.clone(), Vec::new());
        shape[0] = 0;
        for part in parts {
            if part.shape.get(1..) != first.shape.get(1..) || part.rank() != first.rank() {
                let (one, other) = (&first.shape, &part.shape);
                return Err(format!("the shapes {one:?} and {other:?} cannot be joined"));
            }
            shape[0] += part.length()?;
            data.extend_from_slice(&part.data);
        }
        Self::new(shape, data)
    }

    /// As the elements of a new first dimension.
    pub(super) fn stack(parts: &[Self]) -> Fallible<Self> {
        let Some(first) = parts.first() else { return Err("there is nothing to stack".to_owned()) };
        if let Some(other) = parts.iter().find(|part| part.shape != first.shape) {
            let (one, other) = (&first.shape, &other.shape);
            return Err(format!("the shapes {one:?} and {other:?} cannot be stacked"));
        }
        let mut shape = vec![parts.len()];
        shape.extend(&first.shape);
        Self::new(shape, parts.iter().flat_map(|part| part.data.iter().copied()).collect())
    }

    /// The first dimension backwards.
    pub(super) fn flip(&self) -> Fallible<Self> {
        let step = self.step();
        self.length()?;
        let rows = self.data.chunks(step.max(1)).rev();
        Self::new(self.shape.clone(), rows.flatten().copied().collect())
    }

    /// Running sums along the first dimension.
    pub(super) fn cumulative_sum(&self) -> Fallible<Self> {
        self.length()?;
        let (step, mut data) = (self.step(), self.data.to_vec());
        for place in step..data.len() {
            data[place] += data[place - step];
        }
        Self::new(self.shape.clone(), data)
    }

    /// Rows as columns.
    pub(super) fn transpose(&self) -> Fallible<Self> {
        let &[rows, columns] = self.shape.as_slice() else {
            return Err(format!("the shape {:?} has no rows and columns", self.shape));
        };
        let mut data = Vec::with_capacity(self.data.len());
        for column in 0..columns {
            data.extend((0..rows).map(|row| self.data[row * columns + column]));
        }
        Self::new(vec![columns, rows], data)
    }

    /// `[m, k]` by `[k, n]`.
    pub(super) fn matmul(&self, other: &Self) -> Fallible<Self> {
        let (&[rows, inner], &[other_inner, columns]) =
            (self.shape.as_slice(), other.shape.as_slice())
        else {
            let (left, right) = (&self.shape, &other.shape);
            return Err(format!("{left:?} and {right:?} are not two matrices"));
        };
        if inner != other_inner {
            let (left, right) = (&self.shape, &other.shape);
            return Err(format!("the shapes {left:?} and {right:?} cannot be multiplied"));
        }
        let mut data = vec![0.0; rows * columns];
        for row in 0..rows {
            for k in 0..inner {
                let factor = self.data[row * inner + k];
                for column in 0..columns {
                    data[row * columns + column] += factor * other.data[k * columns + column];
                }
            }
        }
        Self::new(vec![rows, columns], data)
    }
}

fn grid(shape: &[usize]) -> (usize, usize) {
    match *shape {
        [] => (1, 1),
        [columns] => (1, columns),
        [rows, columns, ..] => (rows, columns),
    }
}

/// The shape that both can be repeated to.
fn broadcast(left: &[usize], right: &[usize]) -> Fallible<Vec<usize>> {
    let rank = left.len().max(right.len());
    let size = |shape: &[usize], dim: usize| {
        (dim + shape.len()).checked_sub(rank).map_or(1, |place| shape[place])
    };
    let mut shape = Vec::with_capacity(rank);
    for dim in 0..rank {
        shape.push(match (size(left, dim), size(right, dim)) {
            (one, other) if one == other => one,
            (1, other) | (other, 1) => other,
            _ => return Err(format!("the shapes {left:?} and {right:?} do not fit each other")),
        });
    }
    Ok(shape)
}
