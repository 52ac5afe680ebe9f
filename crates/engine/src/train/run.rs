//! One training run: its adapter, what belongs to it, and its queue.

use std::collections::VecDeque;

use tinsmith_backend::Backend;
use tinsmith_model::{
    config::DecoderConfig,
    lora::{Adapter, Moments, PairSet},
    peft,
};

use super::microbatch::OfRun;
use crate::{
    AdamParams, Datum, Error, Failure, Files, LoraSpec, Output, Parts, Result, Ticket,
    device::Device,
    engine::Finished,
    loss::{Chosen, TokenLoss, Totals, View},
    optim::adamw,
};

/// A resident run.
#[derive(Debug)]
pub(crate) struct Run<B: Backend> {
    pub(crate) adapter: Adapter<B>,
    /// The gradient that no optimizer step has used yet.
    pub(crate) gradient: PairSet<B>,
    /// The gradient as it was before the request at the head of the queue, unless it was zero.
    backup: Option<PairSet<B>>,
    /// What is known of the gradient without a look at it.
    known: Known,
    /// Whether it was zero before the request at the head of the queue.
    began_at_zero: bool,
    pub(crate) moments: Moments<B>,
    pub(crate) queue: VecDeque<Job>,
    /// Planned, with room for the backup.
    pub(crate) bytes: usize,
}

/// What is known of a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// It is zero: nothing was added since the last step.
    Zero,
    /// The sum of its squares.
    SumSquares(f64),
    Nothing,
}

/// A piece of a run's work.
#[derive(Debug)]
pub(crate) enum Job {
    Forward(ForwardJob),
    Optim(Ticket, AdamParams),
}

impl Job {
    pub(crate) fn ticket(&self) -> Ticket {
        match self {
            Self::Forward(job) => job.ticket,
            Self::Optim(ticket, _) => *ticket,
        }
    }
}

/// Scoring that may take several micro-batches.
#[derive(Debug)]
pub(crate) struct ForwardJob {
    ticket: Ticket,
    pub(crate) loss: Chosen,
    pub(crate) datums: Vec<Datum>,
    pub(crate) forward_only: bool,
    /// The first datum that is still to run.
    pub(crate) next: usize,
    logprobs: Vec<Vec<f32>>,
    totals: Totals,
}

impl ForwardJob {
    pub(crate) fn new(
        ticket: Ticket,
        loss: Chosen,
        datums: Vec<Datum>,
        forward_only: bool,
    ) -> Self {
        Self {
            ticket,
            totals: Totals::new(&loss),
            loss,
            logprobs: Vec::with_capacity(datums.len()),
            datums,
            forward_only,
            next: 0,
        }
    }

    /// Takes in what was computed of the next `count` datums.
    fn take(&mut self, count: usize, computed: OfRun) -> Result<(), String> {
        let OfRun { logprobs, evaluations } = computed;
        let (mut logprobs, mut evaluations) = (logprobs.as_slice(), evaluations.into_iter());
        for (number, datum) in self.datums.iter().enumerate().skip(self.next).take(count) {
            let (own, rest) = logprobs.split_at(datum.targets.len());
            logprobs = rest;
            match self.loss.view() {
                View::Tokens(loss) => add_tokens(&mut self.totals, &loss, datum, own),
                View::Datum(_) => {
                    let evaluation = evaluations.next().expect("there is one for each datum");
                    evaluation.map(|evaluation| self.totals.add_datum(evaluation))
                }
            }
            .map_err(|problem| format!("datum {number}: {problem}"))?;
            self.logprobs.push(own.to_vec());
        }
        self.next += count;
        Ok(())
    }
}

/// Takes in a datum's tokens, one by one.
fn add_tokens(
    totals: &mut Totals,
    loss: &TokenLoss<'_>,
    datum: &Datum,
    logprobs: &[f32],
) -> Result<(), String> {
    let (columns, mut inputs) = (loss.columns(datum), Vec::new());
    for (index, &logprob) in logprobs.iter().enumerate() {
        let term = loss.term(&columns, index, logprob, &mut inputs);
        let value = loss.rule.value(&term);
        let coefficient = f32_of((loss.rule.coefficient)(&term));
        if !(logprob.is_finite() && value.is_finite() && coefficient.is_finite()) {
            let token = index / datum.per_row;
            return Err(format!(
                "the loss is not finite at token {token}: logprob {logprob}, loss {value}, \
                 gradient {coefficient}"
            ));
        }
        totals.add(value, &term);
    }
    Ok(())
}

impl<B: Backend> Run<B> {
    /// A new run.
    pub(crate) fn new(b: &mut B, config: &DecoderConfig, spec: LoraSpec) -> Result<Self> {
        spec.check()?;
        let adapter = Adapter::new(b, config, spec)?;
        Self::with_adapter(b, adapter)
    }

    /// A run from files; parts that are not asked for, or not there, are zero.
    pub(crate) fn restore(
        b: &mut B,
        config: &DecoderConfig,
        files: &Files,
        parts: Parts,
    ) -> Result<Self> {
        let adapter = peft::read_adapter(b, config, files)?;
        let mut run = Self::with_adapter(b, adapter)?;
        if let Some(bytes) = files.get(peft::OPTIMIZER).filter(|_| parts.optimizer) {
            run.moments = peft::read_optimizer(b, config, &run.adapter, bytes)?;
        }
        if let Some(bytes) = files.get(peft::GRADIENT).filter(|_| parts.gradient) {
            run.gradient = peft::read_gradient(b, config, &run.adapter, bytes)?;
            run.known = Known::Nothing;
        }
        Ok(run)
    }

    fn with_adapter(b: &mut B, adapter: Adapter<B>) -> Result<Self> {
        Ok(Self {
            gradient: PairSet::zeros(b, &adapter)?,
            backup: None,
            known: Known::Zero,
            began_at_zero: true,
            moments: Moments::zeros(b, &adapter)?,
            adapter,
            queue: VecDeque::new(),
            bytes: 0,
        })
    }

    /// Takes the state in `files`, which must be of an adapter of the same shapes. The pending gradient is
    /// cleared; without `optimizer`, the moments too.
    pub(crate) fn load(
        &mut self,
        b: &mut B,
        config: &DecoderConfig,
        files: &Files,
        optimizer: bool,
    ) -> Result<()> {
        if optimizer && !files.contains_key(peft::OPTIMIZER) {
            return Err(Error::user("the checkpoint has no optimizer state; load it without"));
        }
        let loaded = Self::restore(b, config, files, Parts { optimizer, gradient: false })?;
        let shapes =
            |spec: &LoraSpec| (spec.rank, spec.train_attn, spec.train_mlp, spec.train_unembed);
        let (own, other) = (self.adapter.spec(), loaded.adapter.spec());
        if shapes(own) != shapes(other) {
            let describe = |spec: &LoraSpec| {
                let LoraSpec { rank, seed: _, train_attn, train_mlp, train_unembed } = spec;
                format!(
                    "rank {rank}, train_attn {train_attn}, train_mlp {train_mlp}, \
                     train_unembed {train_unembed}"
                )
            };
            return Err(Error::user(format!(
                "the checkpoint's adapter ({}) is not of the run's kind ({})",
                describe(other),
                describe(own)
            )));
        }
        self.adapter = loaded.adapter;
        self.moments = loaded.moments;
        self.gradient.zero(b);
        self.known = Known::Zero;
        Ok(())
    }

    /// The run's state as files.
    pub(crate) fn export(
        &self,
        b: &mut B,
        config: &DecoderConfig,
        parts: Parts,
        base_model_name: &str,
    ) -> Files {
        let mut files = Files::new();
        peft::write_adapter(b, config, &self.adapter, base_model_name, &mut files);
        if parts.optimizer {
            let bytes = peft::write_optimizer(b, config, &self.adapter, &self.moments);
            files.insert(peft::OPTIMIZER.to_owned(), bytes);
        }
        if parts.gradient {
            let bytes = peft::write_gradient(b, config, &self.adapter, &self.gradient);
            files.insert(peft::GRADIENT.to_owned(), bytes);
        }
        files
    }

    /// Makes the optimizer's step if it is at the head of the queue.
    pub(crate) fn optimize(&mut self, b: &mut B, done: &mut Vec<Finished>) {
        let Some(Job::Optim(ticket, params)) = self.queue.front() else { return };
        let (ticket, params) = (*ticket, *params);
        self.queue.pop_front();
        let sum_squares = self.sum_squares(b);
        let Self { adapter, gradient, moments, .. } = self;
        let metrics = adamw::step(b, adapter, (gradient, sum_squares), moments, &params);
        self.known = Known::Zero;
        done.push((ticket, Ok(Output::OptimStep { metrics })));
    }

    /// Remembers the gradient before the first micro-batch of the request at the head.
    pub(crate) fn back_up(&mut self, device: &mut Device<B>) -> Result<()> {
        let Some(Job::Forward(job)) = self.queue.front() else { return Ok(()) };
        if job.forward_only || job.next > 0 {
            return Ok(());
        }
        self.began_at_zero = self.known == Known::Zero;
        if !self.began_at_zero {
            if self.backup.is_none() {
                self.backup = Some(PairSet::zeros(&mut device.backend, &self.adapter)?);
            }
            if let Some(backup) = &mut self.backup {
                backup.copy_from(&mut device.backend, &self.gradient);
            }
        }
        self.known = Known::Nothing;
        Ok(())
    }

    /// Of the pending gradient.
    fn sum_squares(&mut self, b: &mut B) -> f64 {
        match self.known {
            Known::Zero => 0.0,
            Known::SumSquares(sum) => sum,
            Known::Nothing => {
                let sum = self.gradient.sum_squares(b);
                self.known = Known::SumSquares(sum);
                sum
            }
        }
    }

    /// Takes in what a micro-batch gave for the next `count` datums of the head.
    pub(crate) fn settle(
        &mut self,
        b: &mut B,
        count: usize,
        computed: OfRun,
        done: &mut Vec<Finished>,
    ) {
        let Some(Job::Forward(job)) = self.queue.front_mut() else { return };
        let mut taken = job.take(count, computed);
        let complete = job.next == job.datums.len();
        let checked = taken.is_ok() && complete && !job.forward_only;
        if checked && !self.sum_squares(b).is_finite() {
            taken = Err("the gradient is not finite".to_owned());
        }
        match taken {
            Err(message) => self.fail(b, Failure { user: true, message }, done),
            Ok(()) if complete => self.complete(done),
            Ok(()) => {}
        }
    }

    fn complete(&mut self, done: &mut Vec<Finished>) {
        if let Some(Job::Forward(job)) = self.queue.pop_front() {
            let metrics = job.totals.metrics();
            let output = Output::ForwardBackward { logprobs: job.logprobs, metrics };
            done.push((job.ticket, Ok(output)));
        }
    }

    /// Ends the request at the head as if it had never been.
    pub(crate) fn fail(&mut self, b: &mut B, failure: Failure, done: &mut Vec<Finished>) {
        let Some(job) = self.queue.pop_front() else { return };
        if let Job::Forward(job) = &job
            && !job.forward_only
        {
            match &self.backup {
                _ if self.began_at_zero => {
                    self.gradient.zero(b);
                    self.known = Known::Zero;
                }
                Some(backup) => {
                    self.gradient.copy_from(b, backup);
                    self.known = Known::Nothing;
                }
                // No micro-batch of it has run.
                None => {}
            }
        }
        done.push((job.ticket(), Err(failure)));
    }
}

/// The coefficient as the device takes it.
#[expect(clippy::cast_possible_truncation, reason = "the device computes in f32")]
pub(crate) fn f32_of(coefficient: f64) -> f32 {
    coefficient as f32
}
