//! What one step computes: ragged rows of many sequences, and whose adapter each row goes through.

use std::ops::Range;

use tinsmith_backend::{Backend, LoraUse, PagedSequence, Targets, recycle::recycle};

use crate::lora::{Adapter, PairSet, Site};

/// Whole sequences to train on.
#[derive(Debug)]
pub struct TrainBatch<'a, B: Backend> {
    /// The tokens of all sequences, one sequence after another.
    pub tokens: &'a [u32],
    /// The rows of each sequence; they tile the rows.
    pub sequences: Vec<Range<usize>>,
    /// Whose adapter which rows go through; in order, without overlap. Rows of no group go through the base
    /// model alone.
    pub groups: Vec<TrainGroup<'a, B>>,
    /// Candidates of every row.
    pub targets: Targets<'a>,
    /// Keeps each layer's input alone, and runs the layer again on the way back: less memory, the same bits.
    pub recompute: bool,
}

/// The rows of one run.
#[derive(Debug)]
pub struct TrainGroup<'a, B: Backend> {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// The rows of each datum, in the order in which their gradients are folded; they tile `rows`.
    pub datums: Vec<Range<usize>>,
    /// The run's adapter.
    pub adapter: &'a Adapter<B>,
    /// The run's pending gradient, to which a backward step adds. `None` asks for logprobs only: the
    /// coefficients of such rows must be zero.
    pub gradient: Option<&'a mut PairSet<B>>,
}

/// Rows to run through the cache: chunks of prompts, and tokens drawn last.
#[derive(Debug)]
pub struct InferBatch<'a, B: Backend> {
    /// The tokens of all rows.
    pub tokens: &'a [u32],
    /// Each sequence's rows, its position and its blocks; the rows tile the step.
    pub sequences: Vec<PagedSequence<'a>>,
    /// Whose adapter which rows go through; in order, without overlap.
    pub uses: Vec<(Range<usize>, &'a Adapter<B>)>,
}

/// Empty lists whose room is kept from step to step; what their items point to is of no matter.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    spans: Vec<(Range<usize>, &'static ())>,
    uses: Vec<LoraUse<'static, ()>>,
}

impl Lists {
    /// For the uses of a pass.
    pub(crate) fn uses<'a, L>(&mut self) -> Vec<LoraUse<'a, L>> {
        recycle(std::mem::take(&mut self.uses))
    }
}

/// Which adapter applies to which rows of a step.
#[derive(Debug)]
pub(crate) struct Spans<'a, B: Backend>(Vec<(Range<usize>, &'a Adapter<B>)>);

impl<'a, B: Backend> Spans<'a, B> {
    pub(crate) fn train(groups: &[TrainGroup<'a, B>], lists: &mut Lists) -> Self {
        let spans = groups.iter().map(|group| (group.rows.clone(), group.adapter));
        Self::of(spans, lists)
    }

    pub(crate) fn infer(batch: &InferBatch<'a, B>, lists: &mut Lists) -> Self {
        Self::of(batch.uses.iter().cloned(), lists)
    }

    /// The spans of gathered rows of a batch: row `i` is its row `rows[i]`; `rows` ascend.
    pub(crate) fn gathered(batch: &InferBatch<'a, B>, rows: &[usize], lists: &mut Lists) -> Self {
        assert!(rows.is_sorted(), "gathered rows ascend");
        let at = |row: usize| rows.partition_point(|&gathered| gathered < row);
        let spans = batch.uses.iter();
        let spans = spans.map(|(span, adapter)| (at(span.start)..at(span.end), *adapter));
        Self::of(spans.filter(|(span, _)| !span.is_empty()), lists)
    }

    fn of(spans: impl Iterator<Item = (Range<usize>, &'a Adapter<B>)>, lists: &mut Lists) -> Self {
        let mut list = recycle(std::mem::take(&mut lists.spans));
        list.extend(spans);
        Self(list)
    }

    /// Gives the lists of a pass back.
    pub(crate) fn keep(self, uses: Vec<LoraUse<'a, B::Lora>>, lists: &mut Lists) {
        lists.spans = recycle(self.0);
        lists.uses = recycle(uses);
    }

    /// Fills `uses` with the adapters that have something at `site`.
    pub(crate) fn fill(&self, site: Site, uses: &mut Vec<LoraUse<'a, B::Lora>>) {
        uses.clear();
        self.append(site, uses);
    }

    /// Adds them to `uses`.
    pub(crate) fn append(&self, site: Site, uses: &mut Vec<LoraUse<'a, B::Lora>>) {
        for (rows, adapter) in &self.0 {
            if let Some(lora) = adapter.site(site) {
                uses.push(LoraUse { rows: rows.clone(), lora, scale: adapter.spec().scale() });
            }
        }
    }
}
