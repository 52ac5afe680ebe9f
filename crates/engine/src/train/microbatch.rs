//! One micro-batch: whole datums of several runs through the decoder.

use std::{collections::BTreeMap, ops::Range};

use tinsmith_backend::{Backend, Between, StepKind, Targets};
use tinsmith_model::{
    batch::{TrainBatch, TrainGroup},
    memory::StepShape,
};

use super::run::{ForwardJob, Job, Run, f32_of};
use crate::{Config, Datum, Error, Evaluation, Result, RunKey, device::Device, loss::View};

/// What a micro-batch gave.
#[derive(Debug)]
pub(crate) struct Computed {
    of_runs: BTreeMap<RunKey, OfRun>,
    /// Rows of the batch.
    pub(crate) tokens: usize,
}

/// What a micro-batch gave for one run's datums, one after another.
#[derive(Debug, Default)]
pub(crate) struct OfRun {
    pub(crate) logprobs: Vec<f32>,
    /// Of each datum, where the loss is a sum over datums.
    pub(crate) evaluations: Vec<Result<Evaluation, String>>,
}

impl Computed {
    /// Gives a run its part.
    pub(crate) fn take(&mut self, run: RunKey) -> OfRun {
        self.of_runs.remove(&run).unwrap_or_default()
    }
}

/// Runs the next `chosen[run]` datums of each run's head, which are all of one kind.
///
/// # Errors
/// No room on the device; then no gradient has been touched.
pub(crate) fn compute<B: Backend>(
    device: &mut Device<B>,
    config: &Config,
    (runs, chosen): (&mut BTreeMap<RunKey, Run<B>>, &BTreeMap<RunKey, usize>),
    between: &mut dyn Between,
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
    let mut weights = Weights::of(&datums, per_row);
    let Device { backend, decoder, workspace, .. } = device;
    backend.yielding(between, |b| {
        if forward_only {
            decoder.forward(b, workspace, &batch, &mut logprobs)?;
            weights.evaluate(&logprobs);
        } else if weights.whole {
            let mut all = |_: Range<usize>, given: &[f32], out: &mut [f32]| weights.all(given, out);
            decoder.forward_backward_whole(b, workspace, &mut batch, &mut logprobs, &mut all)?;
        } else {
            let mut coefficients = |rows: Range<usize>, given: &[f32], out: &mut [f32]| {
                logprobs[rows.start * per_row..rows.end * per_row].copy_from_slice(given);
                weights.of_rows(rows, given, out);
            };
            decoder.forward_backward(b, workspace, &mut batch, &mut coefficients)?;
        }
        Ok::<_, Error>(())
    })?;
    let mut evaluations = weights.evaluations.into_iter();
    let mut own = |rows: &Range<usize>, count: usize| OfRun {
        logprobs: logprobs[rows.start * per_row..rows.end * per_row].to_vec(),
        evaluations: evaluations.by_ref().take(count).flatten().collect(),
    };
    let of_runs =
        chosen.iter().zip(&group_rows).map(|((&key, &count), rows)| (key, own(rows, count)));
    Ok(Computed { of_runs: of_runs.collect(), tokens: tokens.len() })
}

/// The losses of a micro-batch, and what those that are sums over datums came to.
#[derive(Debug)]
struct Weights<'a> {
    datums: &'a [DatumRows<'a>],
    per_row: usize,
    /// Whether some loss is a sum over datums.
    whole: bool,
    /// Of each datum whose loss is such a sum.
    evaluations: Vec<Option<Result<Evaluation, String>>>,
    /// Of one token.
    inputs: Vec<f64>,
}

impl<'a> Weights<'a> {
    fn of(datums: &'a [DatumRows<'a>], per_row: usize) -> Self {
        let whole = datums.iter().any(|datum| matches!(datum.loss, View::Datum(_)));
        let evaluations = Vec::with_capacity(datums.len());
        Self { datums, per_row, whole, evaluations, inputs: Vec::new() }
    }

    /// `dloss/dlogprob` of some rows, where every loss is a sum over tokens.
    fn of_rows(&mut self, rows: Range<usize>, logprobs: &[f32], out: &mut [f32]) {
        let cells = rows.start * self.per_row..rows.end * self.per_row;
        for ((cell, &logprob), out) in cells.zip(logprobs).zip(out) {
            let row = cell / self.per_row;
            let number = self.datums.partition_point(|datum| datum.rows.end <= row);
            *out = self.of_cell(number, cell, logprob);
        }
    }

    /// `dloss/dlogprob` of all rows.
    fn all(&mut self, logprobs: &[f32], out: &mut [f32]) {
        for (number, datum) in self.datums.iter().enumerate() {
            let cells = datum.rows.start * self.per_row..datum.rows.end * self.per_row;
            let evaluation = match &datum.loss {
                View::Tokens(_) => {
                    for cell in cells {
                        out[cell] = self.of_cell(number, cell, logprobs[cell]);
                    }
                    None
                }
                View::Datum(loss) => {
                    Some(loss.evaluate(datum.datum, &logprobs[cells.clone()], &mut out[cells]))
                }
            };
            self.evaluations.push(evaluation);
        }
    }

    /// Zero where it is not finite, since that request fails anyway.
    fn of_cell(&mut self, number: usize, cell: usize, logprob: f32) -> f32 {
        let datum = &self.datums[number];
        let View::Tokens(loss) = &datum.loss else { return 0.0 };
        let index = cell - datum.rows.start * self.per_row;
        let term = loss.term(&datum.columns, index, logprob, &mut self.inputs);
        let coefficient = f32_of((loss.rule.coefficient)(&term));
        if coefficient.is_finite() { coefficient } else { 0.0 }
    }

    /// Values without gradients.
    fn evaluate(&mut self, logprobs: &[f32]) {
        if self.whole {
            self.all(logprobs, &mut vec![0.0; logprobs.len()]);
        }
    }
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
    datum: &'a Datum,
    loss: View<'a>,
    /// For losses that are sums over tokens.
    columns: Vec<Option<&'a [f32]>>,
}

impl<'a> Rows<'a> {
    fn push(&mut self, job: &'a ForwardJob, count: usize) {
        for datum in &job.datums[job.next..job.next + count] {
            let start = self.tokens.len();
            self.tokens.extend_from_slice(&datum.tokens);
            self.targets.extend_from_slice(&datum.targets);
            self.per_row = datum.per_row;
            let loss = job.loss.view();
            let columns = match &loss {
                View::Tokens(loss) => loss.columns(datum),
                View::Datum(_) => Vec::new(),
            };
            self.datums.push(DatumRows { rows: start..self.tokens.len(), datum, loss, columns });
        }
    }
}
