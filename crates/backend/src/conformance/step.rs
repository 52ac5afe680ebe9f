//! What a check runs: steps of segments of datums, and what came out, by datum and row.
//!
//! A datum's rows are made from its seed, so the same datum has the same data in whichever company.

use std::{collections::BTreeMap, ops::Range};

use crate::{Backend, LoraGradientUse, LoraUse};

use super::inputs::{self, Inputs, inverse_root};

/// Some rows of one sequence.
#[derive(Clone, Debug)]
pub(super) struct Datum {
    pub(super) seed: u64,
    pub(super) rows: Range<usize>,
}

/// Datums that go through one adapter, or through none.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) adapter: Option<usize>,
    pub(super) datums: Vec<Datum>,
}

/// What shares one call; an adapter has at most one segment in it.
pub(super) type Step = Vec<Segment>;

/// A step from `(adapter, lengths of its datums)`; its datums differ from each other.
pub(super) fn step(segments: &[(Option<usize>, &[usize])]) -> Step {
    let mut seed = 0;
    let mut datum = |length: &usize| {
        seed += 1;
        Datum { seed, rows: 0..*length }
    };
    segments
        .iter()
        .map(|(adapter, lengths)| Segment {
            adapter: *adapter,
            datums: lengths.iter().map(&mut datum).collect(),
        })
        .collect()
}

/// One segment without an adapter.
pub(super) fn plain_step(lengths: &[usize]) -> Step {
    step(&[(None, lengths)])
}

/// One op, or an op and its gradient, in one shape.
pub(super) trait Case {
    /// What failures are listed under.
    fn label(&self) -> String;

    /// Whether a row's answer depends on that row alone, and not on the rows of its datum before it.
    fn rowwise(&self) -> bool {
        true
    }

    /// Runs the steps one after another; gradients gather over all of them.
    fn run<B: Backend>(&self, backend: &mut B, steps: &[Step]) -> Answer;
}

/// The name of something that an op gives for each row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Output {
    Value(&'static str),
    Gradient(&'static str),
}

/// Rows by the seed of their datum and their number in it.
type RowsByKey = BTreeMap<(u64, usize), Vec<f32>>;

/// What came out.
#[derive(Debug)]
pub(super) struct Answer {
    /// For each output, each row's features.
    pub(super) outputs: Vec<(Output, RowsByKey)>,
    /// A's and B's gradient for each adapter.
    pub(super) gradients: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Answer {
    pub(super) fn new(outputs: &[Output]) -> Self {
        let outputs = outputs.iter().map(|output| (*output, BTreeMap::new())).collect();
        Self { outputs, gradients: Vec::new() }
    }

    /// Takes output number `output` of a step, row-major.
    pub(super) fn take(&mut self, output: usize, step: &Step, values: &[f32]) {
        let rows: Vec<_> = datums(step).flat_map(row_keys).collect();
        if rows.is_empty() {
            assert!(values.is_empty(), "no rows, no values");
            return;
        }
        assert_eq!(values.len() % rows.len(), 0, "whole rows");
        let features = values.len() / rows.len();
        for (key, row) in rows.into_iter().zip(values.chunks_exact(features)) {
            self.outputs[output].1.insert(key, row.to_vec());
        }
    }

    /// All rows of one output.
    pub(super) fn all(&self, output: usize) -> Vec<f32> {
        self.outputs[output].1.values().flatten().copied().collect()
    }
}

pub(super) fn datums(step: &Step) -> impl Iterator<Item = &Datum> {
    step.iter().flat_map(|segment| &segment.datums)
}

fn row_keys(datum: &Datum) -> impl Iterator<Item = (u64, usize)> {
    let seed = datum.seed;
    datum.rows.clone().map(move |row| (seed, row))
}

/// The rows of all datums, `[rows, features]`; another `salt` gives other data for the same rows.
pub(super) fn values(step: &Step, salt: u64, features: usize) -> Vec<f32> {
    let keys = datums(step).flat_map(row_keys);
    keys.flat_map(|(seed, row)| inputs::row(seed ^ (salt << 32), row, features)).collect()
}

/// Where each datum's rows stand in the step.
pub(super) fn ranges(step: &Step) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut range = |datum: &Datum| {
        let end = start + datum.rows.len();
        std::mem::replace(&mut start, end)..end
    };
    datums(step).map(&mut range).collect()
}

/// The adapters of a case, with their gradients, on one backend.
pub(super) struct Adapters<B: Backend> {
    loras: Vec<B::Lora>,
    gradients: Vec<B::Pair>,
}

impl<B: Backend> Adapters<B> {
    /// One adapter for each rank; gradients start with something pending.
    pub(super) fn new(backend: &mut B, ranks: &[usize], inputs: usize, outputs: usize) -> Self {
        let mut adapters = Self { loras: Vec::new(), gradients: Vec::new() };
        for (seed, &rank) in (1000..).zip(ranks) {
            let mut stream = Inputs::new(seed);
            let a = stream.values(rank * inputs, inverse_root(inputs) * 3.0);
            let b = stream.values(outputs * rank, inverse_root(rank) * 3.0);
            let lora = backend.lora(&a, &b, rank).expect("the suite's adapters are small");
            let mut gradient = backend.pair(&lora).expect("the suite's adapters are small");
            let pending_a = stream.values(a.len(), 0.5);
            backend.write_pair(&mut gradient, &pending_a, &stream.values(b.len(), 0.5));
            adapters.loras.push(lora);
            adapters.gradients.push(gradient);
        }
        adapters
    }

    pub(super) fn uses<'a>(&'a self, step: &Step) -> Vec<LoraUse<'a, B::Lora>> {
        let place = |(segment, rows): (&Segment, &Vec<Range<usize>>)| {
            let adapter = segment.adapter?;
            let lora = &self.loras[adapter];
            Some(LoraUse { rows: hull(rows), lora, scale: scale(adapter) })
        };
        step.iter().zip(&segment_ranges(step)).filter_map(place).collect()
    }

    pub(super) fn gradient_uses<'a>(
        &'a mut self,
        step: &Step,
        ranges: &'a [Vec<Range<usize>>],
    ) -> Vec<LoraGradientUse<'a, B::Lora, B::Pair>> {
        let mut uses = Vec::new();
        for (adapter, (lora, gradient)) in self.loras.iter().zip(&mut self.gradients).enumerate() {
            let place = step.iter().position(|segment| segment.adapter == Some(adapter));
            let Some(datums) = place.map(|place| &ranges[place]) else { continue };
            let (rows, scale) = (hull(datums), scale(adapter));
            uses.push(LoraGradientUse { rows, datums, lora, gradient, scale });
        }
        uses.sort_by_key(|gradient_use| gradient_use.rows.start);
        uses
    }

    pub(super) fn read_gradients(&self, backend: &mut B) -> Vec<(Vec<f32>, Vec<f32>)> {
        self.gradients.iter().map(|gradient| backend.read_pair(gradient)).collect()
    }
}

fn scale(adapter: usize) -> f32 {
    [2.0, 0.3, 1.0, 0.77][adapter % 4]
}

/// Where the datums of each segment stand.
pub(super) fn segment_ranges(step: &Step) -> Vec<Vec<Range<usize>>> {
    let mut ranges = ranges(step).into_iter();
    step.iter().map(|segment| ranges.by_ref().take(segment.datums.len()).collect()).collect()
}

fn hull(ranges: &[Range<usize>]) -> Range<usize> {
    match ranges {
        [] => 0..0,
        [first, .., last] => first.start..last.end,
        [only] => only.clone(),
    }
}
