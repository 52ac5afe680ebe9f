//! One micro-batch: whole datums of several runs through the decoder.

use std::{collections::BTreeMap, ops::Range};

use tinsmith_backend::{Backend, StepKind, Targets};
use tinsmith_model::{
    batch::{TrainBatch, TrainGroup},
    memory::StepShape,
};

use super::run::{ForwardJob, Job, Run, f32_of};
use crate::{
    Config, Result, RunKey,
    device::Device,
    loss::{Loss, Term},
};

/// What a micro-batch gave.
#[derive(Debug)]
pub(crate) struct Computed {
    /// Of each run's datums, one after another.
    pub(crate) logprobs: BTreeMap<RunKey, Vec<f32>>,
    /// Rows of the batch.
    pub(crate) tokens: usize,
}

/// Runs the next `chosen[run]` datums of each run's head, which are all of one kind.
///
/// # Errors
/// No room on the device; then no gradient has been touched.
pub(crate) fn compute<B: Backend>(
    device: &mut Device<B>,
    config: &Config,
    runs: &mut BTreeMap<RunKey, Run<B>>,
    chosen: &BTreeMap<RunKey, usize>,
) -> Result<Computed> {
    let mut rows = Rows::default();
    let mut groups = Vec::new();
    let (mut forward_only, mut rank) = (true, 0);
    for (key, run) in runs.iter_mut() {
        let (Some(&count), Some(Job::Forward(job))) = (chosen.get(key), run.queue.front()) else {
            continue;
        };
        forward_only = job.forward_only;
        rank = rank.max(run.adapter.spec().rank);
        let first = rows.datums.len();
        rows.push(job, count);
        let datums: Vec<_> = rows.datums[first..].iter().map(|datum| datum.rows.clone()).collect();
        groups.push(TrainGroup {
            rows: datums[0].start..rows.tokens.len(),
            datums,
            adapter: &run.adapter,
            gradient: (!forward_only).then_some(&mut run.gradient),
        });
    }
    let Rows { tokens, targets, datums, per_row } = rows;
    let mut logprobs = vec![0.0; targets.len()];
    let group_rows: Vec<Range<usize>> = groups.iter().map(|group| group.rows.clone()).collect();
    let step = device.make_room(
        StepShape {
            tokens: tokens.len(),
            sequences: datums.len(),
            longest: datums.iter().map(|datum| datum.rows.len()).max().unwrap_or(0),
            rank,
            kind: if forward_only { StepKind::Forward } else { StepKind::ForwardBackward },
            recompute: false,
        },
        config.activation_bytes_max,
    )?;
    let mut batch = TrainBatch {
        tokens: &tokens,
        sequences: datums.iter().map(|datum| datum.rows.clone()).collect(),
        groups,
        targets: Targets { ids: &targets, per_row },
        recompute: step.recompute,
    };
    let Device { backend, decoder, workspace, .. } = device;
    if forward_only {
        decoder.forward(backend, workspace, &batch, &mut logprobs)?;
    } else {
        let mut inputs = Vec::new();
        let mut coefficients = |rows: Range<usize>, given: &[f32], out: &mut [f32]| {
            let cells = rows.start * per_row..rows.end * per_row;
            logprobs[cells.clone()].copy_from_slice(given);
            for ((cell, &logprob), out) in cells.zip(given).zip(out) {
                *out = coefficient(&datums, (cell, per_row), logprob, &mut inputs);
            }
        };
        decoder.forward_backward(backend, workspace, &mut batch, &mut coefficients)?;
    }
    let own = |rows: &Range<usize>| logprobs[rows.start * per_row..rows.end * per_row].to_vec();
    let logprobs = chosen.keys().copied().zip(group_rows.iter().map(own)).collect();
    Ok(Computed { logprobs, tokens: tokens.len() })
}

/// `dloss/dlogprob` of one cell; zero where it is not finite, since that request fails anyway.
fn coefficient(
    datums: &[DatumRows<'_>],
    (cell, per_row): (usize, usize),
    logprob: f32,
    inputs: &mut Vec<f64>,
) -> f32 {
    let row = cell / per_row;
    let datum = &datums[datums.partition_point(|datum| datum.rows.end <= row)];
    let index = cell - datum.rows.start * per_row;
    datum.loss.fill(&datum.columns, index, datum.options, inputs);
    let term = Term { logprob: f64::from(logprob), inputs, options: datum.options };
    let coefficient = f32_of((datum.loss.coefficient)(&term));
    if coefficient.is_finite() { coefficient } else { 0.0 }
}

/// The rows of a micro-batch as they gather.
#[derive(Debug, Default)]
struct Rows<'a> {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    datums: Vec<DatumRows<'a>>,
    per_row: usize,
}

/// One datum's rows and what its loss reads there.
#[derive(Debug)]
struct DatumRows<'a> {
    rows: Range<usize>,
    loss: &'static Loss,
    options: &'a [f64],
    columns: Vec<Option<&'a [f32]>>,
}

impl<'a> Rows<'a> {
    fn push(&mut self, job: &'a ForwardJob, count: usize) {
        for datum in &job.datums[job.next..job.next + count] {
            let start = self.tokens.len();
            self.tokens.extend_from_slice(&datum.tokens);
            self.targets.extend_from_slice(&datum.targets);
            self.per_row = datum.per_row;
            self.datums.push(DatumRows {
                rows: start..self.tokens.len(),
                loss: job.loss,
                options: &job.options,
                columns: job.loss.columns(datum),
            });
        }
    }
}
