//! Rows of the embedding table, and rows of a step by index.

use crate::{CpuBackend, Weight, buffer::Rows};

pub(crate) fn embed(cpu: &CpuBackend, out: &mut Rows, table: &Weight, tokens: &[u32], scale: f32) {
    assert!(out.rows == tokens.len() && out.features == table.inputs, "a row for each token");
    each_row(cpu, out, &|row, to| table.read_row(tokens[row] as usize, to, scale));
}

pub(crate) fn gather(cpu: &CpuBackend, out: &mut Rows, x: &Rows, indices: &[usize]) {
    assert!(out.rows == indices.len() && out.features == x.features, "a row for each index");
    each_row(cpu, out, &|row, to| to.copy_from_slice(x.row(indices[row])));
}

fn each_row(cpu: &CpuBackend, out: &mut Rows, fill: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let (rows, features, view) = (out.rows, out.features, out.view_mut());
    cpu.pool.run_rows(rows, rows * features * 8, &|part| {
        for row in part {
            // SAFETY: rows lie in the buffer, and each belongs to one task.
            let to = unsafe { std::slice::from_raw_parts_mut(view.at(row, 0), features) };
            fill(row, to);
        }
    });
}
