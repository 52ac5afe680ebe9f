//! What is read off one row of logits: a token's logprob, the likeliest tokens, a drawn one.
//!
//! The vocabulary is never sorted. Each tile's greatest logit tells which tiles can hold what is looked
//! for; only their entries become candidates, and of those only the ones around the cut are ordered.

use std::cell::Cell;

use tinsmith_backend::{Draw, Drawn};

use crate::{
    buffer::{padded, with_scratch},
    lanes::{Kernel, LANES, Lanes, Path},
    score::{Exponentials, Statistics, tile_count, tile_range, tile_statistics},
};

/// One row of logits, divided by the temperature, with the sums over its vocabulary tiles.
pub(crate) struct Row<'a> {
    path: Path,
    logits: &'a [f32],
    statistics: Statistics,
    normalizer: f32,
    /// Each tile's greatest logit.
    tops: &'a [f32],
    /// Each tile's share of the sum of exponentials.
    weights: &'a [f32],
    /// Room for the exponentials of one tile.
    tile: *mut f32,
}

/// An entry of the vocabulary that may be taken.
#[derive(Clone, Copy)]
struct Candidate {
    /// In ascending order, the greatest logit comes first, and the lower id among equals.
    key: u64,
    /// Its exponential, from the row's greatest logit; 0 until it is asked for.
    share: f32,
}

/// What a thread looks through candidates with, kept from row to row.
#[derive(Default)]
struct Finds {
    candidates: Vec<Candidate>,
    exponentials: Vec<f32>,
}

thread_local! {
    static FINDS: Cell<Finds> = const {
        Cell::new(Finds { candidates: Vec::new(), exponentials: Vec::new() })
    };
}

/// How far below the greatest logit is looked, further each time that too little was found.
const DEPTHS: [f32; 6] = [2.0, 4.0, 7.0, 11.0, 17.0, f32::INFINITY];

/// Candidates that are ordered rather than parted again.
const ORDERED: usize = 32;

/// Candidates that are sorted rather than gathered again.
const SORTED: usize = 1024;

/// Floats of the scratch for one row of logits, at most, and of what is found in it.
pub(crate) fn scratch_floats(vocabulary: usize) -> usize {
    let found = (size_of::<Candidate>() / size_of::<f32>() + 1) * vocabulary;
    row_floats(vocabulary) + padded(vocabulary) + found
}

/// Two places for each tile, then one for each entry of a tile.
fn row_floats(vocabulary: usize) -> usize {
    2 * padded(tile_count(vocabulary)) + padded(tile_range(0, vocabulary).len())
}

/// Calls `read` with the row `logits / temperature`; the temperature 1 leaves the logits as they are.
pub(crate) fn with_row<R>(
    path: Path,
    logits: &[f32],
    temperature: f32,
    read: impl FnOnce(&Row<'_>) -> R,
) -> R {
    let tiles = tile_count(logits.len());
    let (places, own) = (padded(tiles), row_floats(logits.len()));
    let tempered = temperature != 1.0;
    let copied = if tempered { padded(logits.len()) } else { 0 };
    with_scratch(own + copied, |scratch| {
        // SAFETY: the scratch has what `row_floats` says, then, if they are tempered, a place for each
        // logit.
        unsafe {
            let logits = if tempered {
                let copy = std::slice::from_raw_parts_mut(scratch.add(own), logits.len());
                let (from, to) = (logits.as_ptr(), copy.as_mut_ptr());
                path.run(Divide { from, to, count: logits.len(), by: temperature });
                &*copy
            } else {
                logits
            };
            let statistics = tile_statistics(path, logits, scratch);
            read(&Row {
                path,
                logits,
                normalizer: statistics.normalizer(),
                statistics,
                tops: std::slice::from_raw_parts(scratch.add(places), tiles),
                weights: std::slice::from_raw_parts(scratch, tiles),
                tile: scratch.add(2 * places),
            })
        }
    })
}

/// `to[i] = from[i] / by`.
struct Divide {
    from: *const f32,
    to: *mut f32,
    count: usize,
    by: f32,
}

impl Kernel for Divide {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let by = L::splat(self.by);
        let mut i = 0;
        while i < self.count {
            let count = self.count - i;
            L::load_head(self.from.add(i), count, 0.0).div(by).store_head(self.to.add(i), count);
            i += LANES;
        }
    }
}

impl Row<'_> {
    /// A token with its logprob.
    pub(crate) fn token(&self, id: usize) -> Drawn {
        let token = u32::try_from(id).expect("a vocabulary has fewer entries");
        Drawn { token, logprob: self.logits[id] - self.normalizer }
    }

    /// Fills `out` with the likeliest tokens, the likeliest first.
    pub(crate) fn top(&self, out: &mut [Drawn]) {
        if !self.normalizer.is_finite() {
            return out.fill(self.token(0));
        }
        with_finds(|finds| {
            self.greatest(out.len(), finds);
            finds.candidates.sort_unstable_by_key(|candidate| candidate.key);
            for (out, candidate) in out.iter_mut().zip(&finds.candidates) {
                *out = self.token(candidate.id());
            }
        });
    }

    /// The token that a draw gives.
    pub(crate) fn draw(&self, draw: &Draw) -> Drawn {
        let id = if !self.normalizer.is_finite() {
            0
        } else if draw.temperature == 0.0 {
            self.first_greatest()
        } else if draw.top_k.is_none() && draw.top_p >= 1.0 {
            self.of_all(draw.uniform)
        } else {
            with_finds(|finds| self.of_head(draw, finds))
        };
        self.token(id)
    }

    fn first_greatest(&self) -> usize {
        let is_greatest = |logit: &f32| *logit == self.statistics.greatest;
        let tile = self.tops.iter().position(is_greatest).unwrap_or(0);
        let range = tile_range(tile, self.logits.len());
        range.start + self.logits[range].iter().position(is_greatest).unwrap_or(0)
    }

    /// The first token at which the cumulative sum exceeds `uniform` times the total.
    fn of_all(&self, uniform: f64) -> usize {
        let threshold = uniform * self.total();
        let (tile, below) = first_above(self.weights.iter().copied(), 0.0, threshold);
        let range = tile_range(tile, self.logits.len());
        // SAFETY: there is a place for each entry of a tile, and it is this row's alone.
        let exponentials = unsafe {
            let logits = &self.logits[range.clone()];
            self.exponentials(logits.as_ptr(), self.tile, logits.len());
            std::slice::from_raw_parts(self.tile, logits.len())
        };
        range.start + first_above(exponentials.iter().copied(), below, threshold).0
    }

    /// As [`Self::of_all`], among those that top-k and top-p leave.
    fn of_head(&self, draw: &Draw, finds: &mut Finds) -> usize {
        let top_p = f64::from(draw.top_p);
        if let Some(top_k) = draw.top_k {
            self.greatest(top_k, finds);
            let total = self.weigh(finds);
            if draw.top_p < 1.0 {
                keep_head(&mut finds.candidates, top_p * total);
            }
        } else {
            let wanted = top_p * self.total();
            for depth in DEPTHS {
                self.gather(self.statistics.greatest - depth, &mut finds.candidates);
                if self.weigh(finds) >= wanted {
                    break;
                }
            }
            keep_head(&mut finds.candidates, wanted);
        }
        self.in_vocabulary_order(finds);
        let candidates = &finds.candidates;
        let shares = || candidates.iter().map(|candidate| candidate.share);
        let total: f64 = shares().map(f64::from).sum();
        candidates[first_above(shares(), 0.0, draw.uniform * total).0].id()
    }

    /// Puts a head of the row, with its shares, into the order of the vocabulary.
    fn in_vocabulary_order(&self, finds: &mut Finds) {
        let candidates = &mut finds.candidates;
        let last = candidates.iter().max_by_key(|candidate| candidate.key);
        if let Some(&last) = last.filter(|_| candidates.len() > SORTED) {
            self.gather(last.logit(), candidates);
            candidates.retain(|candidate| candidate.key <= last.key);
            self.weigh(finds);
        } else {
            candidates.sort_unstable_by_key(|candidate| candidate.id());
        }
    }

    /// The sum of all exponentials.
    fn total(&self) -> f64 {
        self.weights.iter().copied().map(f64::from).sum()
    }

    /// Gathers the `count` greatest, in no order.
    fn greatest(&self, count: usize, finds: &mut Finds) {
        let count = count.clamp(1, self.logits.len());
        let candidates = &mut finds.candidates;
        // Of parts of the row, so many reach up to this one of their greatest, and so do at least as many
        // logits.
        let parts = self.logits.chunks(LANES);
        let least = if count <= self.tops.len() {
            nth_greatest(self.tops.iter().copied(), count, candidates)
        } else if count <= parts.len() {
            let greatest = |part: &[f32]| part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            nth_greatest(parts.map(greatest), count, candidates)
        } else {
            f32::NEG_INFINITY
        };
        self.gather(least, candidates);
        if candidates.len() > count {
            candidates.select_nth_unstable_by_key(count - 1, |candidate| candidate.key);
            candidates.truncate(count);
        }
    }

    /// Gathers all logits of at least `least`, in vocabulary order.
    fn gather(&self, least: f32, candidates: &mut Vec<Candidate>) {
        candidates.clear();
        for (tile, _) in self.tops.iter().enumerate().filter(|(_, top)| **top >= least) {
            let range = tile_range(tile, self.logits.len());
            let parts = self.logits[range.clone()].chunks(LANES);
            for (start, logits) in range.step_by(LANES).zip(parts) {
                // Most parts have none.
                if logits.iter().fold(false, |any, &logit| any | (logit >= least)) {
                    let found = (start..).zip(logits).filter(|(_, logit)| **logit >= least);
                    candidates.extend(found.map(|(id, &logit)| Candidate::new(logit, id)));
                }
            }
        }
    }

    /// Fills in the candidates' shares; gives their sum.
    fn weigh(&self, finds: &mut Finds) -> f64 {
        let Finds { candidates, exponentials } = finds;
        exponentials.clear();
        exponentials.extend(candidates.iter().map(|each| self.logits[each.id()]));
        let pointer = exponentials.as_mut_ptr();
        // SAFETY: the vector has so many entries, and each is read before it is written.
        unsafe { self.exponentials(pointer, pointer, exponentials.len()) };
        let mut sum = 0.0;
        for (candidate, &share) in candidates.iter_mut().zip(&*exponentials) {
            candidate.share = share;
            sum += f64::from(share);
        }
        sum
    }

    /// # Safety
    ///
    /// `from` and `to` have `count` places.
    unsafe fn exponentials(&self, from: *const f32, to: *mut f32, count: usize) {
        let minus = self.statistics.greatest;
        self.path.run(Exponentials { from, to, count, minus, factor: 1.0 });
    }
}

impl Candidate {
    fn new(logit: f32, id: usize) -> Self {
        // Zeros of either sign are equal.
        let bits = (logit + 0.0).to_bits();
        let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        let id = u32::try_from(id).expect("a vocabulary has fewer entries");
        Self { key: u64::from(!ascending) << 32 | u64::from(id), share: 0.0 }
    }

    fn id(&self) -> usize {
        let [low, _] = self.halves();
        low as usize
    }

    fn logit(&self) -> f32 {
        let [_, high] = self.halves();
        let ascending = !high;
        f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
    }

    #[expect(clippy::cast_possible_truncation, reason = "these are the halves")]
    fn halves(&self) -> [u32; 2] {
        [self.key as u32, (self.key >> 32) as u32]
    }
}

fn with_finds<R>(find: impl FnOnce(&mut Finds) -> R) -> R {
    FINDS.with(|cell| {
        let mut finds = cell.take();
        let result = find(&mut finds);
        cell.set(finds);
        result
    })
}

/// The `count`-th greatest of the values.
fn nth_greatest(
    values: impl Iterator<Item = f32>,
    count: usize,
    candidates: &mut Vec<Candidate>,
) -> f32 {
    candidates.clear();
    candidates.extend(values.map(|value| Candidate::new(value, 0)));
    let (_, nth, _) = candidates.select_nth_unstable_by_key(count - 1, |candidate| candidate.key);
    nth.logit()
}

/// Keeps the smallest head, in descending order of logits, whose shares reach `wanted`; it is left in no
/// order. Each round parts the candidates around the cut and looks on in the half that has it.
fn keep_head(candidates: &mut Vec<Candidate>, wanted: f64) {
    let (mut start, mut end, mut sum) = (0, candidates.len(), 0.0);
    while end - start > ORDERED {
        let half = (end - start) / 2;
        candidates[start..end].select_nth_unstable_by_key(half, |candidate| candidate.key);
        let upper = &candidates[start..start + half];
        let more = sum + upper.iter().map(|candidate| f64::from(candidate.share)).sum::<f64>();
        if more >= wanted {
            end = start + half;
        } else {
            (start, sum) = (start + half, more);
        }
    }
    candidates[start..end].sort_unstable_by_key(|candidate| candidate.key);
    let reaches = |candidate: &Candidate| {
        sum += f64::from(candidate.share);
        sum >= wanted
    };
    let last = candidates[start..end].iter().position(reaches);
    candidates.truncate(last.map_or(end, |last| start + last + 1));
}

/// The first place at which `sum` plus the weights so far exceeds the threshold, and the sum before
/// it; the last weight above zero if rounding leaves none.
fn first_above(weights: impl Iterator<Item = f32>, mut sum: f64, threshold: f64) -> (usize, f64) {
    let (mut last, mut below) = (0, sum);
    for (place, weight) in weights.enumerate() {
        if weight > 0.0 {
            (last, below) = (place, sum);
            sum += f64::from(weight);
            if sum > threshold {
                break;
            }
        }
    }
    (last, below)
}
