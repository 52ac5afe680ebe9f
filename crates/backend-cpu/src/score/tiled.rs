//! The unembedding's products in the set that multiplies on tiles.

use std::ops::Range;

use tinsmith_backend::LoraGradientUse;

use super::{Chunk, Unembed};
use crate::{
    CpuBackend,
    buffer::{Lora, Pair, Rows, View},
    linear::rank_max,
    sets::bf16_amx::linear::{InputGradient, Map, MapBack},
};

/// The logits of some rows, and their `x Aᵀ` into `cpu.hidden`.
pub(super) fn logits(unembed: &Unembed<'_>, cpu: &mut CpuBackend, rows: &Range<usize>) {
    let CpuBackend { tiles, logits, hidden, pool, .. } = cpu;
    let weight = unembed.unembedding.weight;
    let keeps = !unembed.uses.is_empty();
    // SAFETY: `rows` lie in `x` and in the hidden rows; `logits` has the shape that is written.
    unsafe {
        let map = Map {
            panels: weight.panels(),
            outputs: weight.outputs,
            bias: None,
            uses: unembed.uses,
            hidden: keeps.then(|| hidden.view_mut().skip_rows(rows.start)),
            out: logits.view_mut(),
            add: false,
        };
        let x = unembed.x.view().skip_rows(rows.start);
        tiles.forward((x, weight.inputs), rows, &[map], pool);
    }
}

/// `dlogits B` and `dx`, for a run of a chunk's rows.
pub(super) fn backward(
    unembed: &Unembed<'_>,
    cpu: &mut CpuBackend,
    dx: Option<&mut Rows>,
    (chunk, run): (&Range<usize>, Range<usize>),
) {
    let CpuBackend { tiles, logits, hidden_gradients: [hidden, ..], pool, .. } = cpu;
    let weight = unembed.unembedding.weight;
    hidden.reshape(chunk.len(), rank_max(unembed.uses));
    let nowhere = View { pointer: std::ptr::null(), stride: 0 };
    // SAFETY: the run lies in the chunk, the chunk in `dx`, which is borrowed for us alone.
    unsafe {
        let map = MapBack {
            dy: logits.view().skip_rows(run.start),
            outputs: weight.outputs,
            panels: if dx.is_some() { weight.transposed_panels(pool) } else { nowhere },
            uses: unembed.uses,
            hidden: Some(hidden.view_mut().skip_rows(run.start)),
        };
        let rows = chunk.start + run.start..chunk.start + run.end;
        let dx = dx.map(|dx| InputGradient {
            out: dx.view_mut().skip_rows(rows.start),
            inputs: weight.inputs,
            add: false,
        });
        tiles.backward(dx, &rows, &[map], pool);
    }
}

/// Folds the chunk's tokens onto each use's gradient.
pub(super) fn fold_gradients(
    unembed: &Unembed<'_>,
    cpu: &mut CpuBackend,
    uses: &mut [LoraGradientUse<'_, Lora, Pair>],
    chunk: &Chunk<'_>,
) {
    let CpuBackend { tiles, logits, hidden, hidden_gradients, pool, .. } = cpu;
    let (x, start, gradients) = (unembed.x, chunk.rows.start, &mut tiles.gradients);
    gradients.clear();
    // SAFETY: the chunk's tiles lie in the rows of all four; gradients are borrowed for us alone.
    unsafe {
        let sides = (hidden.view().skip_rows(start), hidden_gradients[0].view());
        for (i, lora_use) in uses.iter_mut().enumerate() {
            let (gradient, scale) = (&mut *lora_use.gradient, lora_use.scale);
            gradients.push(gradient, 1, sides, scale, chunk.tiles_of(i));
        }
        let x = (x.view().skip_rows(start), x.features);
        tiles.sum_gradients(x, std::iter::once(logits.features), pool);
    }
}
