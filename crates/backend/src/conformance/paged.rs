//! Attention over the paged cache: however a sequence is cut, what whole attention gives, to the bit.

use crate::{ATTENTION_TILE, Backend, PagedSequence};

use super::{
    Suite,
    attention::{Attention, SHAPES, WINDOWED, check_case},
    inputs::{blank, upload},
    step::{Answer, Case, Datum, Output, Segment, Step, datums, plain_step, ranges, values},
};

/// Attention whose sequences come in chunks of these lengths, over and over.
#[derive(Debug)]
struct Paged {
    attention: Attention,
    chunks: &'static [usize],
}

const LAYERS: usize = 2;

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    for attention in SHAPES.into_iter().chain(WINDOWED) {
        for chunks in [&[1000][..], &[1], &[31, 1, 0, 64, 33], &[32]] {
            let case = Paged { attention, chunks };
            for lengths in [&[1][..], &[33, 0, 65], &[31, 2, 130, 32]] {
                let step = plain_step(lengths);
                check_case(suite, &case, &step);
                let paged = case.run(&mut suite.backend, std::slice::from_ref(&step));
                let whole = attention.run(&mut suite.backend, &[step]);
                suite.same_outputs(&format!("{case:?} against whole"), &paged, &whole);
            }
        }
    }
    let case = Paged { attention: SHAPES[1], chunks: &[1, 300, 512] };
    check_case(suite, &case, &plain_step(&[1500, 7]));
    tiles_outside_the_window_are_not_read(suite);
}

/// Keys and values before the first tile that a window reaches may be anything, NaN too.
fn tiles_outside_the_window_are_not_read<B: Backend>(suite: &mut Suite<'_, B>) {
    let attention = Attention { window: Some(40), ..SHAPES[2] };
    let (wide, narrow, shape) =
        (attention.q_features(), attention.kv_features(), attention.shape());
    let (tokens, first) = (150, 96);
    let step = plain_step(&[tokens]);
    let (q, k, v) = (values(&step, 0, wide), values(&step, 1, narrow), values(&step, 2, narrow));
    let blocks: Vec<u32> = (0..5).collect();
    let mut outs = Vec::new();
    for lost in [0.0, f32::NAN] {
        let backend = &mut suite.backend;
        let mut cache = backend.cache(5, 1, &shape).expect("the suite's caches are small");
        let upload_kept = |backend: &mut B, kept: &[f32]| {
            let mut kept = kept.to_vec();
            kept[..first * narrow].fill(lost);
            upload(backend, narrow, &kept)
        };
        let (k, v) = (upload_kept(backend, &k), upload_kept(backend, &v));
        let all = PagedSequence { rows: 0..tokens, position: 0, blocks: &blocks };
        backend.cache_write(&mut cache, 0, &k, &v, std::slice::from_ref(&all));
        // The first of these queries sees keys 97 to 136.
        let last = PagedSequence { rows: 0..tokens - 136, position: 136, blocks: &blocks };
        let q = upload(backend, wide, &q[136 * wide..]);
        let mut out = blank(backend, tokens - 136, wide);
        backend.attention_paged(&mut out, &q, &cache, 0, &[last], &shape);
        outs.push(backend.read_rows(&out));
    }
    suite.same_bits("NaN outside the window", &outs[1], &outs[0]);
}

/// A sequence in progress.
struct Progress {
    datum: Datum,
    /// Where the next chunk stands in the list of chunks.
    turn: usize,
    blocks: Vec<u32>,
    /// A block that its first one moves to.
    spare: Option<u32>,
}

impl Case for Paged {
    fn label(&self) -> String {
        format!("{self:?}")
    }

    fn rowwise(&self) -> bool {
        false
    }

    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer {
        let mut answer = Answer::new(&[Output::Value("out")]);
        for step in steps {
            let mut sequences = self.admit(step);
            let block_count = sequences.iter().map(|sequence| sequence.blocks.len() + 1).sum();
            let mut cache = backend
                .cache(block_count, LAYERS, &self.attention.shape())
                .expect("the suite's caches are small");
            while sequences.iter().any(|sequence| !sequence.datum.rows.is_empty()) {
                self.advance(backend, &mut cache, &mut sequences, &mut answer);
            }
        }
        answer
    }
}

impl Paged {
    /// Sequences get every other block, from the last to the first.
    fn admit(&self, step: &Step) -> Vec<Progress> {
        let counts: Vec<usize> =
            datums(step).map(|datum| datum.rows.len().div_ceil(ATTENTION_TILE)).collect();
        let block_count = counts.iter().map(|count| count + 1).sum::<usize>();
        let block_count = u32::try_from(block_count).expect("few blocks");
        let (odd, even): (Vec<u32>, Vec<u32>) = (0..block_count).rev().partition(|id| id % 2 == 1);
        let mut free = odd.into_iter().chain(even);
        let progress = |(turn, (datum, count)): (usize, (&Datum, &usize))| Progress {
            datum: datum.clone(),
            turn: turn % self.chunks.len(),
            blocks: free.by_ref().take(*count).collect(),
            spare: free.next(),
        };
        datums(step).zip(&counts).enumerate().map(progress).collect()
    }

    /// One call for the next chunk of each sequence.
    fn advance<B: Backend>(
        &self,
        backend: &mut B,
        cache: &mut B::Cache,
        sequences: &mut [Progress],
        answer: &mut Answer,
    ) {
        let chunk = |sequence: &mut Progress| {
            let rows = &mut sequence.datum.rows;
            let length = self.chunks[sequence.turn % self.chunks.len()].min(rows.len());
            let start = rows.start;
            rows.start += length;
            sequence.turn += 1;
            Datum { seed: sequence.datum.seed, rows: start..start + length }
        };
        let datums: Vec<Datum> = sequences.iter_mut().map(chunk).collect();
        for (sequence, datum) in sequences.iter_mut().zip(&datums) {
            if datum.rows.start > 0
                && let Some(spare) = sequence.spare.take()
            {
                if sequence.turn.is_multiple_of(2) {
                    backend.copy_block(cache, sequence.blocks[0], spare);
                } else {
                    move_through_host(backend, cache, sequence.blocks[0], spare);
                }
                sequence.blocks[0] = spare;
            }
        }
        let step = vec![Segment { adapter: None, datums }];
        let paged = paged_sequences(sequences, &step);

        let (wide, narrow) = (self.attention.q_features(), self.attention.kv_features());
        let q = upload(backend, wide, &values(&step, 0, wide));
        let k = upload(backend, narrow, &values(&step, 1, narrow));
        let v = upload(backend, narrow, &values(&step, 2, narrow));
        let mut out = blank(backend, values(&step, 0, 1).len(), wide);
        backend.cache_write(cache, 1, &k, &v, &paged);
        backend.cache_write(cache, 0, &v, &k, &paged);
        let shape = self.attention.shape();
        backend.attention_paged(&mut out, &q, cache, 1, &paged, &shape);
        answer.take(0, &step, &backend.read_rows(&out));
    }
}

/// Copies a block by its bytes, and leaves other numbers in the old one.
fn move_through_host<B: Backend>(backend: &mut B, cache: &mut B::Cache, from: u32, to: u32) {
    let mut bytes = vec![0; backend.block_bytes(cache)];
    backend.read_block(cache, to, &mut bytes);
    let before = bytes.clone();
    backend.read_block(cache, from, &mut bytes);
    backend.write_block(cache, to, &bytes);
    backend.write_block(cache, from, &before);
}

fn paged_sequences<'a>(sequences: &'a [Progress], step: &Step) -> Vec<PagedSequence<'a>> {
    let places = sequences.iter().zip(datums(step)).zip(ranges(step));
    places
        .map(|((sequence, datum), rows)| PagedSequence {
            rows,
            position: datum.rows.start,
            blocks: &sequence.blocks,
        })
        .collect()
}
