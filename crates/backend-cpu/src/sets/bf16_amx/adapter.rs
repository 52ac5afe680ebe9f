//! An adapter's matrices rounded to bf16 and packed, made again whenever the matrices change.

use super::{
    super::packed::{TILE_INPUTS, TILE_ROWS, TILE_WORDS, whole_pairs},
    round::{panel_tile, row_pairs},
};
use crate::{
    buffer::{Buffer, Rows, View, ViewMut, padded},
    lanes::LANES,
    linear::Side,
    pool::Pool,
};

/// A and B, each as panels of its rank and as panels of its features.
#[derive(Debug)]
pub(crate) struct PackedLora {
    a: Packed,
    b: Packed,
}

/// A matrix `[rank, features]`.
#[derive(Debug)]
struct Packed {
    /// Panels of the rank over the features: for the product that leads to the rank.
    narrow: Buffer,
    /// Panels of the features over the rank: for the product that leads away from it.
    wide: Buffer,
}

impl PackedLora {
    /// Words of a matrix, in both orders.
    pub(crate) fn words(rank: usize, features: usize) -> usize {
        padded(rank) * whole_pairs(features) + padded(features) * whole_pairs(rank)
    }

    pub(crate) fn new(a: &Rows, b: &Rows) -> tinsmith_backend::Result<Self> {
        let packed = |rows: &Rows| -> tinsmith_backend::Result<Packed> {
            Ok(Packed {
                narrow: Buffer::zeros(padded(rows.rows) * whole_pairs(rows.features))?,
                wide: Buffer::zeros(padded(rows.features) * whole_pairs(rows.rows))?,
            })
        };
        Ok(Self { a: packed(a)?, b: packed(b)? })
    }

    pub(crate) fn refresh(&mut self, a: &Rows, b: &Rows, pool: &Pool) {
        self.a.refresh(a, pool);
        self.b.refresh(b, pool);
    }

    /// `x Aᵀ` or `dy B`: panels of the rank.
    pub(super) fn narrow(&self, side: Side, features: usize) -> View {
        let packed = match side {
            Side::Down => &self.a,
            Side::Up => &self.b,
        };
        View { pointer: packed.narrow.pointer(), stride: whole_pairs(features) * LANES }
    }

    /// `hidden Bᵀ` or `(dy B) A`: panels of the features.
    pub(super) fn wide(&self, side: Side, rank: usize) -> View {
        let packed = match side {
            Side::Down => &self.b,
            Side::Up => &self.a,
        };
        View { pointer: packed.wide.pointer(), stride: whole_pairs(rank) * LANES }
    }
}

impl Packed {
    /// Tasks take 32 features each: one tile of inputs of the narrow panels, two panels of the wide ones.
    fn refresh(&mut self, from: &Rows, pool: &Pool) {
        let (rank, features, view) = (from.rows, from.features, from.view());
        let tiles = features.div_ceil(TILE_INPUTS);
        let narrow =
            ViewMut { pointer: self.narrow.pointer_mut(), stride: whole_pairs(features) * LANES };
        let wide = ViewMut { pointer: self.wide.pointer_mut(), stride: whole_pairs(rank) * LANES };
        pool.run_sized(tiles, rank * features, &|tile| {
            let first = tile * TILE_INPUTS;
            let panels = 2.min((features - first).div_ceil(LANES));
            // SAFETY: the set is the backend's, so it is available; rows have whole panels; panels and tiles
            // are this task's own.
            unsafe {
                for panel in 0..rank.div_ceil(LANES) {
                    let shape = (LANES.min(rank - panel * LANES), features - first);
                    let rows = view.skip_rows(panel * LANES);
                    let x = View { pointer: rows.pointer.add(first), stride: rows.stride };
                    panel_tile(x, shape, narrow.at(panel, tile * TILE_WORDS));
                }
                for ranks in 0..rank.div_ceil(2 * TILE_ROWS) {
                    let row = ranks * 2 * TILE_ROWS;
                    let x = View { pointer: view.at(row, first), stride: view.stride };
                    let to = wide.at(2 * tile, ranks * TILE_WORDS);
                    let count = (2 * TILE_ROWS).min(rank - row);
                    row_pairs(x, (count, panels), (to, wide.stride));
                }
            }
        });
    }
}
