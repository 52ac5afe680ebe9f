//! Loss functions that arrive as data: the graphs that torch.fx traces, checked, interpreted, differentiated.
//!
//! Nothing of a graph is executed but the operations of the table in `ops.rs`, on tensors that follow torch's
//! rules of shapes, dtypes and gradients. To add an operation: a function beside its kin in `ops/`, a line in
//! that file's table, and a case in `tests/golden/losses/make.py`.

mod dtype;
mod error;
mod limits;
mod loss;
mod ops;
mod shape;
mod tape;
mod tensor;
mod value;
mod wire;

pub use crate::{
    dtype::Dtype,
    error::{Error, Result},
    limits::Limits,
    loss::{Evaluated, Input, Loss, Reduction},
    tensor::Tensor,
};
