//! Causal attention over tiles of keys, the same for training, chunked prefill and decode.
//!
//! In f32, scores are one chain over `head_dim`; the online softmax (Milakov and Gimelshein 2018) visits
//! tiles in order, from the first that a window reaches; a masked key adds an exact zero and a tile masked
//! whole changes nothing, so the grouping of queries leaves no trace. `attention/amx.rs` has the other way.

use std::{cell::Cell, ops::Range};

use tinsmith_backend::{ATTENTION_TILE, AttentionShape, PagedSequence, Qkv, Result};

use crate::{
    CpuBackend,
    buffer::{Buffer, Rows, View, ViewMut, padded, with_scratch},
    gemm::{Fold, Multiply},
    lanes::{Kernel, LANES, Lanes},
    lists::with_list,
    math, softcap,
};

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;
mod tiling;

pub(crate) use tiling::Tiling;

/// Keys and values of every layer: `[block][layer][kv head]` tiles.
#[derive(Debug)]
pub struct Cache {
    data: Buffer,
    /// Blocks from the first on whose memory the system was asked for.
    present: usize,
    tiling: Tiling,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Floats of a cache that the system is asked for at once: 32 MiB.
const PRESENT_FLOATS: usize = 8 << 20;

impl Cache {
    pub(crate) fn new(
        tiling: Tiling,
        (blocks, layers): (usize, usize),
        shape: &AttentionShape,
    ) -> Result<Self> {
        let (kv_heads, head_dim) = (shape.kv_heads, shape.head_dim);
        let data = Buffer::zeros(blocks * layers * kv_heads * tiling.words(head_dim))?;
        Ok(Self { data, present: 0, tiling, layers, kv_heads, head_dim })
    }

    pub(crate) fn copy_block(&mut self, from: u32, to: u32) {
        let floats = self.block_floats();
        let (from, to) = (from as usize * floats, to as usize * floats);
        self.data.floats_mut().copy_within(from..from + floats, to);
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.block_floats() * size_of::<f32>()
    }

    pub(crate) fn read_block(&self, block: u32, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.block_bytes(), "a block is read whole");
        let floats = &self.data.floats()[block as usize * self.block_floats()..];
        for (to, float) in bytes.chunks_exact_mut(size_of::<f32>()).zip(floats) {
            to.copy_from_slice(&float.to_ne_bytes());
        }
    }

    pub(crate) fn write_block(&mut self, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.block_bytes(), "a block is written whole");
        let first = block as usize * self.block_floats();
        let floats = &mut self.data.floats_mut()[first..];
        for (float, from) in floats.iter_mut().zip(bytes.as_chunks().0) {
            *float = f32::from_ne_bytes(*from);
        }
    }

    /// Makes sure that the memory of the first blocks, that many, is there before it is written page by page.
    fn make_present(&mut self, blocks: usize) {
        if blocks > self.present {
            let floats = self.block_floats();
            let all = self.data.floats().len() / floats.max(1);
            let end = all.min(blocks + PRESENT_FLOATS / floats.max(1));
            self.data.make_present(self.present * floats..end * floats);
            self.present = end;
        }
    }

    fn block_floats(&self) -> usize {
        self.layers * self.kv_heads * self.tiling.words(self.head_dim)
    }

    /// Block `b` of a layer begins in row `b`.
    fn layer_offset(&self, layer: usize) -> usize {
        layer * self.kv_heads * self.tiling.words(self.head_dim)
    }

    fn holds(&self, blocks: &[u32], tokens: usize) -> bool {
        let count = self.data.floats().len() / self.block_floats().max(1);
        tokens <= blocks.len() * ATTENTION_TILE && blocks.iter().all(|&b| (b as usize) < count)
    }
}

/// Floats of the tiles of a training step, at most: each sequence's last tile may be almost empty.
pub(crate) fn packed_floats(
    tiling: Tiling,
    (rows, sequences): (usize, usize),
    shape: &AttentionShape,
) -> usize {
    let tiles = rows.min(rows / ATTENTION_TILE + sequences);
    tiles * packed_stride(tiling, shape)
}

/// Multiply-adds that writing one key's element is about worth.
const WRITE_COST: usize = 8;

pub(crate) fn cache_write(
    cpu: &CpuBackend,
    cache: &mut Cache,
    layer: usize,
    (k, v): (&Rows, &Rows),
    sequences: &[PagedSequence<'_>],
) {
    let (dim, kv_heads, stride) = (cache.head_dim, cache.kv_heads, cache.block_floats());
    let (tiling, words) = (cache.tiling, cache.tiling.words(dim));
    assert!(k.features == kv_heads * dim && v.features == kv_heads * dim, "shapes fit");
    for sequence in sequences {
        let end = sequence.position + sequence.rows.len();
        assert!(cache.holds(sequence.blocks, end), "blocks hold the sequence");
        assert!(sequence.rows.end <= k.rows && sequence.rows.end <= v.rows, "rows exist");
    }
    let last = sequences.iter().flat_map(|sequence| sequence.blocks).max();
    cache.make_present(last.map_or(0, |&block| block as usize + 1));
    let offset = cache.layer_offset(layer);
    let to = ViewMut { pointer: cache.data.pointer_mut(), stride };
    let work = k.rows * k.features * WRITE_COST;
    // Sequences have blocks of their own to write into.
    cpu.pool.run_sized(sequences.len() * kv_heads, work, &|task| {
        let (sequence, head) = (&sequences[task / kv_heads], task % kv_heads);
        for (i, row) in sequence.rows.clone().enumerate() {
            let position = sequence.position + i;
            let block = sequence.blocks[position / ATTENTION_TILE] as usize;
            // SAFETY: blocks and rows were looked at above; a sequence's head is one task's own.
            unsafe {
                let tile = to.at(block, offset + head * words);
                let token = (k.view().at(row, head * dim), v.view().at(row, head * dim));
                tiling.write_token(tile, position % ATTENTION_TILE, token, dim);
            }
        }
    });
}

pub(crate) fn attention(
    cpu: &mut CpuBackend,
    (out, lse): (&mut Rows, &mut Rows),
    qkv: &Qkv<'_, CpuBackend>,
    sequences: &[Range<usize>],
    shape: &AttentionShape,
) {
    lse.reshape(qkv.q.rows, shape.heads);
    let (k, v) = (qkv.k, qkv.v);
    assert!(
        k.features == shape.kv_heads * shape.head_dim && v.features == k.features,
        "shapes fit"
    );
    with_list(&TILES, |tiles| {
        with_list(&FIRSTS, |firsts| {
            for rows in sequences {
                assert!(rows.end <= k.rows && rows.end <= v.rows, "rows exist");
                firsts.push(tiles.len());
                let starts = rows.clone().step_by(ATTENTION_TILE);
                tiles.extend(starts.map(|start| start..rows.end.min(start + ATTENTION_TILE)));
            }
            pack(cpu, tiles, (k, v), shape);
            let stride = packed_stride(Tiling::of(cpu.set), shape);
            let packed = View { pointer: cpu.packed.pointer(), stride };
            let part = |index: usize| {
                // SAFETY: the sequence's tiles begin there.
                let base = unsafe { packed.skip_rows(firsts[index]) };
                let tiles = Tiles { base, blocks: None };
                Part { rows: sequences[index].clone(), position: 0, tiles }
            };
            attend(cpu, (out, Some(lse)), qkv.q, (sequences.len(), &part), shape);
        });
    });
}

/// Packs the keys and values of a step's tiles.
fn pack(
    cpu: &mut CpuBackend,
    tiles: &[Range<usize>],
    (k, v): (&Rows, &Rows),
    shape: &AttentionShape,
) {
    let (dim, tiling) = (shape.head_dim, Tiling::of(cpu.set));
    let (words, stride) = (tiling.words(dim), packed_stride(tiling, shape));
    cpu.packed.renew(tiles.len() * stride);
    let to = ViewMut { pointer: cpu.packed.pointer_mut(), stride };
    cpu.pool.run_sized(tiles.len(), k.rows * k.features * WRITE_COST, &|tile| {
        for head in 0..shape.kv_heads {
            for (slot, row) in tiles[tile].clone().enumerate() {
                // SAFETY: the buffer has a place for each tile; each tile is one task's own.
                unsafe {
                    let to = to.at(tile, head * words);
                    let token = (k.view().at(row, head * dim), v.view().at(row, head * dim));
                    tiling.write_token(to, slot, token, dim);
                }
            }
        }
    });
}

/// Floats of one tile of all key-value heads.
fn packed_stride(tiling: Tiling, shape: &AttentionShape) -> usize {
    shape.kv_heads * tiling.words(shape.head_dim)
}

pub(crate) fn attention_paged(
    cpu: &CpuBackend,
    out: &mut Rows,
    q: &Rows,
    (cache, layer): (&Cache, usize),
    sequences: &[PagedSequence<'_>],
    shape: &AttentionShape,
) {
    assert!((cache.kv_heads, cache.head_dim) == (shape.kv_heads, shape.head_dim), "shapes fit");
    // SAFETY: the layer's tiles lie in the cache.
    let pointer = unsafe { cache.data.pointer().add(cache.layer_offset(layer)) };
    let base = View { pointer, stride: cache.block_floats() };
    for sequence in sequences {
        let end = sequence.position + sequence.rows.len();
        assert!(cache.holds(sequence.blocks, end), "blocks hold the sequence");
    }
    let part = |index: usize| {
        let PagedSequence { rows, position, blocks } = &sequences[index];
        let tiles = Tiles { base, blocks: Some(blocks) };
        Part { rows: rows.clone(), position: *position, tiles }
    };
    attend(cpu, (out, None), q, (sequences.len(), &part), shape);
}

thread_local! {
    /// Rows of each tile.
    static TILES: Cell<Vec<Range<usize>>> = const { Cell::new(Vec::new()) };
    /// The first tile of each sequence.
    static FIRSTS: Cell<Vec<usize>> = const { Cell::new(Vec::new()) };
    /// Number of a part, some of its queries, and a key-value head.
    static TASKS: Cell<Vec<(usize, Range<usize>, usize)>> = const { Cell::new(Vec::new()) };
}

/// One sequence's queries in a step, and where its keys are.
struct Part<'a> {
    rows: Range<usize>,
    position: usize,
    tiles: Tiles<'a>,
}

/// Tile `i` stands in row `blocks[i]`, or in row `i`.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    base: View,
    blocks: Option<&'a [u32]>,
}

/// Queries that one task takes through the tiles together: whole groups of every microkernel.
const QUERIES: usize = 48;

fn attend<'p>(
    cpu: &CpuBackend,
    (out, lse): (&mut Rows, Option<&mut Rows>),
    q: &Rows,
    (parts, part): (usize, &(dyn Fn(usize) -> Part<'p> + Sync)),
    shape: &AttentionShape,
) {
    let dim = shape.head_dim;
    assert!(q.features == shape.heads * dim && out.features == q.features, "shapes fit");
    assert!(shape.window != Some(0), "a window holds the query's own key");
    assert!(out.rows == q.rows, "rows fit");
    let tiling = Tiling::of(cpu.set);
    let step = tiling.queries(shape);
    with_list(&TASKS, |tasks| {
        let mut keys = 0;
        for index in 0..parts {
            let part = part(index);
            assert!(part.rows.end <= q.rows, "rows exist");
            for start in (0..part.rows.len()).step_by(step) {
                let end = part.rows.len().min(start + step);
                let reach = shape.window.map_or(usize::MAX, |window| window.saturating_add(step));
                keys += (end - start) * (part.position + end).min(reach);
                tasks.extend((0..shape.kv_heads).map(|head| (index, start..end, head)));
            }
        }
        // The long ones first, so that no thread is left with one at the end.
        tasks.reverse();
        let (out, lse) = (out.view_mut(), lse.map(Rows::view_mut));
        let target = Target { q: q.view(), out, lse, shape };
        let work = keys * shape.heads * 2 * (dim + LANES);
        cpu.pool.run_sized(tasks.len(), work, &|i| {
            let (index, queries, head) = &tasks[i];
            with_scratch(tiling.scratch_floats(dim), |scratch| {
                let (part, queries) = (&part(*index), queries.clone());
                // SAFETY: shapes and rows were compared above; rows and heads are one task's own.
                unsafe {
                    match tiling {
                        Tiling::Floats => target.run(cpu, part, queries, *head, scratch),
                        #[cfg(target_arch = "x86_64")]
                        Tiling::Pairs => amx::attend(&target, part, queries, *head, scratch),
                        #[cfg(not(target_arch = "x86_64"))]
                        Tiling::Pairs => unreachable!("no such set is available on this CPU"),
                    }
                }
            });
        });
    });
}

/// What all tasks of an op share.
struct Target<'a> {
    q: View,
    out: ViewMut,
    lse: Option<ViewMut>,
    shape: &'a AttentionShape,
}

impl Target<'_> {
    /// Queries of one token are grouped by head, others by token.
    unsafe fn run(
        &self,
        cpu: &CpuBackend,
        part: &Part<'_>,
        queries: Range<usize>,
        kv_head: usize,
        scratch: *mut f32,
    ) {
        let (dim, group) = (self.shape.head_dim, self.shape.heads / self.shape.kv_heads);
        let heads = kv_head * group..(kv_head + 1) * group;
        let row = part.rows.start + queries.start;
        let by_head = queries.len() == 1;
        let (step, count) = if by_head { (QUERIES, 1) } else { (1, queries.len()) };
        for head in heads.clone().step_by(step) {
            let rows = if by_head { QUERIES.min(heads.end - head) } else { count };
            let (q_step, out_step) =
                if by_head { (dim, dim) } else { (self.q.stride, self.out.stride) };
            cpu.path.run(Attend {
                q: View { pointer: self.q.at(row, head * dim), stride: q_step },
                out: ViewMut { pointer: self.out.at(row, head * dim), stride: out_step },
                lse: self.lse.map(|lse| ViewMut {
                    pointer: lse.at(row, head),
                    stride: if by_head { 1 } else { lse.stride },
                }),
                rows,
                position: part.position + queries.start,
                position_step: usize::from(!by_head),
                tiles: part.tiles,
                tile_offset: kv_head * Tiling::Floats.words(dim),
                dim,
                shape: self.shape,
                scratch: Scratch::new(scratch, dim),
            });
        }
    }
}

/// Running state of a group of queries.
#[derive(Clone, Copy)]
struct Scratch {
    scores: *mut f32,
    sums: *mut f32,
    greatest: *mut f32,
    totals: *mut f32,
    decays: *mut f32,
}

impl Scratch {
    fn floats(dim: usize) -> usize {
        QUERIES * (ATTENTION_TILE + padded(dim) + 3)
    }

    /// # Safety
    ///
    /// The pointer reaches that many floats.
    unsafe fn new(scratch: *mut f32, dim: usize) -> Self {
        let sums = scratch.add(QUERIES * ATTENTION_TILE);
        let greatest = sums.add(QUERIES * padded(dim));
        let totals = greatest.add(QUERIES);
        Self { scores: scratch, sums, greatest, totals, decays: totals.add(QUERIES) }
    }
}

/// Attention of a group of queries, row `i` at `position + i * position_step`.
struct Attend<'a> {
    q: View,
    out: ViewMut,
    lse: Option<ViewMut>,
    rows: usize,
    position: usize,
    position_step: usize,
    tiles: Tiles<'a>,
    tile_offset: usize,
    dim: usize,
    shape: &'a AttentionShape,
    scratch: Scratch,
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (scratch, wide) = (self.scratch, padded(self.dim));
        std::slice::from_raw_parts_mut(scratch.sums, self.rows * wide).fill(0.0);
        std::slice::from_raw_parts_mut(scratch.greatest, QUERIES).fill(f32::NEG_INFINITY);
        std::slice::from_raw_parts_mut(scratch.totals, QUERIES).fill(0.0);
        std::slice::from_raw_parts_mut(scratch.decays, QUERIES).fill(0.0);
        let tokens = self.position + self.position_step * (self.rows - 1) + 1;
        let first = self.shape.visible(self.position).start / ATTENTION_TILE;
        for tile in first..tokens.div_ceil(ATTENTION_TILE) {
            let row = self.tiles.blocks.map_or(tile, |blocks| blocks[tile] as usize);
            let keys = self.tiles.base.at(row, self.tile_offset);
            let scores = ViewMut { pointer: scratch.scores, stride: ATTENTION_TILE };
            L::call(Multiply {
                a: self.q.pointer,
                a_row: self.q.stride,
                a_k: 1,
                b: keys,
                b_panel: LANES,
                b_k: ATTENTION_TILE,
                k: self.dim,
                rows: self.rows,
                panels: ATTENTION_TILE / LANES,
                out: scores,
                fold: Fold::Store,
            });
            self.softmax::<L>(tile * ATTENTION_TILE);
            L::call(Multiply {
                a: scratch.scores,
                a_row: ATTENTION_TILE,
                a_k: 1,
                b: keys.add(ATTENTION_TILE * self.dim),
                b_panel: LANES,
                b_k: wide,
                k: ATTENTION_TILE.min(tokens - tile * ATTENTION_TILE),
                rows: self.rows,
                panels: wide / LANES,
                out: ViewMut { pointer: scratch.sums, stride: wide },
                fold: Fold::Decayed(scratch.decays),
            });
        }
        self.finish::<L>();
    }
}

impl Attend<'_> {
    /// Scores of a tile become exponentials; the running maximum, total and decay follow.
    #[inline(always)]
    unsafe fn softmax<L: Lanes>(&self, first_key: usize) {
        let scratch = self.scratch;
        for i in 0..self.rows {
            let keys = self.shape.visible(self.position + i * self.position_step);
            let (scores, greatest) =
                (scratch.scores.add(i * ATTENTION_TILE), scratch.greatest.add(i));
            let [a, b] = scaled_scores::<L>(scores, self.shape, (first_key, keys));
            a.store(scores);
            b.store(scores.add(LANES));
            let top = a.max(b).greatest();
            let new = if *greatest > top { *greatest } else { top };
            *scratch.decays.add(i) = *greatest - base(new);
            *greatest = new;
        }
        for i in (0..self.rows).step_by(LANES) {
            math::exp(L::load(scratch.decays.add(i))).store(scratch.decays.add(i));
        }
        for i in 0..self.rows {
            let scores = scratch.scores.add(i * ATTENTION_TILE);
            let greatest = L::splat(base(*scratch.greatest.add(i)));
            let a = math::exp(L::load(scores).sub(greatest));
            let b = math::exp(L::load(scores.add(LANES)).sub(greatest));
            a.store(scores);
            b.store(scores.add(LANES));
            let total = scratch.totals.add(i);
            *total = *total * *scratch.decays.add(i) + a.add(b).sum();
        }
    }

    #[inline(always)]
    unsafe fn finish<L: Lanes>(&self) {
        let wide = padded(self.dim);
        for i in 0..self.rows {
            let total = *self.scratch.totals.add(i);
            let mut d = 0;
            while d < self.dim {
                let sum = L::load(self.scratch.sums.add(i * wide + d));
                sum.div(L::splat(total)).store_head(self.out.at(i, d), self.dim - d);
                d += LANES;
            }
            if let Some(lse) = self.lse {
                *lse.at(i, 0) = *self.scratch.greatest.add(i) + math::log(total);
            }
        }
    }
}

/// What exponentials are taken from: the greatest score so far, or anything while a query has seen none.
#[inline(always)]
fn base(greatest: f32) -> f32 {
    if greatest == f32::NEG_INFINITY { 0.0 } else { greatest }
}

/// The scores of a tile whose first key is `first`, scaled and capped; minus infinity for the keys that
/// are not `visible`.
#[inline(always)]
pub(crate) unsafe fn scaled_scores<L: Lanes>(
    scores: *const f32,
    shape: &AttentionShape,
    (first, visible): (usize, Range<usize>),
) -> [L; 2] {
    const NUMBERS: [f32; 32] = {
        let mut numbers = [0.0; 32];
        let mut i = 0;
        while i < 32 {
            numbers[i] = i as f32;
            i += 1;
        }
        numbers
    };
    let scale = L::splat(shape.scale);
    let (mut a, mut b) = (L::load(scores).mul(scale), L::load(scores.add(LANES)).mul(scale));
    if let Some(cap) = shape.softcap {
        a = softcap::capped(a, L::splat(cap));
        b = softcap::capped(b, L::splat(cap));
    }
    let start = visible.start.saturating_sub(first).min(ATTENTION_TILE);
    let end = visible.end.saturating_sub(first).min(ATTENTION_TILE);
    if start == 0 && end == ATTENTION_TILE {
        return [a, b];
    }
    let (start, end) = (L::splat(start as f32), L::splat(end as f32));
    let masked = L::splat(f32::NEG_INFINITY);
    let (low, high) = (L::load(NUMBERS.as_ptr()), L::load(NUMBERS.as_ptr().add(LANES)));
    [
        low.select_less(start, masked, low.select_less(end, a, masked)),
        high.select_less(start, masked, high.select_less(end, b, masked)),
    ]
}
