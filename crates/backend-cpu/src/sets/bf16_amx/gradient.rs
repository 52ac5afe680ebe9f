//! Adapters' gradients on tiles: sums over tokens, which are a tile's inputs here.
//!
//! An element goes on from the pending gradient, in one chain over the datums in order; each datum's tokens
//! are taken 32 at a time from its first, filled up with zeros. What is rounded is `scale * hidden` or
//! `scale * (dy B)` on one side, `dy` or `x` on the other.

use std::ops::Range;

use super::{
    super::packed::{TILE_INPUTS, TILE_ROWS, TILE_WORDS},
    job::RoundedRows,
    round,
    sums::{Begin, Sums, Term},
};
use crate::{
    buffer::{Buffer, Cells, Pair, View, ViewMut, with_scratch},
    lanes::LANES,
    pool::Pool,
};

/// Tiles of tokens whose rows are packed together.
const PACKED_TILES: usize = 16;
/// Panels whose rows are packed together: the features of one tile.
const PACKED_PANELS: usize = 2;
/// Words from panel to panel.
const PACKED_STRIDE: usize = PACKED_TILES * TILE_WORDS;

/// A matrix with a row for each token.
pub(super) struct Big<'a> {
    pub(super) rows: BigRows<'a>,
    pub(super) features: usize,
}

/// Where the rows stand.
pub(super) enum BigRows<'a> {
    Floats(View),
    /// Rounded already.
    Rounded(RoundedRows<'a>),
}

/// `out += Σ_tokens (scale * small)ᵀ big`.
struct Sum {
    /// Number of the matrix.
    big: usize,
    small: View,
    scale: f32,
    rank: usize,
    /// `[rank, features]`.
    out: ViewMut,
    /// The datums' tiles of tokens.
    tiles: Range<usize>,
    /// Where the tiles of `small` begin: `[tile of ranks][tile of tokens]`.
    words: usize,
}

/// Gradients that are summed together, and memory that is used again.
#[derive(Default)]
pub(crate) struct Gradients {
    sums: Vec<Sum>,
    /// First row and rows of each tile of tokens.
    tiles: Vec<(usize, usize)>,
    words: Buffer,
    words_used: usize,
}

// SAFETY: between ops the views are not looked at.
unsafe impl Send for Gradients {}

impl std::fmt::Debug for Gradients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gradients({} words)", self.words_used)
    }
}

/// Words of the tiles of two small matrices for each of `uses`, at most.
pub(crate) fn gradient_words(rows: usize, datums: usize, rank: usize) -> usize {
    (rows.div_ceil(TILE_INPUTS) + datums) * rank.div_ceil(TILE_ROWS) * TILE_WORDS
}

impl Gradients {
    pub(crate) fn clear(&mut self) {
        self.sums.clear();
        self.tiles.clear();
        self.words_used = 0;
    }

    /// Adds an adapter's two sums: of matrix 0 into A, of matrix `big` into B. Those of one adapter's linear
    /// maps should follow each other.
    pub(crate) fn push(
        &mut self,
        gradient: &mut Pair,
        big: usize,
        (hidden, hidden_gradient): (View, View),
        scale: f32,
        datums: impl Iterator<Item = Range<usize>>,
    ) {
        let first = self.tiles.len();
        for datum in datums {
            let tiles = datum.clone().step_by(TILE_INPUTS);
            self.tiles.extend(tiles.map(|row| (row, TILE_INPUTS.min(datum.end - row))));
        }
        let mut tiles = first..self.tiles.len();
        let before = self.sums.last().map(|sum| sum.tiles.clone());
        if let Some(before) = before
            && self.tiles[before.clone()] == self.tiles[tiles.clone()]
        {
            self.tiles.truncate(first);
            tiles = before;
        }
        let rank = gradient.a.rows;
        let sides = [(0, hidden_gradient, &mut gradient.a), (big, hidden, &mut gradient.b)];
        for (big, small, out) in sides {
            let words = self.words_used;
            let (out, tiles) = (out.view_mut(), tiles.clone());
            self.words_used += rank.div_ceil(TILE_ROWS) * tiles.len() * TILE_WORDS;
            self.sums.push(Sum { big, small, scale, rank, out, tiles, words });
        }
    }

    /// Computes all sums.
    ///
    /// # Safety
    ///
    /// The set is available; matrices have the rows of all tiles, and whole panels; nobody else writes the
    /// gradients, and no two sums write the same.
    pub(super) unsafe fn run(&mut self, bigs: &[Option<Big<'_>>], pool: &Pool) {
        if self.sums.is_empty() {
            return;
        }
        self.words.renew(self.words_used);
        let words = Cells(self.words.pointer_mut());
        let longest = self.sums.iter().map(|sum| sum.tiles.len()).max().unwrap_or(0);
        let (parts, tiles, sums) = (longest.div_ceil(PACKED_TILES), &self.tiles, &mut self.sums);
        let all = sums.iter().map(|sum| sum.tiles.len() * sum.rank).sum::<usize>() * TILE_INPUTS;
        sums.sort_by_key(|sum| (sum.big, sum.tiles.start));
        let sums = &*sums;
        let small = Task { sums, tiles, words: &words };
        pool.run_sized(parts * sums.len(), all, &|i| {
            // SAFETY: the caller's contract; tiles are this task's own.
            unsafe { small.turn(&sums[i / parts], i % parts * PACKED_TILES) };
        });
        let groups = |big: &Big<'_>| big.features.div_ceil(LANES).div_ceil(PACKED_PANELS);
        let count = bigs.iter().flatten().map(groups).sum();
        let features = bigs.iter().flatten().map(|big| big.features).sum::<usize>();
        pool.run_sized(count, all / sums.len().max(1) * features / 4, &|mut i| {
            for (number, big) in bigs.iter().flatten().enumerate() {
                if i < groups(big) {
                    let last = big.features.div_ceil(LANES);
                    let panels = i * PACKED_PANELS..last.min((i + 1) * PACKED_PANELS);
                    // SAFETY: the caller's contract; panels of gradients are this task's own.
                    return unsafe { small.sum(number, &big.rows, panels) };
                }
                i -= groups(big);
            }
        });
    }
}

/// What tasks share.
struct Task<'a> {
    sums: &'a [Sum],
    tiles: &'a [(usize, usize)],
    words: &'a Cells<f32>,
}

// SAFETY: tasks write tiles and panels of their own.
unsafe impl Sync for Task<'_> {}

impl Task<'_> {
    /// Rounds some tiles of a small matrix, columns for rows.
    unsafe fn turn(&self, sum: &Sum, start: usize) {
        let all = sum.tiles.len();
        let end = all.min(start + PACKED_TILES);
        for i in start.min(end)..end {
            let (row, rows) = self.tiles[sum.tiles.start + i];
            let to = self.words.0.add(sum.words + i * TILE_WORDS);
            let shape = (rows, sum.rank.div_ceil(LANES));
            round::columns(sum.small.skip_rows(row), shape, (to, all * TILE_WORDS), sum.scale);
        }
    }

    /// All sums of some panels of one matrix; sums over the same tokens share their packed rows.
    unsafe fn sum(&self, number: usize, big: &BigRows<'_>, panels: Range<usize>) {
        let first = self.sums.partition_point(|sum| sum.big < number);
        let end = self.sums.partition_point(|sum| sum.big <= number);
        with_scratch(PACKED_PANELS * PACKED_STRIDE, |packed| {
            for same in self.sums[first..end].chunk_by(|one, next| one.tiles == next.tiles) {
                self.sum_same(same, big, &panels, packed);
            }
        });
    }

    unsafe fn sum_same(
        &self,
        same: &[Sum],
        big: &BigRows<'_>,
        panels: &Range<usize>,
        packed: *mut f32,
    ) {
        let tiles = &self.tiles[same[0].tiles.clone()];
        for (part, tiles) in tiles.chunks(PACKED_TILES).enumerate() {
            pack(big, tiles, panels, packed);
            for sum in same {
                self.add((sum, part * PACKED_TILES), tiles.len(), panels, packed);
            }
        }
    }

    /// Goes on with a sum over tiles that are packed, of which `start` is the first.
    unsafe fn add(
        &self,
        (sum, start): (&Sum, usize),
        tiles: usize,
        panels: &Range<usize>,
        packed: *const f32,
    ) {
        let term = Term {
            x: self.words.0.add(sum.words + start * TILE_WORDS),
            x_stride: sum.tiles.len() * TILE_WORDS,
            w: View { pointer: packed, stride: PACKED_STRIDE },
            tiles,
        };
        let pointer = sum.out.at(0, panels.start * LANES);
        let out = ViewMut { pointer, stride: sum.out.stride };
        let (rows, panels) = (sum.rank, 0..panels.len());
        Sums { terms: &[term], rows, panels, out, begin: Begin::Out, far: false }.run();
    }
}

/// Packs the rows of some tiles of tokens, for up to two panels.
unsafe fn pack(
    big: &BigRows<'_>,
    tiles: &[(usize, usize)],
    panels: &Range<usize>,
    packed: *mut f32,
) {
    for (i, &(row, rows)) in tiles.iter().enumerate() {
        let (shape, to) = ((rows, panels.len()), (packed.add(i * TILE_WORDS), PACKED_STRIDE));
        match big {
            BigRows::Floats(view) => {
                let x = View { pointer: view.at(row, panels.start * LANES), stride: view.stride };
                round::row_pairs(x, shape, to);
            }
            BigRows::Rounded(rounded) => {
                round::line_pairs(rounded.lines(row, panels.start / PACKED_PANELS), shape, to);
            }
        }
    }
}
