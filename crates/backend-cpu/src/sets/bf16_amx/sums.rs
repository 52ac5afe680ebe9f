//! Sums over several factors' tiles: which rows, panels and inputs meet in which order.
//!
//! Rows of tiles are on the left, panels on the right. While two panels are near, with as many of their
//! inputs as the first cache holds, all rows go by; sums that are not done go on where they stood.

use std::ops::Range;

use super::{
    super::packed::{TILE_ROWS, TILE_WORDS},
    kernel::{
        Configuration, Places, one_by_four, release, two_by_two_near_panels, two_by_two_near_rows,
        zero,
    },
};
use crate::{
    buffer::{View, ViewMut},
    lanes::LANES,
};

/// Tiles of inputs of two panels that are near at once.
const NEAR_TILES: usize = 16;
/// Tiles that may go along with them, so that few do not need a round of their own.
const SPARE_TILES: usize = 2;
/// Factors that one round goes over, at most.
const PIECES_MAX: usize = 8;

/// One of the factors that sums go over: rows of tiles, and panels.
#[derive(Clone, Copy)]
pub(super) struct Term {
    /// The first tile of rows.
    pub(super) x: *const f32,
    /// Words from one tile of rows to the next.
    pub(super) x_stride: usize,
    /// A panel in each row of the view.
    pub(super) w: View,
    /// Tiles of inputs.
    pub(super) tiles: usize,
}

impl Term {
    pub(super) const NONE: Self = Self {
        x: std::ptr::null(),
        x_stride: 0,
        w: View { pointer: std::ptr::null(), stride: 0 },
        tiles: 0,
    };

    fn at(&self, row_tile: usize) -> *const f32 {
        self.x.wrapping_add(row_tile * self.x_stride)
    }

    fn panel(&self, panel: usize) -> *const f32 {
        self.w.pointer.wrapping_add(panel * self.w.stride)
    }
}

/// What sums begin with.
#[derive(Clone, Copy)]
pub(super) enum Begin {
    Zero,
    /// What stands in `out`.
    Out,
    /// The same in every row: floats by panel.
    Row(*const f32),
}

/// `out[row][panel] = begin + Σ_terms Σ_k x[row][k] * w[panel][k]`, terms and inputs in order.
pub(super) struct Sums<'a> {
    pub(super) terms: &'a [Term],
    pub(super) rows: usize,
    pub(super) panels: Range<usize>,
    /// Row 0, panel 0.
    pub(super) out: ViewMut,
    pub(super) begin: Begin,
    /// Whether panels come from memory, rather than from where they were just made.
    pub(super) far: bool,
}

impl Sums<'_> {
    /// # Safety
    ///
    /// The set is available, terms reach all rows and panels, and this thread alone writes them.
    pub(super) unsafe fn run(&self) {
        let (tiles, rest) = (self.rows / TILE_ROWS, self.rows % TILE_ROWS);
        // A tile that has no other beside it goes with the rest, or alone.
        let (pairs, alone) = (tiles / 2, tiles % 2);
        if pairs > 0 {
            const { &Configuration::pair(TILE_ROWS, TILE_ROWS) }.load();
            self.pairs(0..pairs);
        }
        if alone > 0 && rest > 0 {
            Configuration::pair(TILE_ROWS, rest).load();
            self.pairs(pairs..pairs + 1);
        } else if alone > 0 || rest > 0 {
            Configuration::single(if rest > 0 { rest } else { TILE_ROWS }).load();
            self.single(2 * pairs);
        }
        release();
    }

    unsafe fn pairs(&self, pairs: Range<usize>) {
        let mut round = Round::first(self.terms);
        loop {
            for panel in self.panels.clone().step_by(2) {
                for pair in pairs.clone() {
                    self.pair(&round, (pair, panel), pairs.len() > 1 || !self.far);
                }
            }
            if !round.advance(self.terms) {
                return;
            }
        }
    }

    /// Two tiles of rows and up to two panels, which are near, or meet no other rows.
    #[inline]
    unsafe fn pair(&self, round: &Round, (pair, panel): (usize, usize), near: bool) {
        let last = self.panels.end.min(panel + 2) - 1;
        let out = [2 * pair, 2 * pair + 1].map(|tile| self.out_at(tile, panel));
        let places = Places::two_by_two(out, self.out.stride, last - panel + 1);
        self.begin(round, &places, [panel, last, panel, last]);
        for piece in round.pieces() {
            let x = [piece.at(2 * pair), piece.at(2 * pair + 1)];
            let w = [piece.panel(panel), piece.panel(last)];
            if near {
                two_by_two_near_panels(x, w, piece.tiles);
            } else {
                two_by_two_near_rows(x, w, piece.tiles);
            }
        }
        places.store();
    }

    unsafe fn single(&self, row_tile: usize) {
        let mut round = Round::first(self.terms);
        loop {
            for panel in self.panels.clone().step_by(4) {
                let panels = 4.min(self.panels.end - panel);
                let first = self.out_at(row_tile, panel);
                let places = Places::one_by_four(first, self.out.stride, panels);
                let each = [0, 1, 2, 3].map(|i: usize| panel + i.min(panels - 1));
                self.begin(&round, &places, each);
                for piece in round.pieces() {
                    one_by_four(piece.at(row_tile), each.map(|p| piece.panel(p)), piece.tiles);
                }
                places.store();
            }
            if !round.advance(self.terms) {
                return;
            }
        }
    }

    fn out_at(&self, row_tile: usize, panel: usize) -> *mut f32 {
        let row = row_tile * TILE_ROWS;
        self.out.pointer.wrapping_add(row * self.out.stride + panel * LANES)
    }

    #[inline]
    unsafe fn begin(&self, round: &Round, places: &Places, panels: [usize; 4]) {
        match self.begin {
            _ if !round.is_first => places.load(),
            Begin::Zero => zero(),
            Begin::Out => places.load(),
            Begin::Row(floats) => {
                let tiles = panels.map(|panel| floats.wrapping_add(panel * LANES).cast_mut());
                Places { tiles, stride: 0 }.load();
            }
        }
    }
}

/// Inputs that are near at once: parts of terms, in order.
struct Round {
    pieces: [Term; PIECES_MAX],
    count: usize,
    is_first: bool,
    /// Where the next round begins: a term, and a tile of its inputs.
    next: (usize, usize),
}

impl Round {
    fn first(terms: &[Term]) -> Self {
        let mut round =
            Self { pieces: [Term::NONE; PIECES_MAX], count: 0, is_first: true, next: (0, 0) };
        round.fill(terms);
        round
    }

    /// Whether there is another round.
    fn advance(&mut self, terms: &[Term]) -> bool {
        self.is_first = false;
        self.fill(terms);
        self.count > 0
    }

    fn pieces(&self) -> &[Term] {
        &self.pieces[..self.count]
    }

    fn fill(&mut self, terms: &[Term]) {
        let mut room = NEAR_TILES;
        self.count = 0;
        while self.next.0 < terms.len() && self.count < PIECES_MAX {
            let (term, start) = (&terms[self.next.0], self.next.1);
            let left = term.tiles - start;
            if room == 0 && left > SPARE_TILES {
                return;
            }
            let tiles = if left <= room + SPARE_TILES { left } else { room };
            if tiles > 0 {
                self.pieces[self.count] = Term {
                    x: term.x.wrapping_add(start * TILE_WORDS),
                    w: View {
                        pointer: term.w.pointer.wrapping_add(start * TILE_WORDS),
                        stride: term.w.stride,
                    },
                    tiles,
                    ..*term
                };
                self.count += 1;
            }
            self.next =
                if tiles == left { (self.next.0 + 1, 0) } else { (self.next.0, start + tiles) };
            room = room.saturating_sub(tiles);
        }
    }
}
