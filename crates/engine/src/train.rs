//! Training: runs, their queues, and micro-batches that they share.
//!
//! Work of a run executes in submission order. A step computes one micro-batch of whole datums from the
//! heads of all queues; a request's results gather over as many steps as it needs.

mod check;
mod microbatch;
mod pack;
mod run;

use std::collections::BTreeMap;

use tinsmith_backend::{Backend, Between};

pub(crate) use check::check_ids;
pub(crate) use run::{Run, f32_of};

use crate::{
    AdamParams, Config, Datum, Error, Failure, LoraSpec, Result, RunKey, Ticket,
    device::Device,
    engine::Finished,
    error::failure,
    loss::{Chosen, LossChoice},
    optim::adamw,
};
use check::{Limits, check_datums};
use pack::{Head, Kind, pack};
use run::{ForwardJob, Job};

/// All resident runs.
#[derive(Debug)]
pub(crate) struct Trainer<B: Backend> {
    runs: BTreeMap<RunKey, Run<B>>,
    /// The run whose turn it is to be first in a micro-batch.
    turn: RunKey,
    /// Planned bytes of all runs.
    pub(crate) bytes: usize,
    /// Tokens of all micro-batches so far.
    pub(crate) tokens: u64,
}

/// What one request wants scored.
#[derive(Debug)]
pub(crate) struct ForwardRequest {
    pub(crate) datums: Vec<Datum>,
    pub(crate) loss: LossChoice,
    pub(crate) config: BTreeMap<String, f64>,
    pub(crate) forward_only: bool,
}

impl<B: Backend> Trainer<B> {
    pub(crate) fn new() -> Self {
        Self { runs: BTreeMap::new(), turn: RunKey(0), bytes: 0, tokens: 0 }
    }

    pub(crate) fn num_runs(&self) -> usize {
        self.runs.len()
    }

    /// Pieces of work that wait or run.
    pub(crate) fn queued(&self) -> usize {
        self.runs.values().map(|run| run.queue.len()).sum()
    }

    pub(crate) fn insert(&mut self, device: &Device<B>, key: RunKey, mut run: Run<B>) {
        run.bytes = device.run_bytes(run.adapter.spec());
        self.bytes += run.bytes;
        self.runs.insert(key, run);
    }

    /// Refuses a run that there is no room for.
    pub(crate) fn check_new(
        &self,
        device: &Device<B>,
        config: &Config,
        key: RunKey,
        spec: Option<&LoraSpec>,
    ) -> Result<()> {
        if self.runs.contains_key(&key) {
            return Err(Error::internal(format!("run {} is resident already", key.0)));
        }
        if self.runs.len() >= config.runs_max {
            return Err(Error::full(format!("runs_max = {} runs are resident", config.runs_max)));
        }
        let Some(spec) = spec else { return Ok(()) };
        if device.longest_datum(config, spec.rank) == 0 {
            return Err(Error::user(format!(
                "rank {}: a training step does not fit this server's memory",
                spec.rank
            )));
        }
        let (bytes, most) = (device.run_bytes(spec), config.runs_bytes_max);
        if bytes > most {
            return Err(Error::user(format!(
                "rank {}: the run takes {bytes} bytes, and this server has {most} for runs",
                spec.rank
            )));
        }
        if self.bytes + bytes > most {
            let message = format!("runs_bytes_max = {most} bytes of runs are resident");
            return Err(Error::full(message));
        }
        Ok(())
    }

    pub(crate) fn get(&self, key: RunKey) -> Result<&Run<B>> {
        self.runs.get(&key).ok_or_else(|| not_resident(key))
    }

    pub(crate) fn get_mut(&mut self, key: RunKey) -> Result<&mut Run<B>> {
        self.runs.get_mut(&key).ok_or_else(|| not_resident(key))
    }

    /// A run whose queue is empty.
    pub(crate) fn idle_mut(&mut self, key: RunKey) -> Result<&mut Run<B>> {
        let run = self.get_mut(key)?;
        if run.queue.is_empty() {
            Ok(run)
        } else {
            Err(Error::internal(format!("run {} has work in its queue", key.0)))
        }
    }

    /// Frees a run; its queued work fails.
    pub(crate) fn remove(&mut self, key: RunKey, done: &mut Vec<Finished>) {
        let Some(run) = self.runs.remove(&key) else { return };
        self.bytes -= run.bytes;
        for job in run.queue {
            let message = "the training run was unloaded".to_owned();
            done.push((job.ticket(), Err(Failure { user: true, message })));
        }
    }

    /// Queues scoring, with or without gradient.
    pub(crate) fn submit_forward(
        &mut self,
        device: &Device<B>,
        config: &Config,
        (ticket, key): (Ticket, RunKey),
        request: ForwardRequest,
    ) -> Result<()> {
        let queued = self.queued();
        let run = self.get_mut(key)?;
        let loss = Chosen::new(request.loss, &request.config)?;
        let limits = Limits {
            vocab_size: device.decoder.config().vocab_size,
            positions_max: config.train_context_max,
            tokens_max: device.longest_datum(config, run.adapter.spec().rank),
        };
        check_datums(&loss, &request.datums, &limits)?;
        check_room(config, queued)?;
        let job = ForwardJob::new(ticket, loss, request.datums, request.forward_only);
        run.queue.push_back(Job::Forward(job));
        Ok(())
    }

    /// Queues an optimizer step.
    pub(crate) fn submit_optim(
        &mut self,
        config: &Config,
        (ticket, key): (Ticket, RunKey),
        params: AdamParams,
    ) -> Result<()> {
        let queued = self.queued();
        let run = self.get_mut(key)?;
        adamw::check(&params)?;
        check_room(config, queued)?;
        run.queue.push_back(Job::Optim(ticket, params));
        Ok(())
    }

    /// Runs the optimizer steps whose turn it is, then one micro-batch, and what is due between their parts.
    pub(crate) fn step(
        &mut self,
        device: &mut Device<B>,
        config: &Config,
        between: &mut dyn Between,
        done: &mut Vec<Finished>,
    ) {
        for run in self.runs.values_mut() {
            device.backend.yielding(between, |b| run.optimize(b, done));
        }
        let mut chosen = self.choose(device, config);
        chosen.retain(|key, _| match self.runs.get_mut(key).map(|run| run.back_up(device)) {
            Some(Err(error)) => {
                self.runs.get_mut(key).expect("it was there a line ago").fail(
                    &mut device.backend,
                    failure(&error),
                    done,
                );
                false
            }
            Some(Ok(())) => true,
            None => false,
        });
        if chosen.is_empty() {
            return;
        }
        let mut computed = microbatch::compute(device, config, (&mut self.runs, &chosen), between);
        for (key, &count) in &chosen {
            let run = self.runs.get_mut(key).expect("no run left during the step");
            match &mut computed {
                Ok(computed) => {
                    run.settle(&mut device.backend, count, computed.take(*key), done);
                }
                Err(error) => run.fail(&mut device.backend, failure(error), done),
            }
        }
        if let Ok(computed) = computed {
            self.tokens += computed.tokens as u64;
        }
    }

    /// How many datums of which run the next micro-batch takes.
    fn choose(&mut self, device: &Device<B>, config: &Config) -> BTreeMap<RunKey, usize> {
        let turns = self.runs.range(self.turn..).chain(self.runs.range(..self.turn));
        let (keys, heads): (Vec<RunKey>, Vec<Head>) = turns
            .filter_map(|(key, run)| match run.queue.front() {
                Some(Job::Forward(job)) => Some((*key, job.head(config.train_tokens_max, run))),
                Some(Job::Optim(..)) | None => None,
            })
            .unzip();
        if let Some(first) = keys.first() {
            self.turn = RunKey(first.0.wrapping_add(1));
        }
        let counts = pack(&heads, config.train_tokens_max, |step| {
            device.step_bytes(step) <= config.activation_bytes_max
        });
        keys.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

impl ForwardJob {
    /// What packing must know; datums beyond the first `tokens_max` tokens cannot be of interest.
    fn head<B: Backend>(&self, tokens_max: usize, run: &Run<B>) -> Head {
        let mut tokens = 0;
        let per_row = self.datums[self.next].per_row;
        // Datums with another number of candidates are of another kind, and wait for a step of their own.
        let alike = self.datums[self.next..].iter().take_while(|datum| datum.per_row == per_row);
        let lengths = alike.map(|datum| datum.tokens.len()).take_while(|length| {
            let before = tokens;
            tokens += length;
            before <= tokens_max
        });
        let kind = Kind { forward_only: self.forward_only, per_row };
        Head { lengths: lengths.collect(), kind, rank: run.adapter.spec().rank }
    }
}

fn check_room(config: &Config, queued: usize) -> Result<()> {
    if queued < config.training_queue_max {
        return Ok(());
    }
    let most = config.training_queue_max;
    Err(Error::full(format!("training_queue_max = {most} pieces of training work wait")))
}

fn not_resident(key: RunKey) -> Error {
    Error::internal(format!("run {} is not resident", key.0))
}
