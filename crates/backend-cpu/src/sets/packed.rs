//! Rows rounded to bf16, in the orders in which the bf16 sets read them.
//!
//! Tiles of sixteen rows and 32 inputs, `[row tile][input tile][row][input]`, 1 KiB each: one of AMX's
//! registers. Or rows of floats. Either way inputs are filled up with zeros to whole tiles, and what
//! stands in rows that fill up is unspecified.

#[cfg(target_arch = "x86_64")]
use super::bf16_avx512::{round_floats, round_row};
use crate::{
    buffer::{View, ViewMut},
    lanes::LANES,
    pool::Pool,
};

/// Inputs in one tile.
pub(crate) const TILE_INPUTS: usize = 32;
/// Rows in one tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Words of two bf16 in one tile.
pub(crate) const TILE_WORDS: usize = TILE_ROWS * TILE_INPUTS / 2;

/// Pairs of inputs, filled up to whole tiles.
pub(crate) fn whole_pairs(inputs: usize) -> usize {
    inputs.div_ceil(TILE_INPUTS) * (TILE_INPUTS / 2)
}

/// How rounded rows lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layout {
    /// Tiles of bf16.
    Tiles,
    /// Rows of floats.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86's instructions"))]
    Floats,
}

impl Layout {
    /// For the set `bf16-avx512`: the faster for a product of so many rows.
    pub(crate) fn of_pairs(rows: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if super::bf16_fma::is_faster(rows) {
            return Self::Floats;
        }
        let _ = rows;
        Self::Tiles
    }

    /// Words that rounded rows take.
    pub(crate) fn words(self, rows: usize, inputs: usize) -> usize {
        match self {
            Self::Tiles => rows.next_multiple_of(TILE_ROWS) * whole_pairs(inputs),
            Self::Floats => rows.next_multiple_of(TILE_ROWS) * float_stride(whole_pairs(inputs)),
        }
    }
}

/// Floats from row to row: a line more than the inputs, lest rows meet in the same sets of the caches.
fn float_stride(pairs: usize) -> usize {
    2 * pairs + LANES
}

/// Rounded rows.
#[derive(Clone, Copy)]
pub(crate) struct Rounded {
    pub(crate) layout: Layout,
    /// In tiles, each of these "floats" is a word of two bf16.
    pub(crate) words: *const f32,
    /// Tiles from a row's first to its last.
    pub(crate) tiles: usize,
}

/// A part of a product: `out[i][16 p ..] = Σ_k x[i][k] * w[p][k]`.
#[cfg(target_arch = "x86_64")]
pub(crate) struct RoundedTile {
    pub(crate) x: Rounded,
    pub(crate) rows: usize,
    /// Pairs of inputs, a panel in each row of the view.
    pub(crate) w: View,
    pub(crate) panels: usize,
    pub(crate) out: ViewMut,
}

impl Rounded {
    /// For operands that take `x` as it is.
    pub(crate) fn none() -> Self {
        Self { layout: Layout::Tiles, words: std::ptr::null(), tiles: 0 }
    }

    /// Rounds `x [rows, inputs]` into `words`.
    ///
    /// # Safety
    ///
    /// The CPU has AVX512-BF16; `words` has room for [`Layout::words`], and `x` the shape.
    pub(crate) unsafe fn new(
        (words, layout): (*mut f32, Layout),
        x: View,
        (rows, inputs): (usize, usize),
        pool: &Pool,
    ) -> Self {
        let tiles = ViewMut { pointer: words, stride: TILE_ROWS * whole_pairs(inputs) };
        let floats = ViewMut { pointer: words, stride: float_stride(whole_pairs(inputs)) };
        pool.run_sized(rows.div_ceil(TILE_ROWS), rows * inputs, &|tile| {
            for row in tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS) {
                // SAFETY: the caller's contract; each row is one task's own.
                unsafe {
                    let from = x.at(row, 0);
                    match layout {
                        Layout::Tiles => {
                            let to = tiles.at(tile, row % TILE_ROWS * LANES);
                            round_row(from, inputs, to);
                        }
                        Layout::Floats => {
                            round_floats(from, inputs, floats.at(row, 0));
                        }
                    }
                }
            }
        });
        Self { layout, words, tiles: inputs.div_ceil(TILE_INPUTS) }
    }

    /// Floats from row to row, where they lie so.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn row_stride(&self) -> usize {
        debug_assert_eq!(self.layout, Layout::Floats, "tiles have no rows");
        float_stride(self.tiles * TILE_INPUTS / 2)
    }

    /// The rows without the first; whole tiles, if they lie in such.
    ///
    /// # Safety
    ///
    /// There are that many.
    #[cfg(target_arch = "x86_64")]
    pub(crate) unsafe fn skip_rows(self, rows: usize) -> Self {
        let words = match self.layout {
            Layout::Tiles => {
                debug_assert!(rows.is_multiple_of(TILE_ROWS), "tasks begin with a tile");
                rows / TILE_ROWS * self.tiles * TILE_WORDS
            }
            Layout::Floats => rows * self.row_stride(),
        };
        Self { words: self.words.wrapping_add(words), ..self }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn round_row(_: *const f32, _: usize, _: *mut f32) {
    unreachable!("no set that rounds rows is available on this CPU")
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn round_floats(_: *const f32, _: usize, _: *mut f32) {
    unreachable!("no set that rounds rows is available on this CPU")
}
