//! A tensor of any rank, its elements in row-major order.

use std::sync::Arc;

use crate::{Dtype, Error, Result, shape};

/// A tensor. Clones share the elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Arc<Vec<f64>>,
}

impl Tensor {
    /// A tensor of `shape` whose elements, row after row, are `data` rounded to `dtype`.
    ///
    /// # Errors
    /// The shape has another number of elements.
    pub fn new(dtype: Dtype, shape: Vec<usize>, mut data: Vec<f64>) -> Result<Self> {
        round(dtype, &mut data);
        Self::shared(dtype, shape, Arc::new(data))
    }

    /// The same of values that are elements of `dtype` already, without copying them.
    ///
    /// # Errors
    /// The shape has another number of elements.
    pub fn shared(dtype: Dtype, shape: Vec<usize>, data: Arc<Vec<f64>>) -> Result<Self> {
        if shape::elements(&shape) != data.len() {
            let message = format!("a tensor of shape {shape:?} has {} values", data.len());
            return Err(Error::Input(message));
        }
        Ok(Self { dtype, shape, data })
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes of the dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements in row-major order.
    pub fn data(&self) -> &[f64] {
        &self.data
    }

    /// The only element.
    pub(crate) fn item(&self) -> Option<f64> {
        (self.data.len() == 1).then(|| self.data[0])
    }
}

/// Rounds elements to their type.
pub(crate) fn round(dtype: Dtype, data: &mut [f64]) {
    if dtype != Dtype::Float64 {
        for value in data {
            *value = dtype.round(*value);
        }
    }
}
