//! Rows that have nothing in common.

use super::{
    super::{evaluate::failed, op::count},
    Regularizer, matrix, total,
};
use crate::{
    Datum, Result,
    custom::{LossValue, Var},
};

/// Rows of one matrix: its Gram matrix has the square of as many numbers.
const ROWS_MAX: usize = 2048;

/// The distance of the Gram matrix `G = X Xᵀ` from the identity, squared: small where rows are orthogonal.
///
/// With `[t, k]` logprobs each datum is a matrix X. With `[t]` logprobs the datums, all of one length, are the rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Orthogonality {
    /// What of G counts.
    pub mode: OrthogonalityMode,
    /// Rows are divided by their length first.
    pub normalize: bool,
    /// Whether rows or columns are to be orthogonal.
    pub axis: Axis,
}

/// What of the Gram matrix of n rows counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OrthogonalityMode {
    /// What is off the diagonal: `Σ_{i≠j} G_ij²`.
    #[default]
    Soft,
    /// All: `Σ (G_ij - δ_ij)²`.
    Hard,
    /// What is off the diagonal, and the diagonal's sum: `Σ_{i≠j} G_ij² + (tr G - n)²`.
    Spectral,
}

/// What is to be orthogonal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Axis {
    /// Rows: tokens (or datums).
    #[default]
    Rows,
    /// Columns: candidates (or places).
    Columns,
}

impl Default for Orthogonality {
    fn default() -> Self {
        let (mode, axis) = (OrthogonalityMode::default(), Axis::default());
        Self { mode, normalize: true, axis }
    }
}

impl Orthogonality {
    fn of(&self, rows: &Var) -> Result<Var> {
        let transposed;
        let rows = match self.axis {
            Axis::Rows => rows,
            Axis::Columns => {
                transposed = rows.transpose();
                &transposed
            }
        };
        let n = rows.shape().first().copied().unwrap_or_default();
        if n > ROWS_MAX {
            return Err(failed(format!("{n} rows are to be orthogonal; the limit is {ROWS_MAX}")));
        }
        let normalized;
        let rows = if self.normalize {
            // A row of zeros has no direction: its length counts as tiny, not as 0.
            let lengths = (rows.square().sum_last() + 1e-16).sqrt();
            normalized = rows / lengths.unsqueeze();
            &normalized
        } else {
            rows
        };
        let gram = rows.matmul(&rows.transpose());
        let identity: Vec<f64> = (0..n * n).map(|place| f64::from(place % (n + 1) == 0)).collect();
        let identity = matrix(&gram, vec![n, n], identity)?;
        let diagonal = &gram * &identity;
        let off_diagonal = (&gram - &diagonal).square().sum();
        Ok(match self.mode {
            OrthogonalityMode::Soft => off_diagonal,
            OrthogonalityMode::Hard => (gram - identity).square().sum(),
            OrthogonalityMode::Spectral => off_diagonal + (diagonal.sum() - count(n)).square(),
        })
    }
}

impl Regularizer for Orthogonality {
    fn name(&self) -> &'static str {
        "orthogonality"
    }

    fn compute(&self, _data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        let has_candidates = logprobs.iter().all(|logprobs| logprobs.rank() == 2);
        if has_candidates {
            let parts = logprobs.iter().map(|rows| self.of(rows)).collect::<Result<Vec<_>>>()?;
            return Ok(LossValue::new(total(&parts)?));
        }
        let lengths: Vec<usize> = logprobs.iter().map(Var::count).collect();
        if lengths.iter().any(|length| *length != lengths[0]) {
            return Err(failed(format!(
                "the datums are the rows of a matrix and must have one length, not {lengths:?}"
            )));
        }
        Ok(LossValue::new(self.of(&Var::stack(logprobs)?)?))
    }
}
