//! Picking rows: `embed` from the embedding table, `gather` from activations. No sums.

use super::{Rows, Weight};

/// `out[i] = scale · table[tokens[i]]`.
pub(super) fn embed(out: &mut Rows, table: &Weight, tokens: &[u32], scale: f32) {
    assert_eq!(out.len(), tokens.len(), "a row for each token");
    for (i, &token) in tokens.iter().enumerate() {
        for (out, &value) in out.row_mut(i).iter_mut().zip(table.row(token as usize)) {
            *out = f64::from(scale) * value;
        }
    }
}

/// `out[i] = x[indices[i]]`.
pub(super) fn gather(out: &mut Rows, x: &Rows, indices: &[usize]) {
    assert_eq!(out.len(), indices.len(), "a row for each index");
    for (i, &index) in indices.iter().enumerate() {
        out.row_mut(i).copy_from_slice(x.row(index));
    }
}
