//! The set `bf16-avx512`: pairs of bf16 products, summed in f32 by `vdpbf16ps`.
//!
//! For each block of inputs an element is one chain from zero: each instruction adds the product of a
//! pair's odd inputs, then that of its even ones, each rounded once; the blocks' sums are folded in
//! order. The instruction takes denormals for zero, in what it reads and what it gives.

use std::arch::x86_64::*;

use tinsmith_backend::LINEAR_BLOCK;

use super::{
    bf16_fma,
    packed::{Layout, RoundedTile, TILE_INPUTS, TILE_ROWS, TILE_WORDS},
};
use crate::lanes::LANES;

/// Tiles of inputs in one chain.
const BLOCK_TILES: usize = LINEAR_BLOCK / TILE_INPUTS;

pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// Rounds a row to bf16, to nearest, ties to even; denormals become zero. `to` leads to the row in its
/// first tile.
///
/// # Safety
///
/// The CPU has AVX512-BF16; the row has `inputs` floats, and `to` leads to all its tiles.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn round_row(from: *const f32, inputs: usize, to: *mut f32) {
    let mut to = to.cast::<__m512bh>();
    for input in (0..inputs).step_by(TILE_INPUTS) {
        to.write(round_tile(from.wrapping_add(input), inputs - input));
        to = to.wrapping_add(TILE_ROWS);
    }
}

/// The same, widened again: `to` is a row of floats.
///
/// # Safety
///
/// The CPU has AVX512-BF16; the row has `inputs` floats, and `to` room for whole tiles.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn round_floats(from: *const f32, inputs: usize, to: *mut f32) {
    for input in (0..inputs).step_by(TILE_INPUTS) {
        let rounded = round_tile(from.wrapping_add(input), inputs - input);
        let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
        let halves = [_mm512_castsi512_si256(rounded), _mm512_extracti64x4_epi64::<1>(rounded)];
        for (i, half) in halves.into_iter().enumerate() {
            let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
            _mm512_storeu_ps(to.add(input + i * LANES), _mm512_castsi512_ps(wide));
        }
    }
}

/// The first 32 of `left` inputs, filled up with zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round_tile(from: *const f32, left: usize) -> __m512bh {
    let (low, high) = if left >= TILE_INPUTS {
        (_mm512_loadu_ps(from), _mm512_loadu_ps(from.wrapping_add(LANES)))
    } else {
        let mask = (1u32 << left) - 1;
        let high = from.wrapping_add(LANES);
        (
            _mm512_maskz_loadu_ps(mask as u16, from),
            _mm512_maskz_loadu_ps((mask >> LANES) as u16, high),
        )
    };
    _mm512_cvtne2ps_pbh(high, low)
}

/// Computes one part of a product.
///
/// # Safety
///
/// The CPU has AVX512-BF16, and the tile's views reach all it names.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn multiply(tile: &RoundedTile) {
    if tile.x.layout == Layout::Floats {
        return bf16_fma::multiply(tile);
    }
    let mut start = 0;
    while start < tile.x.tiles {
        let mut row = 0;
        while row < tile.rows {
            // Accumulators take 24 of 32 registers; short blocks take more panels at once, for enough
            // independent chains. No group of rows goes beyond a tile.
            row += match tile.rows - row {
                8.. => strip::<8, 3>(tile, row, start),
                4.. => strip::<4, 4>(tile, row, start),
                2.. => strip::<2, 4>(tile, row, start),
                _ => strip::<1, 4>(tile, row, start),
            };
        }
        start += BLOCK_TILES;
    }
}

/// Does `R` rows, and answers how many that is.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn strip<const R: usize, const P: usize>(
    tile: &RoundedTile,
    row: usize,
    start: usize,
) -> usize {
    let mut panel = 0;
    while panel + P <= tile.panels {
        block::<R, P>(tile, (row, panel), start);
        panel += P;
    }
    while panel < tile.panels {
        block::<R, 1>(tile, (row, panel), start);
        panel += 1;
    }
    R
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(clippy::needless_range_loop, reason = "unrolled by index over three arrays")]
unsafe fn block<const R: usize, const P: usize>(
    tile: &RoundedTile,
    (row, panel): (usize, usize),
    start: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    let first = (row / TILE_ROWS * tile.x.tiles + start) * TILE_WORDS;
    let mut x = tile.x.words.add(first + row % TILE_ROWS * LANES).cast::<i32>();
    let mut w = tile.w.at(panel, start * TILE_WORDS);
    for _ in start..tile.x.tiles.min(start + BLOCK_TILES) {
        for pair in 0..LANES {
            let mut vectors = [_mm512_setzero_ps(); P];
            for p in 0..P {
                vectors[p] = _mm512_loadu_ps(w.wrapping_add(p * tile.w.stride));
            }
            for r in 0..R {
                let factor = _mm512_set1_epi32(*x.add(r * LANES + pair));
                for p in 0..P {
                    sums[r][p] = _mm512_dpbf16_ps(
                        sums[r][p],
                        std::mem::transmute::<__m512i, __m512bh>(factor),
                        std::mem::transmute::<__m512, __m512bh>(vectors[p]),
                    );
                }
            }
            w = w.wrapping_add(LANES);
        }
        x = x.wrapping_add(TILE_WORDS);
    }
    for r in 0..R {
        for p in 0..P {
            let to = tile.out.at(row + r, (panel + p) * LANES);
            let sum = sums[r][p];
            _mm512_storeu_ps(
                to,
                if start == 0 { sum } else { _mm512_add_ps(_mm512_loadu_ps(to), sum) },
            );
        }
    }
}
