//! Rows rounded to bf16, in the order in which both bf16 sets read them.
//!
//! Tiles of sixteen rows and 32 inputs, `[row tile][input tile][row][input]`, 1 KiB each: one of AMX's
//! registers. What stands in the rows that fill up the last tile is unspecified; inputs are filled up
//! with zeros.

#[cfg(target_arch = "x86_64")]
use crate::buffer::ViewMut;
use crate::{buffer::View, lanes::LANES, pool::Pool};

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

/// Words that rounded rows take.
pub(crate) fn rounded_words(rows: usize, inputs: usize) -> usize {
    rows.next_multiple_of(TILE_ROWS) * whole_pairs(inputs)
}

/// Rows in bf16.
#[derive(Clone, Copy)]
pub(crate) struct Rounded {
    /// Each of these "floats" is a word of two bf16.
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
        Self { words: std::ptr::null(), tiles: 0 }
    }

    /// Rounds `x [rows, inputs]` into `words`.
    ///
    /// # Safety
    ///
    /// The CPU has AVX512-BF16; `words` has room for [`rounded_words`], and `x` the shape.
    pub(crate) unsafe fn new(
        words: *mut f32,
        x: View,
        (rows, inputs): (usize, usize),
        pool: &Pool,
    ) -> Self {
        let to = ViewMut { pointer: words, stride: TILE_ROWS * whole_pairs(inputs) };
        pool.run_sized(rows.div_ceil(TILE_ROWS), rows * inputs, &|tile| {
            for row in tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS) {
                // SAFETY: the caller's contract; each row is one task's own.
                unsafe {
                    let to = to.at(tile, row % TILE_ROWS * LANES);
                    super::bf16_avx512::round_row(x.at(row, 0), inputs, to);
                }
            }
        });
        Self { words, tiles: inputs.div_ceil(TILE_INPUTS) }
    }

    /// The rows without the first, which are whole tiles.
    ///
    /// # Safety
    ///
    /// There are that many.
    #[cfg(target_arch = "x86_64")]
    pub(crate) unsafe fn skip_rows(self, rows: usize) -> Self {
        debug_assert!(rows.is_multiple_of(TILE_ROWS), "tasks begin with a tile");
        let words = self.words.wrapping_add(rows / TILE_ROWS * self.tiles * TILE_WORDS);
        Self { words, tiles: self.tiles }
    }
}
