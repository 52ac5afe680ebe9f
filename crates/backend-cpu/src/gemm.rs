//! Sums of products: the one microkernel, and the blocked product that linear ops are made of.
//!
//! Each output element is, for each block of k, one chain of fused multiply-adds from zero in the
//! order of k; the blocks' sums are folded in order. How rows, panels and threads are grouped changes
//! only which elements are computed together.

use std::ops::Range;

use tinsmith_backend::{GRADIENT_TILE, LINEAR_BLOCK};

use crate::{
    buffer::{View, ViewMut, overlap, padded, with_scratch},
    lanes::{Kernel, LANES, Lanes, Path},
    pool::Pool,
};

/// What happens to the sum of a chain.
#[derive(Clone, Copy)]
pub(crate) enum Fold {
    /// `out = sum`.
    Store,
    /// `out = out + sum`.
    Add,
    /// `out = sum * factor + out`, rounded once.
    Scaled(f32),
    /// `out = out * factors[row] + sum`, rounded once.
    Decayed(*const f32),
}

/// `out[i][16 p ..] (+)= Σ_k a[i * a_row + k * a_k] * b[p * b_panel + k * b_k ..][..16]`, one chain
/// from zero for each element.
#[derive(Clone, Copy)]
pub(crate) struct Multiply {
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_k: usize,
    pub(crate) b: *const f32,
    pub(crate) b_panel: usize,
    pub(crate) b_k: usize,
    pub(crate) k: usize,
    pub(crate) rows: usize,
    pub(crate) panels: usize,
    pub(crate) out: ViewMut,
    pub(crate) fold: Fold,
}

impl Kernel for Multiply {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut row = 0;
        while row < self.rows {
            let left = self.rows - row;
            // Accumulators take 24 of 32 registers, or 12 of 16; short blocks take more panels at
            // once, for enough independent chains.
            row += if L::WIDE {
                match left {
                    12.. => self.strip::<L, 12, 2>(row, left / 12),
                    8.. => self.strip::<L, 8, 2>(row, 1),
                    4.. => self.strip::<L, 4, 4>(row, 1),
                    2.. => self.strip::<L, 2, 4>(row, 1),
                    _ => self.strip::<L, 1, 4>(row, 1),
                }
            } else {
                match left {
                    12.. => self.strip::<L, 6, 1>(row, left / 6 - 1),
                    8 => self.strip::<L, 4, 1>(row, 2),
                    6 | 10.. => self.strip::<L, 6, 1>(row, 1),
                    4.. => self.strip::<L, 4, 1>(row, 1),
                    2.. => self.strip::<L, 2, 2>(row, 1),
                    _ => self.strip::<L, 1, 4>(row, 1),
                }
            };
        }
    }
}

impl Multiply {
    /// Does `count` groups of `R` rows; answers how many rows that is.
    #[inline(always)]
    unsafe fn strip<L: Lanes, const R: usize, const P: usize>(
        &self,
        row: usize,
        count: usize,
    ) -> usize {
        let mut panel = 0;
        while panel + P <= self.panels {
            for group in 0..count {
                self.block::<L, R, P>(row + group * R, panel);
            }
            panel += P;
        }
        while panel < self.panels {
            for group in 0..count {
                self.block::<L, R, 1>(row + group * R, panel);
            }
            panel += 1;
        }
        count * R
    }

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "unrolled by index over three arrays")]
    unsafe fn block<L: Lanes, const R: usize, const P: usize>(&self, row: usize, panel: usize) {
        let mut sums = [[L::splat(0.0); P]; R];
        let mut a = self.a.add(row * self.a_row);
        let mut b = self.b.add(panel * self.b_panel);
        for _ in 0..self.k {
            let mut vectors = [L::splat(0.0); P];
            for p in 0..P {
                vectors[p] = L::load(b.wrapping_add(p * self.b_panel));
            }
            for r in 0..R {
                let factor = L::splat(*a.wrapping_add(r * self.a_row));
                for p in 0..P {
                    sums[r][p] = factor.mul_add(vectors[p], sums[r][p]);
                }
            }
            a = a.wrapping_add(self.a_k);
            b = b.wrapping_add(self.b_k);
        }
        for r in 0..R {
            for p in 0..P {
                self.fold::<L>(row + r, panel + p, sums[r][p]);
            }
        }
    }

    #[inline(always)]
    unsafe fn fold<L: Lanes>(&self, row: usize, panel: usize, sum: L) {
        let to = self.out.at(row, panel * LANES);
        match self.fold {
            Fold::Store => sum.store(to),
            Fold::Add => L::load(to).add(sum).store(to),
            Fold::Scaled(factor) => sum.mul_add(L::splat(factor), L::load(to)).store(to),
            Fold::Decayed(factors) => {
                L::load(to).mul_add(L::splat(*factors.add(row)), sum).store(to);
            }
        }
    }
}

/// An adapter's share in a product: `out += scale * hidden up`, for its rows.
pub(crate) struct Adapter {
    /// Rows of the product.
    pub(crate) rows: Range<usize>,
    /// `[rows of the product, rank]`.
    pub(crate) hidden: View,
    /// `[rank, outputs]`.
    pub(crate) up: View,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

/// `out (+)= x W + bias + Σ scale * hidden up`.
///
/// Order of one element: the blocks of `x W`, then the bias, then the blocks of each adapter in the
/// order given, each `fma(sum, scale, so far)`; last, what stood in `out` if `add`.
pub(crate) struct Product<'a> {
    pub(crate) out: ViewMut,
    pub(crate) x: View,
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Panel `p` begins in row `p` of this view.
    pub(crate) panels: View,
    /// Floats from one input to the next within a panel.
    pub(crate) panel_step: usize,
    pub(crate) bias: Option<*const f32>,
    pub(crate) adapters: &'a [Adapter],
    pub(crate) add: bool,
}

// SAFETY: the pointers are to data that nobody writes during the product, or that each tile writes
// for itself.
unsafe impl Sync for Product<'_> {}

/// Rows of one tile, at most: a multiple of every microkernel's rows.
const TILE_ROWS: usize = 96;
/// Panels of one tile, at most: with one block of inputs they take 192 KiB of the second cache.
const TILE_PANELS: usize = 12;
/// Panels of one tile of few rows, so that there are enough tiles for the threads.
const FLAT_TILE_PANELS: usize = 4;
/// Floats of one task's scratch, at most.
pub(crate) const SCRATCH_FLOATS: usize = TILE_ROWS * TILE_PANELS * LANES;
const _: () = assert!(SCRATCH_FLOATS >= GRADIENT_TILE * GRADIENT_PANELS * LANES);

impl Product<'_> {
    /// Computes all tiles.
    ///
    /// # Safety
    ///
    /// The views reach all rows, inputs and padded outputs; nobody else writes `out`.
    pub(crate) unsafe fn run(&self, path: Path, pool: &Pool) {
        Self::run_all(std::slice::from_ref(self), path, pool);
    }

    /// Computes several products at once.
    ///
    /// # Safety
    ///
    /// As for [`Product::run`], and no product reads or writes what another writes.
    pub(crate) unsafe fn run_all(products: &[Self], path: Path, pool: &Pool) {
        let count = |product: &Self| product.tiles().0 * product.tiles().1;
        let tasks = products.iter().map(count).sum();
        let work = products.iter().map(|p| p.rows * p.inputs * p.outputs).sum();
        pool.run_sized(tasks, work, &|mut i| {
            for product in products {
                if i < count(product) {
                    // SAFETY: the caller's contract; tiles do not overlap.
                    return unsafe { product.run_tile(path, i) };
                }
                i -= count(product);
            }
        });
    }

    /// Tiles down and across.
    fn tiles(&self) -> (usize, usize) {
        let panels = self.outputs.div_ceil(LANES);
        let most = if self.rows > TILE_ROWS / 4 { TILE_PANELS } else { FLAT_TILE_PANELS };
        (self.rows.div_ceil(TILE_ROWS), panels.div_ceil(most))
    }

    unsafe fn run_tile(&self, path: Path, i: usize) {
        let (tall, wide) = self.tiles();
        let height = self.rows.div_ceil(tall).next_multiple_of(12);
        let (down, across) = (i % tall, i / tall);
        let rows = overlap(&(down * height..(down + 1) * height), &(0..self.rows));
        let panels = self.outputs.div_ceil(LANES);
        let panels = across * panels / wide..(across + 1) * panels / wide;
        if self.add {
            with_scratch(SCRATCH_FLOATS, |scratch| {
                let tile = ViewMut { pointer: scratch, stride: TILE_PANELS * LANES };
                // SAFETY: the caller's contract; the tile is this thread's own.
                unsafe { path.run(Tile { product: self, rows, panels, tile }) };
            });
        } else {
            let pointer = self.out.at(rows.start, panels.start * LANES);
            let tile = ViewMut { pointer, stride: self.out.stride };
            path.run(Tile { product: self, rows, panels, tile });
        }
    }
}

/// Some rows and panels of a product; `tile` is the part of `out`, or scratch if the product adds.
struct Tile<'a> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    tile: ViewMut,
}

impl Kernel for Tile<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let product = self.product;
        let (mut start, mut fold) = (0, Fold::Store);
        while start < product.inputs {
            L::call(Multiply {
                a: product.x.at(self.rows.start, start),
                a_row: product.x.stride,
                a_k: 1,
                b: product.panels.at(self.panels.start, start * product.panel_step),
                b_panel: product.panels.stride,
                b_k: product.panel_step,
                k: LINEAR_BLOCK.min(product.inputs - start),
                rows: self.rows.len(),
                panels: self.panels.len(),
                out: self.tile,
                fold,
            });
            (start, fold) = (start + LINEAR_BLOCK, Fold::Add);
        }
        if let Some(bias) = product.bias {
            self.add_to_rows::<L>(
                View { pointer: bias.add(self.panels.start * LANES), stride: 0 },
                self.tile,
            );
        }
        for adapter in product.adapters {
            self.adapt::<L>(adapter);
        }
        if product.add {
            let out = ViewMut {
                pointer: product.out.at(self.rows.start, self.panels.start * LANES),
                stride: product.out.stride,
            };
            self.add_to_rows::<L>(
                View { pointer: self.tile.pointer, stride: self.tile.stride },
                out,
            );
        }
    }
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn adapt<L: Lanes>(&self, adapter: &Adapter) {
        let rows = overlap(&self.rows, &adapter.rows);
        if rows.is_empty() {
            return;
        }
        let pointer = self.tile.at(rows.start - self.rows.start, 0);
        let mut start = 0;
        while start < adapter.rank {
            L::call(Multiply {
                a: adapter.hidden.at(rows.start, start),
                a_row: adapter.hidden.stride,
                a_k: 1,
                b: adapter.up.at(start, self.panels.start * LANES),
                b_panel: LANES,
                b_k: adapter.up.stride,
                k: LINEAR_BLOCK.min(adapter.rank - start),
                rows: rows.len(),
                panels: self.panels.len(),
                out: ViewMut { pointer, stride: self.tile.stride },
                fold: Fold::Scaled(adapter.scale),
            });
            start += LINEAR_BLOCK;
        }
    }

    /// `to[row] += from[row]`, over the tile's panels.
    #[inline(always)]
    unsafe fn add_to_rows<L: Lanes>(&self, from: View, to: ViewMut) {
        for row in 0..self.rows.len() {
            for panel in 0..self.panels.len() {
                let to = to.at(row, panel * LANES);
                L::load(to).add(L::load(from.at(row, panel * LANES))).store(to);
            }
        }
    }
}

/// The gradient of an adapter's matrix, summed over tokens:
/// `out[r][n] = fma(Σ_t small[t][r] * big[t][n], scale, out[r][n])` for each tile of each datum.
pub(crate) struct Gradient<'a> {
    /// `[rank, outputs]`, the pending gradient.
    pub(crate) out: ViewMut,
    /// `[tokens, rank]`.
    pub(crate) small: View,
    /// `[tokens, outputs]`.
    pub(crate) big: View,
    pub(crate) rank: usize,
    pub(crate) outputs: usize,
    /// Tiles of tokens, in the order in which they are folded.
    pub(crate) tiles: &'a [Range<usize>],
    pub(crate) scale: f32,
}

/// Panels whose tokens are packed together.
const GRADIENT_PANELS: usize = 4;

impl Gradient<'_> {
    /// # Safety
    ///
    /// The views reach all tokens of the tiles; nobody else writes `out`.
    pub(crate) unsafe fn run(&self, path: Path, pool: &Pool) {
        let panels = self.outputs.div_ceil(LANES);
        let tokens = self.tiles.iter().map(ExactSizeIterator::len).sum::<usize>();
        let longest = self.tiles.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let work = tokens * self.rank * self.outputs;
        pool.run_sized(panels.div_ceil(GRADIENT_PANELS), work, &|i| {
            let panels = i * GRADIENT_PANELS..panels.min((i + 1) * GRADIENT_PANELS);
            with_scratch(longest * GRADIENT_PANELS * LANES, |packed| {
                // SAFETY: the caller's contract; groups of panels do not overlap.
                unsafe { path.run(GradientPanels { gradient: self, panels, packed }) };
            });
        });
    }
}

struct GradientPanels<'a> {
    gradient: &'a Gradient<'a>,
    panels: Range<usize>,
    packed: *mut f32,
}

impl Kernel for GradientPanels<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let gradient = self.gradient;
        for tile in gradient.tiles {
            for (i, panel) in self.panels.clone().enumerate() {
                for (t, token) in tile.clone().enumerate() {
                    let to = self.packed.add((i * tile.len() + t) * LANES);
                    L::load(gradient.big.at(token, panel * LANES)).store(to);
                }
            }
            L::call(Multiply {
                a: gradient.small.at(tile.start, 0),
                a_row: 1,
                a_k: gradient.small.stride,
                b: self.packed,
                b_panel: tile.len() * LANES,
                b_k: LANES,
                k: tile.len(),
                rows: gradient.rank,
                panels: self.panels.len(),
                out: ViewMut {
                    pointer: gradient.out.at(0, self.panels.start * LANES),
                    stride: gradient.out.stride,
                },
                fold: Fold::Scaled(gradient.scale),
            });
        }
    }
}

/// `out = x B`, where B is `[inputs, outputs]`, row-major: an adapter's narrow side.
pub(crate) fn narrow(
    (out, x, b): (ViewMut, View, View),
    (rows, inputs, outputs): (usize, usize, usize),
) -> Product<'static> {
    debug_assert!(padded(outputs) <= b.stride, "B's rows are whole vectors");
    let panels = View { pointer: b.pointer, stride: LANES };
    Product {
        out,
        x,
        rows,
        inputs,
        outputs,
        panels,
        panel_step: b.stride,
        bias: None,
        adapters: &[],
        add: false,
    }
}
