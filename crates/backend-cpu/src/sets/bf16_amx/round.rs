//! Rounding to bf16 into the orders in which tiles are read.
//!
//! Rounding is to nearest, ties to even; denormals become zero.

use std::arch::x86_64::*;

use super::super::{
    bf16_avx512::round_row,
    packed::{TILE_INPUTS, TILE_ROWS, TILE_WORDS},
};
use crate::{buffer::View, lanes::LANES};

/// Rounds rows into tiles `[row tile][input tile][row][input]`, filled up with zeros to whole tiles of
/// inputs; what stands in rows that fill up is unspecified.
///
/// # Safety
///
/// The set is available, `x` has the rows, and there is room for whole tiles at `to`.
pub(super) unsafe fn rows(x: View, (rows, inputs): (usize, usize), to: *mut f32) {
    let row_tile = inputs.div_ceil(TILE_INPUTS) * TILE_WORDS;
    for row in 0..rows {
        let tile = to.add(row / TILE_ROWS * row_tile);
        round_row(x.at(row, 0), inputs, tile.add(row % TILE_ROWS * LANES));
    }
}

/// The same of `scale * x`, with `tiles` tiles of inputs.
///
/// # Safety
///
/// As for [`rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn scaled_rows(
    x: View,
    (rows, inputs): (usize, usize),
    (to, tiles): (*mut f32, usize),
    scale: f32,
) {
    let scale = _mm512_set1_ps(scale);
    for row in 0..rows {
        let line = to.add(row / TILE_ROWS * tiles * TILE_WORDS + row % TILE_ROWS * LANES);
        for tile in 0..tiles {
            let first = tile * TILE_INPUTS;
            let halves = [first, first + LANES].map(|input| {
                let mask = head(inputs.saturating_sub(input));
                let from = x.pointer.wrapping_add(row * x.stride + input);
                _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from), scale)
            });
            store_pairs(line.add(tile * TILE_WORDS), _mm512_cvtne2ps_pbh(halves[1], halves[0]));
        }
    }
}

/// Rounds up to 32 rows of two floats' vectors into a tile of each of `panels` panels, two rows in each
/// word: what multiplies sums over rows. Rows that are missing are zeros.
///
/// # Safety
///
/// The set is available, `x` has the rows and whole panels, and tiles stand `stride` words apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn row_pairs(
    x: View,
    (rows, panels): (usize, usize),
    (to, stride): (*mut f32, usize),
) {
    for pair in 0..TILE_ROWS {
        for panel in 0..panels {
            let [even, odd] = [2 * pair, 2 * pair + 1].map(|row| {
                if row < rows {
                    _mm512_loadu_ps(x.at(row, panel * LANES))
                } else {
                    _mm512_setzero_ps()
                }
            });
            store_words(to.add(panel * stride + pair * LANES), interleave(even, odd));
        }
    }
}

/// The same of rows that are rounded already: `line` says where a row's 32 elements stand, which are those
/// of two panels.
///
/// # Safety
///
/// The set is available, the lines have the rows, and tiles stand `stride` words apart.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn line_pairs(
    line: impl Fn(usize) -> *const f32,
    (rows, panels): (usize, usize),
    (to, stride): (*mut f32, usize),
) {
    const ORDER: [u16; 64] = {
        let mut order = [0; 64];
        let mut i = 0;
        while i < 64 {
            order[i] = (i / 2 + i % 2 * 32) as u16;
            i += 1;
        }
        order
    };
    let orders = [0, 32].map(|i| _mm512_loadu_si512(ORDER[i..].as_ptr().cast()));
    for pair in 0..TILE_ROWS {
        let [even, odd] = [2 * pair, 2 * pair + 1].map(|row| {
            if row < rows { _mm512_loadu_si512(line(row).cast()) } else { _mm512_setzero_si512() }
        });
        for (panel, order) in orders.iter().enumerate().take(panels) {
            let words = _mm512_permutex2var_epi16(even, *order, odd);
            store_words(to.add(panel * stride + pair * LANES), words);
        }
    }
}

/// Rounds up to 32 rows of `scale * x` into tiles whose rows are `x`'s columns: a tile for each sixteen of
/// them, `stride` words apart. Rows that are missing are zeros.
///
/// # Safety
///
/// As for [`row_pairs`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn columns(
    x: View,
    (rows, panels): (usize, usize),
    (to, stride): (*mut f32, usize),
    scale: f32,
) {
    let scale = _mm512_set1_ps(scale);
    for panel in 0..panels {
        let mut words = [_mm512_setzero_si512(); LANES];
        for (pair, words) in words.iter_mut().enumerate().take(rows.div_ceil(2)) {
            let [even, odd] = [2 * pair, 2 * pair + 1].map(|row| {
                if row < rows {
                    _mm512_mul_ps(_mm512_loadu_ps(x.at(row, panel * LANES)), scale)
                } else {
                    _mm512_setzero_ps()
                }
            });
            *words = interleave(even, odd);
        }
        transpose(&mut words);
        for (row, words) in words.iter().enumerate() {
            store_words(to.add(panel * stride + row * LANES), *words);
        }
    }
}

/// Rounds 32 inputs of up to sixteen rows into a tile of a panel, `[pair of inputs][row]`; inputs and rows
/// that are missing are zeros.
///
/// # Safety
///
/// The set is available, and `x` has the rows and inputs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn panel_tile(x: View, (rows, inputs): (usize, usize), to: *mut f32) {
    let mut words = [_mm512_setzero_si512(); LANES];
    for (row, words) in words.iter_mut().enumerate().take(rows) {
        let halves = [0, LANES].map(|input| {
            let from = x.pointer.wrapping_add(row * x.stride + input);
            _mm512_maskz_loadu_ps(head(inputs.saturating_sub(input)), from)
        });
        let pairs = _mm512_cvtne2ps_pbh(halves[1], halves[0]);
        *words = std::mem::transmute::<__m512bh, __m512i>(pairs);
    }
    transpose(&mut words);
    for (pair, words) in words.iter().enumerate() {
        store_words(to.add(pair * LANES), *words);
    }
}

/// The first `count` lanes.
fn head(count: usize) -> u16 {
    if count >= LANES { u16::MAX } else { (1 << count) - 1 }
}

/// Words of an even and an odd element, rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn interleave(even: __m512, odd: __m512) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    let rounded = _mm512_cvtne2ps_pbh(odd, even);
    let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
    _mm512_permutexvar_epi16(order, std::mem::transmute::<__m512bh, __m512i>(rounded))
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_words(to: *mut f32, words: __m512i) {
    _mm512_storeu_si512(to.cast(), words);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn store_pairs(to: *mut f32, pairs: __m512bh) {
    store_words(to, std::mem::transmute::<__m512bh, __m512i>(pairs));
}

/// Sixteen vectors of sixteen words, rows for columns.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose(rows: &mut [__m512i; LANES]) {
    let mut halves = [_mm512_setzero_si512(); LANES];
    for i in 0..8 {
        halves[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        halves[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Now each 128-bit lane of `quads[4 g + c]` has column `4 lane + c` of rows `4 g` to `4 g + 3`.
    let mut quads = [_mm512_setzero_si512(); LANES];
    for g in 0..4 {
        for c in 0..2 {
            let (low, high) = (halves[4 * g + c], halves[4 * g + c + 2]);
            quads[4 * g + 2 * c] = _mm512_unpacklo_epi64(low, high);
            quads[4 * g + 2 * c + 1] = _mm512_unpackhi_epi64(low, high);
        }
    }
    for c in 0..4 {
        let [a, b, d, e] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let even = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(d, e)];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(d, e)];
        rows[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        rows[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        rows[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        rows[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
}
