//! Products of AMX's tiles that attention is made of, and its exponential.
//!
//! A tile of factors is sixteen lines of 32 bf16, 1 KiB. Left factors lie as rows, right ones as pairs:
//! a line has sixteen columns of two consecutive inputs. Sums are those of `sets/bf16_amx.rs`.

use std::arch::{asm, x86_64::*};

use crate::lanes::LANES;
pub(crate) use crate::sets::packed::{TILE_ROWS, TILE_WORDS};

/// What `ldtilecfg` reads: four tiles of sums and two of left factors, of so many rows; two of right ones.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Lets the tiles of sums and left factors have so many rows, at most sixteen.
///
/// # Safety
///
/// The CPU has AMX and the process its permission.
pub(crate) unsafe fn configure(rows: usize) {
    let mut configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    configuration.row_bytes[..8].fill(64);
    configuration.rows[..6].fill(rows as u8);
    configuration.rows[6..8].fill(TILE_ROWS as u8);
    asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack));
}

/// Gives the tiles back.
///
/// # Safety
///
/// As for [`configure`].
pub(crate) unsafe fn release() {
    asm!("tilerelease", options(nostack));
}

/// Where sums go: `stride` floats from row to row.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) pointer: *mut f32,
    pub(crate) stride: usize,
    /// Whether they are added to what stands there.
    pub(crate) add: bool,
}

impl Sums {
    fn row_bytes(&self) -> usize {
        self.stride * size_of::<f32>()
    }

    /// The rows and columns from there on.
    pub(crate) fn at(self, row: usize, column: usize) -> Self {
        Self { pointer: self.pointer.wrapping_add(row * self.stride + column), ..self }
    }
}

/// `sums = a b` for two tiles of rows and two of columns. From one tile of inputs to the next `a` goes one
/// tile on, `b` two: its tiles of columns stand side by side.
///
/// # Safety
///
/// Tiles of sixteen rows are configured; all factors and sums exist.
pub(crate) unsafe fn two_by_two(a: [*const f32; 2], b: *const f32, inputs: usize, sums: Sums) {
    asm!(
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3",
        "2:",
        "tileloadd tmm4, [{a0} + {line}]",
        "tileloadd tmm6, [{b} + {line}]",
        "tileloadd tmm7, [{b} + {line} + 1024]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{a1} + {line}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "add {a0}, 1024",
        "add {a1}, 1024",
        "add {b}, 2048",
        "dec {count}",
        "jnz 2b",
        "tilestored [{upper} + {stride}], tmm0",
        "tilestored [{upper} + {stride} + 64], tmm1",
        "tilestored [{lower} + {stride}], tmm2",
        "tilestored [{lower} + {stride} + 64], tmm3",
        a0 = inout(reg) a[0] => _,
        a1 = inout(reg) a[1] => _,
        b = inout(reg) b => _,
        count = inout(reg) inputs => _,
        line = in(reg) 64usize,
        upper = in(reg) sums.pointer,
        lower = in(reg) sums.at(TILE_ROWS, 0).pointer,
        stride = in(reg) sums.row_bytes(),
        options(nostack),
    );
}

/// The same for one tile of rows.
///
/// # Safety
///
/// As many rows are configured as there are; all factors and sums exist.
pub(crate) unsafe fn one_by_two(a: *const f32, b: *const f32, inputs: usize, sums: Sums) {
    asm!(
        "tilezero tmm0",
        "tilezero tmm1",
        "2:",
        "tileloadd tmm4, [{a} + {line}]",
        "tileloadd tmm6, [{b} + {line}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {line} + 1024]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "add {a}, 1024",
        "add {b}, 2048",
        "dec {count}",
        "jnz 2b",
        "tilestored [{out} + {stride}], tmm0",
        "tilestored [{out} + {stride} + 64], tmm1",
        a = inout(reg) a => _,
        b = inout(reg) b => _,
        count = inout(reg) inputs => _,
        line = in(reg) 64usize,
        out = in(reg) sums.pointer,
        stride = in(reg) sums.row_bytes(),
        options(nostack),
    );
}

/// `sums (+)= a b` for one tile of rows and `panels` of columns: from one tile of inputs to the next `a`
/// goes a tile on and `b` so many words; its columns stand side by side.
///
/// # Safety
///
/// As for [`one_by_two`].
pub(crate) unsafe fn one_by_many(
    a: *const f32,
    (b, step): (*const f32, usize),
    (inputs, panels): (usize, usize),
    sums: Sums,
) {
    /// Features of the greatest head, by tiles of inputs.
    const MOST: usize = 32;
    let mut places = [std::ptr::null(); MOST];
    for (i, place) in places[..inputs].iter_mut().enumerate() {
        *place = b.wrapping_add(i * step);
    }
    one_by_places(a, &places[..inputs], panels, sums);
}

/// The same where the tiles of inputs of `b` begin anywhere.
///
/// # Safety
///
/// As for [`one_by_two`].
pub(crate) unsafe fn one_by_places(a: *const f32, b: &[*const f32], panels: usize, sums: Sums) {
    let mut panel = 0;
    while panel + 4 <= panels {
        one_by_four(a, (b, panel * TILE_WORDS), sums.at(0, panel * LANES));
        panel += 4;
    }
    while panel < panels {
        one_by_one(a, (b, panel * TILE_WORDS), sums.at(0, panel * LANES));
        panel += 1;
    }
}

unsafe fn one_by_four(a: *const f32, (b, offset): (&[*const f32], usize), sums: Sums) {
    asm!(
        "test {add}, {add}",
        "jnz 2f",
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3",
        "jmp 3f",
        "2:",
        "tileloadd tmm0, [{out} + {stride}]",
        "tileloadd tmm1, [{out} + {stride} + 64]",
        "tileloadd tmm2, [{out} + {stride} + 128]",
        "tileloadd tmm3, [{out} + {stride} + 192]",
        "3:",
        "mov {right}, [{b}]",
        "add {right}, {offset}",
        "tileloadd tmm4, [{a} + {line}]",
        "tileloadd tmm6, [{right} + {line}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{right} + {line} + 1024]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm6, [{right} + {line} + 2048]",
        "tdpbf16ps tmm2, tmm4, tmm6",
        "tileloadd tmm7, [{right} + {line} + 3072]",
        "tdpbf16ps tmm3, tmm4, tmm7",
        "add {a}, 1024",
        "add {b}, 8",
        "dec {count}",
        "jnz 3b",
        "tilestored [{out} + {stride}], tmm0",
        "tilestored [{out} + {stride} + 64], tmm1",
        "tilestored [{out} + {stride} + 128], tmm2",
        "tilestored [{out} + {stride} + 192], tmm3",
        add = in(reg) usize::from(sums.add),
        out = in(reg) sums.pointer,
        stride = in(reg) sums.row_bytes(),
        line = in(reg) 64usize,
        right = out(reg) _,
        offset = in(reg) offset * size_of::<f32>(),
        a = inout(reg) a => _,
        b = inout(reg) b.as_ptr() => _,
        count = inout(reg) b.len() => _,
        options(nostack),
    );
}

unsafe fn one_by_one(a: *const f32, (b, offset): (&[*const f32], usize), sums: Sums) {
    asm!(
        "test {add}, {add}",
        "jnz 2f",
        "tilezero tmm0",
        "jmp 3f",
        "2:",
        "tileloadd tmm0, [{out} + {stride}]",
        "3:",
        "mov {right}, [{b}]",
        "add {right}, {offset}",
        "tileloadd tmm4, [{a} + {line}]",
        "tileloadd tmm6, [{right} + {line}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "add {a}, 1024",
        "add {b}, 8",
        "dec {count}",
        "jnz 3b",
        "tilestored [{out} + {stride}], tmm0",
        add = in(reg) usize::from(sums.add),
        out = in(reg) sums.pointer,
        stride = in(reg) sums.row_bytes(),
        line = in(reg) 64usize,
        right = out(reg) _,
        offset = in(reg) offset * size_of::<f32>(),
        a = inout(reg) a => _,
        b = inout(reg) b.as_ptr() => _,
        count = inout(reg) b.len() => _,
        options(nostack),
    );
}

/// `2^x` for x up to 127, within 2 units in the last place; 0 where the result would be subnormal.
///
/// `x = n + r` with `|r| <= 1/2`, then the polynomial of degree 5, 1 at 0, whose greatest relative error is
/// least (9.1e-8).
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn exp2(x: __m512) -> __m512 {
    /// Near ln 2, the polynomial's own.
    const LINEAR: f32 = f32::from_bits(0x3f31_7215);
    const MINIMAX: [f32; 5] = [0.009_671_513, 0.055_507_336, 0.240_222_42, LINEAR, 1.0];
    let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let r = _mm512_sub_ps(x, n);
    let mut sum = _mm512_set1_ps(0.001_326_472_7);
    for coefficient in MINIMAX {
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(coefficient));
    }
    _mm512_maskz_scalef_ps(normal, sum, n)
}

/// The first lanes, at most `count`.
pub(crate) fn head(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// Sixteen lines as columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn transpose(lines: [__m512; LANES]) -> [__m512; LANES] {
    let mut pairs = lines;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(lines[i], lines[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(lines[i], lines[i + 1]);
    }
    let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    let high =
        |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    // Quarter `l` of fours[4 g + j] is column 4 l + j of lines 4 g and on.
    let mut fours = pairs;
    for i in (0..LANES).step_by(4) {
        fours[i] = low(pairs[i], pairs[i + 2]);
        fours[i + 1] = high(pairs[i], pairs[i + 2]);
        fours[i + 2] = low(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = high(pairs[i + 1], pairs[i + 3]);
    }
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xdd;
    let mut columns = lines;
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let (x, y) = (_mm512_shuffle_f32x4::<EVEN>(a, b), _mm512_shuffle_f32x4::<ODD>(a, b));
        let (z, w) = (_mm512_shuffle_f32x4::<EVEN>(c, d), _mm512_shuffle_f32x4::<ODD>(c, d));
        columns[j] = _mm512_shuffle_f32x4::<EVEN>(x, z);
        columns[4 + j] = _mm512_shuffle_f32x4::<EVEN>(y, w);
        columns[8 + j] = _mm512_shuffle_f32x4::<ODD>(x, z);
        columns[12 + j] = _mm512_shuffle_f32x4::<ODD>(y, w);
    }
    columns
}

/// For `_mm512_permutexvar_epi16`: the lower sixteen of 32 halves beside the upper sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn interleaving() -> __m512i {
    places(0, 16)
}

/// For `_mm512_permutex2var_epi16`: halves of one beside those of the other, the lower and the upper.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn interleavings_of_two() -> [__m512i; 2] {
    [places(0, 32), places(16, 48)]
}

/// `even, odd, even + 1, odd + 1, …`
#[inline]
#[target_feature(enable = "avx512f")]
fn places(even: i32, odd: i32) -> __m512i {
    let counts = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let even = _mm512_add_epi32(counts, _mm512_set1_epi32(even));
    let odd = _mm512_add_epi32(counts, _mm512_set1_epi32(odd));
    _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd))
}
