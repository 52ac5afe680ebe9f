//! Linear ops on tiles: sources of rows, each rounded once; products with adapters' narrow sides; outputs.
//!
//! An element begins with its bias, or with what stood there if the op adds (the bias is then added to that
//! first). One chain goes on from it over the frozen matrix's inputs, 32 at a time, and over the adapter's
//! rank, of which `scale * hidden` is rounded; then over those of the next product into the same output.

use std::ops::Range;

use tinsmith_backend::LoraUse;

use super::{
    super::packed::{TILE_INPUTS, TILE_ROWS, TILE_WORDS},
    round,
    sums::{Begin, Sums, Term},
};
use crate::{
    buffer::{Buffer, Lora, View, ViewMut, overlap, padded, with_scratch},
    lanes::LANES,
    linear::Side,
    pool::Pool,
};

/// Products that one job takes.
pub(crate) const PRODUCTS_MAX: usize = 3;
/// Rows that one task rounds.
const ROUNDED_ROWS: usize = 64;
/// Words of rounded rows that go by while panels are near, at most about.
const NEAR_WORDS: usize = 192 << 10;
/// Panels of one task.
const TASK_PANELS: usize = 16;

/// Rows that are rounded and multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub(crate) x: View,
    pub(crate) inputs: usize,
}

const NOWHERE: View = View { pointer: std::ptr::null(), stride: 0 };

impl Source {
    pub(super) const NONE: Self = Self { x: NOWHERE, inputs: 0 };
}

/// A frozen matrix and the adapters beside it.
#[derive(Clone, Copy)]
pub(crate) struct Multiplier<'a> {
    pub(crate) source: usize,
    /// Panels of outputs.
    pub(crate) panels: View,
    pub(crate) uses: &'a [LoraUse<'a, Lora>],
    pub(crate) side: Side,
    /// `[rows, rank]`: takes `x Aᵀ` or `dy B`, without the scale.
    pub(crate) hidden: Option<ViewMut>,
}

impl Multiplier<'_> {
    pub(super) const NONE: Self =
        Self { source: 0, panels: NOWHERE, uses: &[], side: Side::Down, hidden: None };
}

/// Where sums go.
pub(crate) struct Output {
    pub(crate) out: ViewMut,
    pub(crate) outputs: usize,
    pub(crate) bias: Option<*const f32>,
    pub(crate) add: bool,
    /// The multipliers that are summed, in order.
    pub(crate) of: Range<usize>,
}

impl Output {
    pub(super) const NONE: Self = Self {
        out: ViewMut { pointer: std::ptr::null_mut(), stride: 0 },
        outputs: 0,
        bias: None,
        add: false,
        of: 0..0,
    };
}

/// Rows by matrices. All views begin with the job's first row, which is row `first` of the step.
pub(crate) struct Job<'a> {
    pub(crate) rows: usize,
    pub(crate) first: usize,
    pub(crate) sources: &'a [Source],
    pub(crate) multipliers: &'a [Multiplier<'a>],
    pub(crate) outputs: &'a [Output],
}

// SAFETY: the pointers are to data that nobody writes during the job, or that each task writes for itself.
unsafe impl Sync for Job<'_> {}

/// Rows in tiles of their own, whose adapters are the same.
#[derive(Clone, Debug)]
struct Segment {
    /// Rows of the job.
    rows: Range<usize>,
    first_tile: usize,
    /// Number of the use of each multiplier.
    uses: [Option<usize>; PRODUCTS_MAX],
}

/// The rounded rows of a job's source.
pub(super) struct RoundedRows<'a> {
    segments: &'a [Segment],
    words: *const f32,
    /// Tiles of inputs in a tile of rows.
    tiles: usize,
}

// SAFETY: nobody writes them while they are borrowed.
unsafe impl Sync for RoundedRows<'_> {}

impl RoundedRows<'_> {
    /// Where the elements of one tile of inputs stand, of rows after `first`, which share its adapter.
    pub(super) fn lines(&self, first: usize, tile: usize) -> impl Fn(usize) -> *const f32 {
        let segment = self.segments.iter().find(|segment| segment.rows.contains(&first));
        let segment = segment.expect("a job has all rows");
        let (start, words) = (first - segment.rows.start, self.words);
        let (first_tile, tiles) = (segment.first_tile, self.tiles);
        move |row| {
            let row = start + row;
            let row_tile = (first_tile + row / TILE_ROWS) * tiles + tile;
            words.wrapping_add(row_tile * TILE_WORDS + row % TILE_ROWS * LANES)
        }
    }
}

impl Arena {
    /// The rows of a source of the last job, as it rounded them.
    pub(super) fn rounded(&self, source: usize) -> RoundedRows<'_> {
        let (offset, tiles) = self.sources[source];
        let words = self.words.pointer().wrapping_add(offset);
        RoundedRows { segments: &self.segments, words, tiles }
    }
}

/// Memory that jobs use again.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    words: Buffer,
    segments: Vec<Segment>,
    /// Parts of segments: what one task rounds, then what one task multiplies.
    rounding: Vec<(usize, Range<usize>)>,
    multiplying: Vec<(usize, Range<usize>)>,
    cuts: Vec<usize>,
    /// Where the last job's sources stand, and their tiles of inputs.
    sources: [(usize, usize); PRODUCTS_MAX],
}

/// Words of a job's rounded rows, at most: of `sources`, each with its inputs, and of hidden rows.
pub(crate) fn job_words(rows: usize, uses: usize, inputs: &[usize], rank: usize) -> usize {
    let whole = rows.div_ceil(TILE_ROWS);
    // Segments may each fill up a tile; where that were much, all rows stand once and adapters' rows again.
    let tiles = if uses > 1 + whole / 4 { 2 * whole + uses } else { whole + uses - uses.min(1) };
    let of = |inputs: usize| inputs.div_ceil(TILE_INPUTS);
    let hidden = inputs.len().max(PRODUCTS_MAX) * of(rank);
    tiles * TILE_WORDS * (inputs.iter().map(|&inputs| of(inputs)).sum::<usize>() + hidden)
}

impl Job<'_> {
    /// Computes all outputs.
    ///
    /// # Safety
    ///
    /// The set is available; views reach all rows and whole panels; nobody else writes the outputs.
    pub(crate) unsafe fn run(&self, arena: &mut Arena, pool: &Pool) {
        if self.rows == 0 {
            return;
        }
        let late = self.cut(arena);
        let tiles = arena.segments.last().map_or(0, |last| last.first_tile + last.tiles());
        let layout = Layout::new(self, tiles);
        arena.words.renew(layout.words);
        arena.sources = std::array::from_fn(|i| (layout.sources[i], layout.source_tiles[i]));
        let places = Places { words: arena.words.pointer_mut(), layout };
        arena.rounding.clear();
        for (i, segment) in arena.segments.iter().enumerate() {
            let parts = segment.rows.clone().step_by(ROUNDED_ROWS);
            let end = segment.rows.end;
            arena.rounding.extend(parts.map(|row| (i, row..end.min(row + ROUNDED_ROWS))));
        }
        let inputs = self.sources.iter().map(|source| source.inputs).sum::<usize>();
        let (segments, rounding) = (&arena.segments, &arena.rounding);
        pool.run_sized(rounding.len(), 2 * self.rows * inputs, &|i| {
            let (segment, rows) = &rounding[i];
            self.round(&segments[*segment], rows, &places);
        });
        self.multiply((arena, late), &places, pool);
    }

    /// Lists the segments; answers which of them are added when all rows have their frozen products.
    fn cut(&self, arena: &mut Arena) -> Range<usize> {
        let Arena { segments, cuts, .. } = arena;
        segments.clear();
        cuts.clear();
        cuts.extend([0, self.rows]);
        let step = self.first..self.first + self.rows;
        for lora_use in self.multipliers.iter().flat_map(|multiplier| multiplier.uses) {
            let rows = overlap(&lora_use.rows, &step);
            cuts.extend(
                [rows.start - self.first, rows.end - self.first].map(|cut| cut.min(self.rows)),
            );
        }
        cuts.sort_unstable();
        cuts.dedup();
        for cut in cuts.windows(2) {
            let row = self.first + cut[0];
            let mut uses = [None; PRODUCTS_MAX];
            for (of, multiplier) in uses.iter_mut().zip(self.multipliers) {
                *of = multiplier.uses.iter().position(|lora_use| lora_use.rows.contains(&row));
            }
            segments.push(Segment { rows: cut[0]..cut[1], first_tile: 0, uses });
        }
        let tiles = segments.iter().map(Segment::tiles).sum::<usize>();
        let whole = self.rows.div_ceil(TILE_ROWS);
        // Where many tiles would not be full, all rows share tiles, and adapters come later, in tiles of
        // their own: no number of one adapter's may meet another's rows.
        let late = if tiles > whole + whole / 4 + 1 {
            segments.retain(|segment| segment.uses.iter().any(Option::is_some));
            segments.insert(
                0,
                Segment { rows: 0..self.rows, first_tile: 0, uses: [None; PRODUCTS_MAX] },
            );
            1..segments.len()
        } else {
            0..0
        };
        let mut tile = 0;
        for segment in segments {
            segment.first_tile = tile;
            tile += segment.tiles();
        }
        late
    }

    /// Rounds rows, and multiplies them by the narrow sides of their adapters.
    fn round(&self, segment: &Segment, rows: &Range<usize>, places: &Places) {
        let tile = segment.tile_of(rows.start);
        for (i, source) in self.sources.iter().enumerate() {
            // SAFETY: the caller's contract; the tiles are this task's own.
            unsafe {
                let x = source.x.skip_rows(rows.start);
                round::rows(x, (rows.len(), source.inputs), places.source(i, tile));
            }
        }
        for (i, multiplier) in self.multipliers.iter().enumerate() {
            let Some(index) = segment.uses[i] else { continue };
            let LoraUse { lora, scale, .. } = &multiplier.uses[index];
            let (rank, source) = (lora.rank(), multiplier.source);
            let inputs = self.sources[source].inputs;
            // SAFETY: as above; the hidden rows are this task's own.
            unsafe {
                let sum = |out: ViewMut| {
                    let term = Term {
                        x: places.source(source, tile),
                        x_stride: places.layout.source_tiles[source] * TILE_WORDS,
                        w: lora.packed().narrow(multiplier.side, inputs),
                        tiles: places.layout.source_tiles[source],
                    };
                    let panels = 0..rank.div_ceil(LANES);
                    let rows = rows.len();
                    let begin = Begin::Zero;
                    Sums { terms: &[term], rows, panels, out, begin, far: true }.run();
                    let tiles = places.layout.hidden_tiles;
                    let hidden = View { pointer: out.pointer, stride: out.stride };
                    let to = (places.hidden(i, tile), tiles);
                    round::scaled_rows(hidden, (rows, rank), to, *scale);
                };
                match multiplier.hidden {
                    Some(hidden) => sum(hidden.skip_rows(rows.start)),
                    None => with_scratch(ROUNDED_ROWS * padded(rank), |scratch| {
                        sum(ViewMut { pointer: scratch, stride: padded(rank) });
                    }),
                }
            }
        }
    }

    /// Sums up the outputs.
    fn multiply(&self, (arena, late): (&mut Arena, Range<usize>), places: &Places, pool: &Pool) {
        let Arena { segments, multiplying, .. } = arena;
        let tiles = places.layout.source_tiles.iter().sum::<usize>().max(1);
        let most = (NEAR_WORDS / (tiles * TILE_WORDS)).max(2) * TILE_ROWS;
        multiplying.clear();
        if late.is_empty() {
            for (i, segment) in segments.iter().enumerate() {
                let parts = segment.rows.len().div_ceil(most);
                let height =
                    segment.rows.len().div_ceil(parts.max(1)).next_multiple_of(2 * TILE_ROWS);
                let end = segment.rows.end;
                let starts = segment.rows.clone().step_by(height);
                multiplying.extend(starts.map(|row| (i, row..end.min(row + height))));
            }
        } else {
            multiplying.push((0, 0..self.rows));
        }
        let panels = |output: &Output| output.outputs.div_ceil(LANES);
        let all = self.outputs.iter().map(panels).sum::<usize>();
        // Enough tasks that threads end together.
        let fair = multiplying.len() * all / (4 * pool.threads());
        let step = fair.clamp(4, TASK_PANELS) / 4 * 4;
        let groups = |output: &Output| panels(output).div_ceil(step);
        let across = self.outputs.iter().map(groups).sum::<usize>();
        let (segments, multiplying) = (&*segments, &*multiplying);
        let work = self.rows * tiles * TILE_INPUTS * all * LANES / 8;
        pool.run_sized(across * multiplying.len(), work, &|task| {
            let (segment, rows) = &multiplying[task / across];
            let mut group = task % across;
            for output in self.outputs {
                if group < groups(output) {
                    let panels = group * step..panels(output).min((group + 1) * step);
                    // SAFETY: the caller's contract; panels of rows are this task's own.
                    unsafe {
                        self.sum((&segments[*segment], rows, true), output, &panels, places);
                        for segment in &segments[late.clone()] {
                            self.sum((segment, &segment.rows, false), output, &panels, places);
                        }
                    }
                    return;
                }
                group -= groups(output);
            }
        });
    }

    /// Some panels of some of a segment's rows: whole, or what its adapters add.
    unsafe fn sum(
        &self,
        (segment, rows, is_whole): (&Segment, &Range<usize>, bool),
        output: &Output,
        panels: &Range<usize>,
        places: &Places,
    ) {
        let (tile, layout) = (segment.tile_of(rows.start), &places.layout);
        let mut terms = [Term::NONE; 2 * PRODUCTS_MAX];
        let mut count = 0;
        for i in output.of.clone() {
            let multiplier = &self.multipliers[i];
            if is_whole {
                let tiles = layout.source_tiles[multiplier.source];
                let x = places.source(multiplier.source, tile);
                let x_stride = tiles * TILE_WORDS;
                terms[count] = Term { x, x_stride, w: multiplier.panels, tiles };
                count += 1;
            }
            if let Some(index) = segment.uses[i] {
                let lora = multiplier.uses[index].lora;
                terms[count] = Term {
                    x: places.hidden(i, tile),
                    x_stride: layout.hidden_tiles * TILE_WORDS,
                    w: lora.packed().wide(multiplier.side, lora.rank()),
                    tiles: lora.rank().div_ceil(TILE_INPUTS),
                };
                count += 1;
            }
        }
        let out = output.out.skip_rows(rows.start);
        let begin = match output.bias {
            _ if !is_whole => Begin::Out,
            Some(bias) if output.add => {
                add_row(bias, out, rows.len(), panels);
                Begin::Out
            }
            None if output.add => Begin::Out,
            Some(bias) => Begin::Row(bias),
            None => Begin::Zero,
        };
        let (terms, rows, panels) = (&terms[..count], rows.len(), panels.clone());
        Sums { terms, rows, panels, out, begin, far: true }.run();
    }
}

/// `out[row] += from`, over some panels.
unsafe fn add_row(from: *const f32, out: ViewMut, rows: usize, panels: &Range<usize>) {
    for row in 0..rows {
        for i in panels.start * LANES..panels.end * LANES {
            *out.at(row, i) += *from.add(i);
        }
    }
}

impl Segment {
    fn tiles(&self) -> usize {
        self.rows.len().div_ceil(TILE_ROWS)
    }

    /// The tile that begins with a row of the job.
    fn tile_of(&self, row: usize) -> usize {
        debug_assert!((row - self.rows.start).is_multiple_of(TILE_ROWS), "tasks begin with a tile");
        self.first_tile + (row - self.rows.start) / TILE_ROWS
    }
}

/// Where each source's and each multiplier's tiles stand, in words.
struct Layout {
    sources: [usize; PRODUCTS_MAX],
    hiddens: [usize; PRODUCTS_MAX],
    /// Tiles of inputs in a tile of rows.
    source_tiles: [usize; PRODUCTS_MAX],
    hidden_tiles: usize,
    words: usize,
}

impl Layout {
    fn new(job: &Job<'_>, tiles: usize) -> Self {
        let uses = job.multipliers.iter().flat_map(|multiplier| multiplier.uses);
        let rank = uses.map(|lora_use| lora_use.lora.rank()).max().unwrap_or(0);
        let mut layout = Self {
            sources: [0; PRODUCTS_MAX],
            hiddens: [0; PRODUCTS_MAX],
            source_tiles: [0; PRODUCTS_MAX],
            hidden_tiles: rank.div_ceil(TILE_INPUTS),
            words: 0,
        };
        for (i, source) in job.sources.iter().enumerate() {
            layout.sources[i] = layout.words;
            layout.source_tiles[i] = source.inputs.div_ceil(TILE_INPUTS);
            layout.words += tiles * layout.source_tiles[i] * TILE_WORDS;
        }
        for hidden in &mut layout.hiddens[..job.multipliers.len()] {
            *hidden = layout.words;
            layout.words += tiles * layout.hidden_tiles * TILE_WORDS;
        }
        layout
    }
}

/// The arena's tiles during a job.
struct Places {
    words: *mut f32,
    layout: Layout,
}

// SAFETY: tasks write tiles of their own, and read what was written before.
unsafe impl Sync for Places {}

impl Places {
    fn source(&self, source: usize, tile: usize) -> *mut f32 {
        let tiles = tile * self.layout.source_tiles[source];
        self.words.wrapping_add(self.layout.sources[source] + tiles * TILE_WORDS)
    }

    fn hidden(&self, multiplier: usize, tile: usize) -> *mut f32 {
        let tiles = tile * self.layout.hidden_tiles;
        self.words.wrapping_add(self.layout.hiddens[multiplier] + tiles * TILE_WORDS)
    }
}
