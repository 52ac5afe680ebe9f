//! Draws tokens: the logits and the log-softmax are those of `score`, to the bit.
//!
//! Without top-k and top-p, the token is found by walking the vocabulary tiles' sums and then one tile;
//! with them, by partial selection: the vocabulary is never sorted whole.

use std::{cell::Cell, cmp::Ordering};

use tinsmith_backend::{Draw, Drawn, LoraUse, Unembedding};

use crate::{
    CpuBackend,
    buffer::{Cells, Lora, Rows, padded, with_scratch},
    lanes::Path,
    linear::{Side, project},
    score::{Exponentials, Unembed, statistics, tile_count, tile_range, tile_statistics},
};

pub(crate) fn sample(
    cpu: &mut CpuBackend,
    drawn: &mut Vec<Drawn>,
    x: &Rows,
    (unembedding, uses): (Unembedding<'_, CpuBackend>, &[LoraUse<'_, Lora>]),
    draws: &[Draw],
) {
    let (path, pool) = (cpu.path, &cpu.pool);
    assert!(draws.len() == x.rows, "a draw for each row");
    project(&mut cpu.hidden, x, uses, Side::Down, (path, pool));
    let unembed = Unembed { x, unembedding, hidden: &cpu.hidden, uses };
    drawn.clear();
    drawn.resize(x.rows, Drawn { token: 0, logprob: 0.0 });
    for rows in unembed.chunks() {
        unembed.logits(&mut cpu.logits, &rows, (path, pool));
        let (count, features, view) = (rows.len(), cpu.logits.features, cpu.logits.view_mut());
        let out = Cells::new(&mut drawn[rows.clone()]);
        pool.run_sized(count, count * features * 8, &|row| {
            // SAFETY: each row, and its place in the answer, is one task's own.
            unsafe {
                let logits = std::slice::from_raw_parts_mut(view.at(row, 0), features);
                out.put(row, draw_row(path, logits, &draws[rows.start + row]));
            }
        });
    }
}

fn draw_row(path: Path, logits: &mut [f32], draw: &Draw) -> Drawn {
    if draw.temperature == 0.0 {
        let statistics = statistics(path, logits);
        let token = logits.iter().position(|&logit| logit == statistics.greatest).unwrap_or(0);
        return drawn(token, logits[token] - statistics.normalizer());
    }
    if draw.temperature != 1.0 {
        for logit in logits.iter_mut() {
            *logit /= draw.temperature;
        }
    }
    if draw.top_k.is_none() && draw.top_p >= 1.0 {
        draw_of_all(path, logits, draw.uniform)
    } else {
        draw_of_head(path, logits, draw)
    }
}

fn drawn(token: usize, logprob: f32) -> Drawn {
    Drawn { token: u32::try_from(token).expect("a vocabulary has fewer entries"), logprob }
}

/// The first token at which the cumulative sum exceeds `uniform` times the total.
fn draw_of_all(path: Path, logits: &[f32], uniform: f64) -> Drawn {
    let tiles = tile_count(logits.len());
    with_scratch(scratch_of_all(logits.len()), |weights| {
        // SAFETY: the scratch has two places for each tile, then one for each entry of a tile.
        let (statistics, weights, exponentials) = unsafe {
            let statistics = tile_statistics(path, logits, weights);
            let exponentials = weights.add(2 * padded(tiles));
            (statistics, std::slice::from_raw_parts(weights, tiles), exponentials)
        };
        let total = weights.iter().copied().map(f64::from).sum::<f64>();
        let (tile, below) = first_above(weights, 0.0, uniform * total);
        let range = tile_range(tile, logits.len());
        let part = &logits[range.clone()];
        // SAFETY: the scratch has a place for each entry of a tile.
        let exponentials = unsafe {
            path.run(Exponentials {
                from: part.as_ptr(),
                to: exponentials,
                count: part.len(),
                minus: statistics.greatest,
                factor: 1.0,
            });
            std::slice::from_raw_parts(exponentials, part.len())
        };
        let (inside, _) = first_above(exponentials, below, uniform * total);
        let token = range.start + inside;
        drawn(token, logits[token] - statistics.normalizer())
    })
}

/// The first index at which `sum` plus the weights so far exceeds the threshold, and the sum before
/// it; the last weight above zero if rounding leaves none.
fn first_above(weights: &[f32], mut sum: f64, threshold: f64) -> (usize, f64) {
    let (mut last, mut below) = (0, sum);
    for (i, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            (last, below) = (i, sum);
            sum += f64::from(weight);
            if sum > threshold {
                break;
            }
        }
    }
    (last, below)
}

/// Floats of one task's scratch, at most, its candidates among them.
pub(crate) fn scratch_floats(vocabulary: usize) -> usize {
    let of_all = scratch_of_all(vocabulary);
    of_all.max(padded(vocabulary)) + vocabulary
}

fn scratch_of_all(vocabulary: usize) -> usize {
    2 * padded(tile_count(vocabulary)) + padded(tile_range(0, vocabulary).len())
}

thread_local! {
    static CANDIDATES: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Draws among the greatest logits.
fn draw_of_head(path: Path, logits: &[f32], draw: &Draw) -> Drawn {
    let statistics = statistics(path, logits);
    let mut candidates = CANDIDATES.take();
    candidates.clear();
    candidates.extend((0u32..).take(logits.len()));
    let token = with_scratch(padded(logits.len()), |exponentials| {
        // SAFETY: the scratch has a place for each logit.
        let weights = unsafe {
            path.run(Exponentials {
                from: logits.as_ptr(),
                to: exponentials,
                count: logits.len(),
                minus: statistics.greatest,
                factor: 1.0,
            });
            std::slice::from_raw_parts(exponentials, logits.len())
        };
        keep_head(&mut candidates, logits, weights, draw);
        candidates.sort_unstable();
        let sum_of =
            |ids: &[u32]| ids.iter().map(|&id| f64::from(weights[id as usize])).sum::<f64>();
        let threshold = draw.uniform * sum_of(&candidates);
        let mut sum = 0.0;
        let found = candidates.iter().find(|&&id| {
            sum += f64::from(weights[id as usize]);
            sum > threshold
        });
        found.or_else(|| candidates.last()).map_or(0, |&id| id as usize)
    });
    CANDIDATES.set(candidates);
    drawn(token, logits[token] - statistics.normalizer())
}

/// Keeps the `top_k` greatest, then the head of them whose share reaches `top_p`.
fn keep_head(candidates: &mut Vec<u32>, logits: &[f32], weights: &[f32], draw: &Draw) {
    let descending = |a: &u32, b: &u32| -> Ordering {
        logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
    };
    if let Some(top_k) = draw.top_k {
        let top_k = top_k.clamp(1, candidates.len());
        candidates.select_nth_unstable_by(top_k - 1, descending);
        candidates.truncate(top_k);
    }
    if draw.top_p >= 1.0 {
        return;
    }
    let weight = |id: &u32| f64::from(weights[*id as usize]);
    let wanted = f64::from(draw.top_p) * candidates.iter().map(weight).sum::<f64>();
    let (mut start, mut step, mut sum) = (0, 256, 0.0);
    while start < candidates.len() {
        let end = candidates.len().min(start + step);
        if end < candidates.len() {
            candidates[start..].select_nth_unstable_by(end - start - 1, descending);
        }
        candidates[start..end].sort_unstable_by(descending);
        for i in start..end {
            sum += weight(&candidates[i]);
            if sum >= wanted {
                return candidates.truncate(i + 1);
            }
        }
        (start, step) = (end, 4 * step);
    }
}
