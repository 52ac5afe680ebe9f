//! The set `bf16-amx`: tiles of bf16, multiplied and summed in f32 by `tdpbf16ps`.
//!
//! An element is one chain over its inputs, 32 at a time: each instruction sums the products of its
//! sixteen even inputs and of its sixteen odd ones, each a chain from zero, adds the two, and adds that
//! to the element. So the sums are those of blocks of 32, folded in order; how many rows a tile has
//! changes none. The instruction takes denormals for zero, in what it reads and what it gives.

use std::{
    arch::{
        asm,
        x86_64::{__cpuid_count, _xgetbv},
    },
    sync::OnceLock,
};

use super::packed::{RoundedTile, TILE_ROWS, TILE_WORDS};
use crate::lanes::LANES;

/// Tiles of inputs that are multiplied before the next rows come, so that their weights stay in the
/// first cache; the sums go on where they stood.
const NEAR_TILES: usize = 16;

/// Whether the CPU has the instructions, the system keeps their registers, and lets this process use
/// them: that is asked for once.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && system_keeps_tiles() && ask_for_tiles())
}

fn has_instructions() -> bool {
    /// AMX-BF16 and AMX-TILE.
    const BITS: u32 = 1 << 22 | 1 << 24;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS
}

fn system_keeps_tiles() -> bool {
    /// The tile configuration and the tiles.
    const BITS: u64 = 1 << 17 | 1 << 18;
    #[target_feature(enable = "xsave")]
    unsafe fn enabled() -> u64 {
        _xgetbv(0)
    }
    // `xsave` is detected only where the system has enabled `xgetbv` too.
    // SAFETY: as just asked.
    is_x86_feature_detected!("xsave") && unsafe { enabled() } & BITS == BITS
}

/// Linux gives the tiles' registers to a process that asks.
fn ask_for_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes what registers the process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

/// What `ldtilecfg` reads: four tiles of sums, two of rows, two of weights.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes in a row of each tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    const fn new(rows: u8) -> Self {
        let mut configuration =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            configuration.row_bytes[tile] = 64;
            configuration.rows[tile] = if tile < 6 { rows } else { TILE_ROWS as u8 };
            tile += 1;
        }
        configuration
    }

    /// # Safety
    ///
    /// The CPU has AMX and the process its permission.
    unsafe fn load(&self) {
        asm!("ldtilecfg [{}]", in(reg) self, options(nostack));
    }
}

/// Computes one part of a product.
///
/// # Safety
///
/// The set is available, and the tile's views reach all it names.
pub(crate) unsafe fn multiply(tile: &RoundedTile) {
    let (whole, rest) = (tile.rows / TILE_ROWS, tile.rows % TILE_ROWS);
    if whole > 0 {
        const { &Configuration::new(TILE_ROWS as u8) }.load();
        let mut start = 0;
        while start < tile.x.tiles {
            Near { tile, start, count: NEAR_TILES.min(tile.x.tiles - start) }.multiply(whole);
            start += NEAR_TILES;
        }
    }
    if rest > 0 {
        Configuration::new(rest as u8).load();
        Near { tile, start: 0, count: tile.x.tiles }.row_of_tiles(whole);
    }
    asm!("tilerelease", options(nostack));
}

/// Some consecutive tiles of inputs.
struct Near<'a> {
    tile: &'a RoundedTile,
    start: usize,
    count: usize,
}

impl Near<'_> {
    /// Two by two tiles of sums at once, while two panels of weights are near.
    unsafe fn multiply(&self, row_tiles: usize) {
        let mut panel = 0;
        while panel + 2 <= self.tile.panels {
            let mut row_tile = 0;
            while row_tile + 2 <= row_tiles {
                self.two_by_two(row_tile, panel);
                row_tile += 2;
            }
            panel += 2;
        }
        if panel < self.tile.panels {
            for row_tile in 0..row_tiles / 2 * 2 {
                self.one_by_one(row_tile, panel);
            }
        }
        if row_tiles % 2 == 1 {
            self.row_of_tiles(row_tiles - 1);
        }
    }

    /// One tile of rows, four panels at once.
    unsafe fn row_of_tiles(&self, row_tile: usize) {
        let mut panel = 0;
        while panel + 4 <= self.tile.panels {
            self.one_by_four(row_tile, panel);
            panel += 4;
        }
        while panel < self.tile.panels {
            self.one_by_one(row_tile, panel);
            panel += 1;
        }
    }

    /// Where a tile of rows begins.
    fn x(&self, row_tile: usize) -> *const f32 {
        let x = &self.tile.x;
        x.words.wrapping_add((row_tile * x.tiles + self.start) * TILE_WORDS)
    }

    /// Where a panel begins.
    fn w(&self, panel: usize) -> *const f32 {
        let w = &self.tile.w;
        w.pointer.wrapping_add(panel * w.stride + self.start * TILE_WORDS)
    }

    fn out(&self, row_tile: usize, panel: usize) -> *mut f32 {
        let out = &self.tile.out;
        out.pointer.wrapping_add(row_tile * TILE_ROWS * out.stride + panel * LANES)
    }

    unsafe fn two_by_two(&self, row_tile: usize, panel: usize) {
        asm!(
            "test {start}, {start}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{upper} + {stride}]",
            "tileloadd tmm1, [{upper} + {stride} + 64]",
            "tileloadd tmm2, [{lower} + {stride}]",
            "tileloadd tmm3, [{lower} + {stride} + 64]",
            "3:",
            "tileloadd tmm4, [{x0} + {line}]",
            "tileloadd tmm6, [{w0} + {line}]",
            "tileloadd tmm7, [{w1} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x1} + {line}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "add {w0}, 1024",
            "add {w1}, 1024",
            "dec {count}",
            "jnz 3b",
            "tilestored [{upper} + {stride}], tmm0",
            "tilestored [{upper} + {stride} + 64], tmm1",
            "tilestored [{lower} + {stride}], tmm2",
            "tilestored [{lower} + {stride} + 64], tmm3",
            start = in(reg) self.start,
            upper = in(reg) self.out(row_tile, panel),
            lower = in(reg) self.out(row_tile + 1, panel),
            stride = in(reg) self.tile.out.stride * size_of::<f32>(),
            line = in(reg) 64usize,
            x0 = inout(reg) self.x(row_tile) => _,
            x1 = inout(reg) self.x(row_tile + 1) => _,
            w0 = inout(reg) self.w(panel) => _,
            w1 = inout(reg) self.w(panel + 1) => _,
            count = inout(reg) self.count => _,
            options(nostack),
        );
    }

    unsafe fn one_by_four(&self, row_tile: usize, panel: usize) {
        asm!(
            "test {start}, {start}",
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
            "tileloadd tmm4, [{x} + {line}]",
            "tileloadd tmm6, [{w0} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w1} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm6, [{w2} + {line}]",
            "tdpbf16ps tmm2, tmm4, tmm6",
            "tileloadd tmm7, [{w3} + {line}]",
            "tdpbf16ps tmm3, tmm4, tmm7",
            "add {x}, 1024",
            "add {w0}, 1024",
            "add {w1}, 1024",
            "add {w2}, 1024",
            "add {w3}, 1024",
            "dec {count}",
            "jnz 3b",
            "tilestored [{out} + {stride}], tmm0",
            "tilestored [{out} + {stride} + 64], tmm1",
            "tilestored [{out} + {stride} + 128], tmm2",
            "tilestored [{out} + {stride} + 192], tmm3",
            start = in(reg) self.start,
            out = in(reg) self.out(row_tile, panel),
            stride = in(reg) self.tile.out.stride * size_of::<f32>(),
            line = in(reg) 64usize,
            x = inout(reg) self.x(row_tile) => _,
            w0 = inout(reg) self.w(panel) => _,
            w1 = inout(reg) self.w(panel + 1) => _,
            w2 = inout(reg) self.w(panel + 2) => _,
            w3 = inout(reg) self.w(panel + 3) => _,
            count = inout(reg) self.count => _,
            options(nostack),
        );
    }

    unsafe fn one_by_one(&self, row_tile: usize, panel: usize) {
        asm!(
            "test {start}, {start}",
            "jnz 2f",
            "tilezero tmm0",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{out} + {stride}]",
            "3:",
            "tileloadd tmm4, [{x} + {line}]",
            "tileloadd tmm6, [{w} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "add {x}, 1024",
            "add {w}, 1024",
            "dec {count}",
            "jnz 3b",
            "tilestored [{out} + {stride}], tmm0",
            start = in(reg) self.start,
            out = in(reg) self.out(row_tile, panel),
            stride = in(reg) self.tile.out.stride * size_of::<f32>(),
            line = in(reg) 64usize,
            x = inout(reg) self.x(row_tile) => _,
            w = inout(reg) self.w(panel) => _,
            count = inout(reg) self.count => _,
            options(nostack),
        );
    }
}
