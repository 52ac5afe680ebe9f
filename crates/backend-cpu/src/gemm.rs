//! Sums of products: the one microkernel, and the blocked product that linear ops are made of.
//!
//! In f32 each output element is, for each block of k, one chain of fused multiply-adds from zero in the
//! order of k; the blocks' sums are folded in order. Sets that round to bf16 say in their files how they
//! sum. How rows, panels and threads are grouped changes only which elements are computed together.

use std::ops::Range;

use tinsmith_backend::{GRADIENT_TILE, LINEAR_BLOCK};

#[cfg(target_arch = "x86_64")]
use crate::sets::{bf16_avx512, packed::RoundedTile};
use crate::{
    buffer::{View, ViewMut, overlap, padded, with_rounded, with_scratch},
    lanes::{Kernel, LANES, Lanes, Path},
    pool::Pool,
    sets::packed::{Layout, Rounded},
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
///
/// `PAIRED`: words of `b` hold two bf16, for k and k + 1, so that `b_k` leads from pair to pair.
#[derive(Clone, Copy)]
pub(crate) struct MultiplyBy<const PAIRED: bool> {
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

/// By floats.
pub(crate) type Multiply = MultiplyBy<false>;

impl<const PAIRED: bool> Kernel for MultiplyBy<PAIRED> {
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

impl<const PAIRED: bool> MultiplyBy<PAIRED> {
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
        let mut vectors = [L::splat(0.0); P];
        let mut after = [L::splat(0.0); P];
        if PAIRED {
            for _ in 0..self.k / 2 {
                for p in 0..P {
                    (vectors[p], after[p]) = L::load_pairs(b.wrapping_add(p * self.b_panel));
                }
                self.accumulate(&mut sums, a, &vectors);
                self.accumulate(&mut sums, a.wrapping_add(self.a_k), &after);
                a = a.wrapping_add(2 * self.a_k);
                b = b.wrapping_add(self.b_k);
            }
            if self.k % 2 == 1 {
                for p in 0..P {
                    (vectors[p], _) = L::load_pairs(b.wrapping_add(p * self.b_panel));
                }
                self.accumulate(&mut sums, a, &vectors);
            }
        } else {
            for _ in 0..self.k {
                for p in 0..P {
                    vectors[p] = L::load(b.wrapping_add(p * self.b_panel));
                }
                self.accumulate(&mut sums, a, &vectors);
                a = a.wrapping_add(self.a_k);
                b = b.wrapping_add(self.b_k);
            }
        }
        for r in 0..R {
            for p in 0..P {
                self.fold::<L>(row + r, panel + p, sums[r][p]);
            }
        }
    }

    /// One k: a factor of each row, times a vector of each panel.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "unrolled by index over two arrays")]
    unsafe fn accumulate<L: Lanes, const R: usize, const P: usize>(
        &self,
        sums: &mut [[L; P]; R],
        a: *const f32,
        vectors: &[L; P],
    ) {
        for r in 0..R {
            let factor = L::splat(*a.wrapping_add(r * self.a_row));
            for p in 0..P {
                sums[r][p] = factor.mul_add(vectors[p], sums[r][p]);
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

/// What `x` is multiplied by, as the kernel set keeps it; panel `p` begins in row `p` of the view.
#[derive(Clone, Copy)]
pub(crate) enum Operand {
    /// f32, `step` floats from one input to the next within a panel.
    Floats { panels: View, step: usize },
    /// bf16 in pairs of inputs, widened to f32.
    Widened { panels: View },
    /// bf16 in pairs of inputs, for rows rounded to bf16: [`Product::run`] makes them.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86's instructions"))]
    Pairs { panels: View, x: Rounded },
}

/// How a product is cut into tasks.
struct Cut {
    /// Rows of one tile, at most: a multiple of every microkernel's rows.
    rows: usize,
    /// What the rows of a tile are a multiple of.
    step: usize,
    /// Panels of one tile, at most.
    panels: usize,
    /// Panels of one tile of few rows, so that there are enough tiles for the threads.
    flat_panels: usize,
}

impl Operand {
    fn cut(self) -> Cut {
        match self {
            // With one block of inputs the panels take 192 KiB of the second cache.
            Self::Floats { .. } | Self::Widened { .. } => {
                Cut { rows: 96, step: 12, panels: 12, flat_panels: 4 }
            }
            Self::Pairs { x, .. } => {
                let step = if x.layout == Layout::Floats { 12 } else { 16 };
                Cut { rows: 96, step, panels: 12, flat_panels: 4 }
            }
        }
    }

    /// How `x`, of so many rows, is to lie once rounded to bf16; none: it is taken as it is.
    fn rounded(self, rows: usize) -> Option<Layout> {
        match self {
            Self::Floats { .. } | Self::Widened { .. } => None,
            Self::Pairs { .. } => Some(Layout::of_pairs(rows)),
        }
    }

    /// The same with rounded rows.
    fn with_rows(mut self, rounded: Rounded) -> Self {
        match &mut self {
            Self::Floats { .. } | Self::Widened { .. } => {}
            Self::Pairs { x, .. } => *x = rounded,
        }
        self
    }
}

/// `out (+)= x W + bias + Σ scale * hidden up`.
///
/// Order of one element: `x W` as the operand sums it, then the bias, then the blocks of each adapter in the
/// order given, each `fma(sum, scale, so far)`; last, what stood in `out` if `add`.
pub(crate) struct Product<'a> {
    pub(crate) out: ViewMut,
    pub(crate) x: View,
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) operand: Operand,
    pub(crate) bias: Option<*const f32>,
    pub(crate) adapters: &'a [Adapter],
    pub(crate) add: bool,
}

// SAFETY: the pointers are to data that nobody writes during the product, or that each tile writes
// for itself.
unsafe impl Sync for Product<'_> {}

/// Floats of one task's scratch, at most.
pub(crate) const SCRATCH_FLOATS: usize = 128 * 16 * LANES;
const _: () = assert!(SCRATCH_FLOATS >= GRADIENT_TILE * GRADIENT_PANELS * LANES);

impl Product<'_> {
    /// Computes all tiles.
    ///
    /// # Safety
    ///
    /// The views reach all rows, inputs and padded outputs; nobody else writes `out`.
    pub(crate) unsafe fn run(&self, path: Path, pool: &Pool) {
        if let Some(layout) = self.operand.rounded(self.rows) {
            with_rounded(layout.words(self.rows, self.inputs), |words| {
                // SAFETY: the caller's contract; there is room for all rows.
                unsafe {
                    let shape = (self.rows, self.inputs);
                    let rounded = Rounded::new((words, layout), self.x, shape, pool);
                    let operand = self.operand.with_rows(rounded);
                    Self::run_all(&[Product { operand, ..*self }], path, pool);
                }
            });
        } else {
            Self::run_all(std::slice::from_ref(self), path, pool);
        }
    }

    /// Computes several products at once, none of which rounds its rows.
    ///
    /// # Safety
    ///
    /// As for [`Product::run`], and no product reads or writes what another writes.
    pub(crate) unsafe fn run_all(products: &[Self], path: Path, pool: &Pool) {
        let count = |product: &Self| product.tiles().0 * product.tiles().1;
        let tasks = products.iter().map(count).sum();
        let work = |p: &Self| p.rows * p.inputs * p.outputs;
        let work = products.iter().map(work).sum();
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
        let cut = self.operand.cut();
        let panels = self.outputs.div_ceil(LANES);
        let most = if self.rows > cut.rows / 4 { cut.panels } else { cut.flat_panels };
        (self.rows.div_ceil(cut.rows), panels.div_ceil(most))
    }

    unsafe fn run_tile(&self, path: Path, i: usize) {
        let cut = self.operand.cut();
        let (tall, wide) = self.tiles();
        let height = self.rows.div_ceil(tall).next_multiple_of(cut.step);
        let (down, across) = (i % tall, i / tall);
        let rows = overlap(&(down * height..(down + 1) * height), &(0..self.rows));
        let panels = self.outputs.div_ceil(LANES);
        let panels = across * panels / wide..(across + 1) * panels / wide;
        if self.add {
            with_scratch(cut.rows * cut.panels * LANES, |scratch| {
                let tile = ViewMut { pointer: scratch, stride: cut.panels * LANES };
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
        match product.operand {
            Operand::Floats { panels, step } => self.multiply::<L, false>(panels, step),
            Operand::Widened { panels } => self.multiply::<L, true>(panels, LANES),
            #[cfg(target_arch = "x86_64")]
            Operand::Pairs { panels, x } => bf16_avx512::multiply(&self.rounded(x, panels)),
            #[cfg(not(target_arch = "x86_64"))]
            Operand::Pairs { .. } => {
                unreachable!("no such set is available on this CPU")
            }
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
    /// The blocks of `x W` in f32.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const PAIRED: bool>(&self, panels: View, step: usize) {
        let product = self.product;
        let (mut start, mut fold) = (0, Fold::Store);
        while start < product.inputs {
            let steps = if PAIRED { start / 2 } else { start };
            L::call(MultiplyBy::<PAIRED> {
                a: product.x.at(self.rows.start, start),
                a_row: product.x.stride,
                a_k: 1,
                b: panels.at(self.panels.start, steps * step),
                b_panel: panels.stride,
                b_k: step,
                k: LINEAR_BLOCK.min(product.inputs - start),
                rows: self.rows.len(),
                panels: self.panels.len(),
                out: self.tile,
                fold,
            });
            (start, fold) = (start + LINEAR_BLOCK, Fold::Add);
        }
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn rounded(&self, x: Rounded, panels: View) -> RoundedTile {
        RoundedTile {
            x: x.skip_rows(self.rows.start),
            rows: self.rows.len(),
            w: panels.skip_rows(self.panels.start),
            panels: self.panels.len(),
            out: self.tile,
        }
    }

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
        operand: Operand::Floats { panels, step: b.stride },
        bias: None,
        adapters: &[],
        add: false,
    }
}
