//! The instructions on tiles: two by two tiles of sums, or one by four.
//!
//! Sums stay in tiles 0 to 3 from one of these functions to the next: nothing but this file touches the
//! tiles' registers, and the system keeps them for each thread.

use std::arch::asm;

use super::super::packed::TILE_ROWS;
use crate::lanes::LANES;

/// Bytes of one line of a tile of factors.
const LINE: usize = 64;
/// Bytes of a tile of factors.
const TILE: usize = 1024;

/// What `ldtilecfg` reads: four tiles of sums, two of rows, two of weights.
#[repr(C, align(64))]
pub(super) struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes in a row of each tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// Two tiles of rows.
    pub(super) const fn pair(upper: usize, lower: usize) -> Self {
        let (upper, lower) = (upper as u8, lower as u8);
        Self::new([upper, upper, lower, lower, upper, lower])
    }

    /// One tile of rows.
    pub(super) const fn single(rows: usize) -> Self {
        Self::new([rows as u8; 6])
    }

    const fn new(of_tiles: [u8; 6]) -> Self {
        let mut row_bytes = [0; 16];
        let mut rows = [0; 16];
        let mut tile = 0;
        while tile < 8 {
            row_bytes[tile] = LINE as u16;
            rows[tile] = if tile < 6 { of_tiles[tile] } else { TILE_ROWS as u8 };
            tile += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }

    /// # Safety
    ///
    /// The CPU has AMX and the process its permission.
    pub(super) unsafe fn load(&self) {
        asm!("ldtilecfg [{}]", in(reg) self, options(nostack));
    }
}

/// Gives the tiles back, so that the system need not keep them.
///
/// # Safety
///
/// As for [`Configuration::load`].
pub(super) unsafe fn release() {
    asm!("tilerelease", options(nostack));
}

/// Where four tiles of sums stand: the first row of each, and floats from row to row.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) tiles: [*mut f32; 4],
    pub(super) stride: usize,
}

impl Places {
    /// Two rows of tiles by two panels, or the first of them twice: then both compute the same.
    pub(super) fn two_by_two([upper, lower]: [*mut f32; 2], stride: usize, panels: usize) -> Self {
        let second = if panels > 1 { LANES } else { 0 };
        let tiles = [upper, upper.wrapping_add(second), lower, lower.wrapping_add(second)];
        Self { tiles, stride }
    }

    /// One row of tiles by up to four panels; what is missing repeats the last.
    pub(super) fn one_by_four(first: *mut f32, stride: usize, panels: usize) -> Self {
        let tiles = [0, 1, 2, 3].map(|panel| first.wrapping_add(panel.min(panels - 1) * LANES));
        Self { tiles, stride }
    }

    /// Begins sums with what stands there.
    ///
    /// # Safety
    ///
    /// Tiles are configured, and all their rows can be read.
    #[inline]
    pub(super) unsafe fn load(&self) {
        asm!(
            "tileloadd tmm0, [{a} + {stride}]",
            "tileloadd tmm1, [{b} + {stride}]",
            "tileloadd tmm2, [{c} + {stride}]",
            "tileloadd tmm3, [{d} + {stride}]",
            a = in(reg) self.tiles[0],
            b = in(reg) self.tiles[1],
            c = in(reg) self.tiles[2],
            d = in(reg) self.tiles[3],
            stride = in(reg) self.stride * size_of::<f32>(),
            options(nostack),
        );
    }

    /// # Safety
    ///
    /// As for [`Places::load`], and this thread alone writes there.
    #[inline]
    pub(super) unsafe fn store(&self) {
        asm!(
            "tilestored [{a} + {stride}], tmm0",
            "tilestored [{b} + {stride}], tmm1",
            "tilestored [{c} + {stride}], tmm2",
            "tilestored [{d} + {stride}], tmm3",
            a = in(reg) self.tiles[0],
            b = in(reg) self.tiles[1],
            c = in(reg) self.tiles[2],
            d = in(reg) self.tiles[3],
            stride = in(reg) self.stride * size_of::<f32>(),
            options(nostack),
        );
    }
}

/// Begins sums with zero.
///
/// # Safety
///
/// Tiles are configured.
#[inline]
pub(super) unsafe fn zero() {
    asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
}

/// Fetches a tile that is some tiles further on into the second cache: what streams from memory arrives by a
/// fifth sooner.
macro_rules! prefetch {
    ($from:literal) => {
        concat!(
            prefetch!($from, "2048 2112 2176 2240 2304 2368 2432 2496"),
            prefetch!($from, "2560 2624 2688 2752 2816 2880 2944 3008"),
        )
    };
    ($from:literal, $at:literal) => {
        concat!(".irp at, ", $at, "\nprefetcht1 [", $from, " + \\at]\n.endr\n")
    };
}

/// Adds products of two tiles of rows and two panels. `$x` loads: with the hint that what is streamed need
/// not stay in the first cache, or without.
macro_rules! two_by_two {
    ($name:ident, $x:literal, $prefetch:expr) => {
        /// # Safety
        ///
        /// Tiles are configured, and `count` tiles stand at each pointer.
        #[inline]
        pub(super) unsafe fn $name(x: [*const f32; 2], w: [*const f32; 2], count: usize) {
            asm!(
                "3:",
                $prefetch,
                concat!($x, " tmm4, [{x0} + {line}]"),
                "tileloadd tmm6, [{w0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                concat!($x, " tmm5, [{x1} + {line}]"),
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x0}, {tile}",
                "add {x1}, {tile}",
                "add {w0}, {tile}",
                "add {w1}, {tile}",
                "dec {count}",
                "jnz 3b",
                x0 = inout(reg) x[0] => _,
                x1 = inout(reg) x[1] => _,
                w0 = inout(reg) w[0] => _,
                w1 = inout(reg) w[1] => _,
                count = inout(reg) count => _,
                line = in(reg) LINE,
                tile = const TILE,
                options(nostack, readonly),
            );
        }
    };
}

two_by_two!(two_by_two_near_panels, "tileloaddt1", "");
two_by_two!(two_by_two_near_rows, "tileloadd", concat!(prefetch!("{w0}"), prefetch!("{w1}")));

/// Adds products of one tile of rows and four panels.
///
/// # Safety
///
/// Tiles are configured, and `count` tiles stand at each pointer.
#[inline]
pub(super) unsafe fn one_by_four(x: *const f32, w: [*const f32; 4], count: usize) {
    asm!(
        "3:",
        prefetch!("{w0}"),
        prefetch!("{w1}"),
        prefetch!("{w2}"),
        prefetch!("{w3}"),
        "tileloadd tmm4, [{x} + {line}]",
        "tileloadd tmm6, [{w0} + {line}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{w1} + {line}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm6, [{w2} + {line}]",
        "tdpbf16ps tmm2, tmm4, tmm6",
        "tileloadd tmm7, [{w3} + {line}]",
        "tdpbf16ps tmm3, tmm4, tmm7",
        "add {x}, {tile}",
        "add {w0}, {tile}",
        "add {w1}, {tile}",
        "add {w2}, {tile}",
        "add {w3}, {tile}",
        "dec {count}",
        "jnz 3b",
        x = inout(reg) x => _,
        w0 = inout(reg) w[0] => _,
        w1 = inout(reg) w[1] => _,
        w2 = inout(reg) w[2] => _,
        w3 = inout(reg) w[3] => _,
        count = inout(reg) count => _,
        line = in(reg) LINE,
        tile = const TILE,
        options(nostack, readonly),
    );
}
