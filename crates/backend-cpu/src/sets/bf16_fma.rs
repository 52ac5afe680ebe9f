//! What `vdpbf16ps` computes, to the bit, by two fused multiply-adds with denormals taken for zero.
//!
//! Intel's cores do one `vdpbf16ps` in two cycles and four fused multiply-adds, half the products: so
//! widened factors are faster, except where a weight meets so few rows that widening it is the work.

use std::arch::{
    asm,
    x86_64::{__cpuid, _mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps},
};
use std::{mem::MaybeUninit, sync::OnceLock};

use tinsmith_backend::LINEAR_BLOCK;

use super::packed::{RoundedTile, TILE_INPUTS};
use crate::lanes::LANES;

/// Rows from which this is the faster way.
const LEAST_ROWS: usize = 4;

/// Whether a product of so many rows is better computed here.
///
/// By the maker, for other makers' cores do `vdpbf16ps` as fast as it reads, and their agreement to the
/// bit is not known.
pub(crate) fn is_faster(rows: usize) -> bool {
    static INTEL: OnceLock<bool> = OnceLock::new();
    let is_intel = || {
        let leaf = __cpuid(0);
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
    };
    rows >= LEAST_ROWS && *INTEL.get_or_init(is_intel)
}

/// Computes one part of a product, of rows that are rounded floats.
///
/// # Safety
///
/// The CPU has AVX-512F, and the tile's views reach all it names, rows up to a multiple of four.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn multiply(tile: &RoundedTile) {
    let pairs = tile.x.tiles * TILE_INPUTS / 2;
    let mut start = 0;
    while start < pairs {
        let block = Block { tile, start, pairs: (LINEAR_BLOCK / 2).min(pairs - start) };
        for panel in (0..tile.panels).step_by(2) {
            let mut row = 0;
            while row < tile.rows {
                row += match tile.rows - row {
                    12.. => block.fold::<12>(row, panel, twelve_rows),
                    5.. => block.fold::<8>(row, panel, eight_rows),
                    _ => block.fold::<4>(row, panel, four_rows),
                };
            }
        }
        start += LINEAR_BLOCK / 2;
    }
}

/// Some consecutive pairs of inputs.
struct Block<'a> {
    tile: &'a RoundedTile,
    start: usize,
    pairs: usize,
}

/// What a microkernel reads.
struct Factors {
    x: *const f32,
    /// Floats from row to row.
    x_stride: usize,
    w: *const f32,
    /// Floats from panel to panel.
    w_stride: usize,
    pairs: usize,
}

/// Room for the sums of twelve rows by two panels.
type Sums = MaybeUninit<[[f32; 2 * LANES]; 12]>;

impl Block<'_> {
    /// Two panels of `R` rows; answers `R`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn fold<const R: usize>(
        &self,
        row: usize,
        panel: usize,
        multiply: unsafe fn(&Factors, &mut Sums),
    ) -> usize {
        let tile = self.tile;
        let panels = 2.min(tile.panels - panel);
        let x_stride = tile.x.row_stride();
        let factors = Factors {
            x: tile.x.words.add(row * x_stride + 2 * self.start),
            x_stride,
            w: tile.w.at(panel, self.start * LANES),
            // The last of an odd number of panels is multiplied twice.
            w_stride: if panels == 2 { tile.w.stride } else { 0 },
            pairs: self.pairs,
        };
        let mut sums = Sums::uninit();
        multiply(&factors, &mut sums);
        let sums = sums.as_ptr().cast::<f32>();
        for r in 0..R.min(tile.rows - row) {
            for p in 0..panels {
                let to = tile.out.at(row + r, (panel + p) * LANES);
                let sum = _mm512_loadu_ps(sums.add((2 * r + p) * LANES));
                let first = self.start == 0;
                _mm512_storeu_ps(
                    to,
                    if first { sum } else { _mm512_add_ps(_mm512_loadu_ps(to), sum) },
                );
            }
        }
        R
    }
}

/// MXCSR: no exceptions, to nearest, denormals read and given as zero.
static FLUSHING: u32 = 0x9fc0;

/// One input of each pair: a factor of each row (address, sums) times the vectors of two panels.
macro_rules! accumulate {
    ($offset:literal, $left:literal, $right:literal, $(($x:literal, $a:literal, $b:literal))*) => {
        concat!($(
            "vbroadcastss zmm29, dword ptr [", $x, $offset, "]\n",
            "vfmadd231ps zmm", $a, ", zmm29, ", $left, "\n",
            "vfmadd231ps zmm", $b, ", zmm29, ", $right, "\n",
        )*)
    };
}

/// A microkernel: chains from zero over all pairs, the odd input of each first.
macro_rules! microkernel {
    ($name:ident, $(($x:literal, $a:literal, $b:literal))*) => {
        #[target_feature(enable = "avx512f")]
        unsafe fn $name(factors: &Factors, sums: &mut Sums) {
            let mut control = 0u32;
            let (x, stride) = (factors.x, factors.x_stride);
            asm!(
                "stmxcsr [{control}]",
                "ldmxcsr [{flushing}]",
                "vpternlogd zmm28, zmm28, zmm28, 255",
                "vpslld zmm28, zmm28, 16",
                concat!($(
                    "vpxord zmm", $a, ", zmm", $a, ", zmm", $a, "\n",
                    "vpxord zmm", $b, ", zmm", $b, ", zmm", $b, "\n",
                )*),
                "2:",
                "vmovups zmm26, [{w}]",
                "vmovups zmm27, [{w} + {w_stride}]",
                "vpandd zmm24, zmm26, zmm28",
                "vpandd zmm25, zmm27, zmm28",
                "vpslld zmm26, zmm26, 16",
                "vpslld zmm27, zmm27, 16",
                accumulate!(" + 4", "zmm24", "zmm25", $(($x, $a, $b))*),
                accumulate!("", "zmm26", "zmm27", $(($x, $a, $b))*),
                "add {x0}, 8",
                "add {x3}, 8",
                "add {x6}, 8",
                "add {x9}, 8",
                "add {w}, 64",
                "dec {pairs}",
                "jnz 2b",
                concat!($(
                    "vmovups [{sums} + 64 * ", $a, "], zmm", $a, "\n",
                    "vmovups [{sums} + 64 * ", $b, "], zmm", $b, "\n",
                )*),
                "ldmxcsr [{control}]",
                control = in(reg) &raw mut control,
                flushing = in(reg) &raw const FLUSHING,
                x0 = inout(reg) x => _,
                x3 = inout(reg) x.wrapping_add(3 * stride) => _,
                x6 = inout(reg) x.wrapping_add(6 * stride) => _,
                x9 = inout(reg) x.wrapping_add(9 * stride) => _,
                stride = in(reg) stride * size_of::<f32>(),
                w = inout(reg) factors.w => _,
                w_stride = in(reg) factors.w_stride * size_of::<f32>(),
                pairs = inout(reg) factors.pairs => _,
                sums = in(reg) sums.as_mut_ptr(),
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _,
                out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _,
                out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _,
                out("zmm15") _, out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _, out("zmm24") _,
                out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
                options(nostack),
            );
        }
    };
}

microkernel!(
    twelve_rows,
    ("{x0}", 0, 1)("{x0} + {stride}", 2, 3)("{x0} + 2*{stride}", 4, 5)("{x3}", 6, 7)(
        "{x3} + {stride}",
        8,
        9
    )("{x3} + 2*{stride}", 10, 11)("{x6}", 12, 13)("{x6} + {stride}", 14, 15)(
        "{x6} + 2*{stride}",
        16,
        17
    )("{x9}", 18, 19)("{x9} + {stride}", 20, 21)("{x9} + 2*{stride}", 22, 23)
);
microkernel!(
    eight_rows,
    ("{x0}", 0, 1)("{x0} + {stride}", 2, 3)("{x0} + 2*{stride}", 4, 5)("{x3}", 6, 7)(
        "{x3} + {stride}",
        8,
        9
    )("{x3} + 2*{stride}", 10, 11)("{x6}", 12, 13)("{x6} + {stride}", 14, 15)
);
microkernel!(
    four_rows,
    ("{x0}", 0, 1)("{x0} + {stride}", 2, 3)("{x0} + 2*{stride}", 4, 5)("{x3}", 6, 7)
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        buffer::{Buffer, View, ViewMut},
        pool::Pool,
        sets::{
            bf16_avx512,
            packed::{Layout, Rounded, whole_pairs},
        },
    };

    /// Words of any bits whose exponent, of bf16, is near `exponent`.
    fn words(seed: u64, count: usize, exponent: u32) -> Buffer {
        let mut state = seed;
        let mut words = Buffer::zeros(count).unwrap();
        for i in 0..count {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x1405_7b7e_f767);
            let bits = (state >> 32) as u32;
            let half = |bits: u32| bits & 0x807f | (exponent + (bits >> 7 & 7)) << 7;
            let word = half(bits & 0xffff) | half(bits >> 16) << 16;
            // SAFETY: the buffer has so many.
            unsafe { words.pointer_mut().add(i).write(f32::from_bits(word)) };
        }
        words
    }

    fn product(layout: Layout, exponent: u32, (rows, inputs): (usize, usize)) -> Vec<u32> {
        const PANELS: usize = 3;
        let depth = whole_pairs(inputs) * LANES;
        let x = words(1, rows * inputs, exponent);
        let weights = words(2, PANELS * depth, exponent);
        let mut rounded = Buffer::zeros(layout.words(rows, inputs)).unwrap();
        let mut out = Buffer::zeros(rows * PANELS * LANES).unwrap();
        let x = View { pointer: x.pointer(), stride: inputs };
        let to = (rounded.pointer_mut(), layout);
        // SAFETY: all buffers have the sizes that are named; the CPU was asked.
        unsafe {
            let tile = RoundedTile {
                x: Rounded::new(to, x, (rows, inputs), &Pool::new(1).unwrap()),
                rows,
                w: View { pointer: weights.pointer(), stride: depth },
                panels: PANELS,
                out: ViewMut { pointer: out.pointer_mut(), stride: PANELS * LANES },
            };
            bf16_avx512::multiply(&tile);
            let values = std::slice::from_raw_parts(out.pointer(), rows * PANELS * LANES);
            values.iter().map(|value| value.to_bits()).collect()
        }
    }

    #[test]
    fn both_ways_give_the_same_bits() {
        if !bf16_avx512::is_available() {
            println!("not run: this CPU lacks AVX512-BF16");
            return;
        }
        let vendor = is_faster(LEAST_ROWS);
        println!("multiply-adds are {}", if vendor { "chosen" } else { "not chosen here" });
        // Denormal factors, products and sums of denormals around the least normal number, and others.
        for exponent in [0, 1, 48, 56, 58, 60, 62, 64, 120, 180] {
            for shape in [(1, 7), (4, 32), (13, 33), (23, 600), (41, 300)] {
                let want = product(Layout::Tiles, exponent, shape);
                let got = product(Layout::Floats, exponent, shape);
                assert!(want == got || !vendor, "{shape:?} at exponent {exponent}");
            }
        }
    }
}
