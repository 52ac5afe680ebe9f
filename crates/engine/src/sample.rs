//! Sampling: jobs, the sequences that they are made of, and the steps that sequences share.
//!
//! A prompt is computed once for all samples of its job. Rows of a step are grouped by sampler, so that
//! every adapter is applied once.

mod blocks;
mod check;
mod job;
mod scheduler;
mod step;
mod stop;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use tinsmith_backend::Backend;
use tinsmith_model::lora::Adapter;
use tinsmith_tokenizer::Tokenizer;

use crate::{
    Config, Error, Failure, Result, SampleJob, SamplerKey, Ticket, device::Device, engine::Finished,
};
use check::check_job;
use job::Job;
use scheduler::{Limits, Scheduler, SequenceId};
use step::Scratch;

/// All resident samplers and their jobs.
#[derive(Debug)]
pub(crate) struct Sampling<B: Backend> {
    samplers: BTreeMap<SamplerKey, Sampler<B>>,
    jobs: BTreeMap<u64, Job>,
    tickets: BTreeMap<Ticket, u64>,
    /// Number of the next job.
    next_job: u64,
    pub(crate) scheduler: Scheduler,
    cache: B::Cache,
    stops: StopSource,
    /// Tokens of a prompt with its completion.
    context: usize,
    scratch: Scratch,
    pub(crate) prefill_tokens: u64,
    pub(crate) decode_tokens: u64,
}

/// What stop rules are made from.
#[derive(Debug)]
pub(crate) struct StopSource {
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
}

#[derive(Debug)]
struct Sampler<B: Backend> {
    /// `None`: the base model alone.
    adapter: Option<Adapter<B>>,
}

impl<B: Backend> Sampling<B> {
    pub(crate) fn new(device: &mut Device<B>, config: &Config, stops: StopSource) -> Result<Self> {
        let limits = Limits {
            prefill_tokens_max: config.prefill_tokens_max,
            max_num_seqs: config.max_num_seqs,
        };
        Ok(Self {
            samplers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_job: 0,
            scheduler: Scheduler::new(limits, config.kv_blocks),
            cache: device.decoder.cache(&mut device.backend, config.kv_blocks)?,
            stops,
            context: config.max_model_len.min(device.decoder.config().max_positions),
            scratch: Scratch::default(),
            prefill_tokens: 0,
            decode_tokens: 0,
        })
    }

    pub(crate) fn num_samplers(&self) -> usize {
        self.samplers.len()
    }

    pub(crate) fn context(&self) -> usize {
        self.context
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Refuses a sampler that there is no room for.
    pub(crate) fn check_new(&self, config: &Config, key: SamplerKey) -> Result<()> {
        if self.samplers.contains_key(&key) {
            return Err(Error::internal(format!("sampler {} is resident already", key.0)));
        }
        if self.samplers.len() >= config.samplers_max {
            let most = config.samplers_max;
            return Err(Error::full(format!("samplers_max = {most} samplers are resident")));
        }
        Ok(())
    }

    pub(crate) fn insert(&mut self, key: SamplerKey, adapter: Option<Adapter<B>>) {
        self.samplers.insert(key, Sampler { adapter });
    }

    /// Frees a sampler; its jobs fail.
    pub(crate) fn remove(&mut self, key: SamplerKey, done: &mut Vec<Finished>) {
        if self.samplers.remove(&key).is_none() {
            return;
        }
        let orphans: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.sampler == key)
            .map(|(number, _)| *number)
            .collect();
        for number in orphans {
            let message = "the sampler was unloaded".to_owned();
            self.fail(number, Failure { user: true, message }, done);
        }
    }

    /// Queues a job.
    pub(crate) fn submit(
        &mut self,
        device: &Device<B>,
        config: &Config,
        (ticket, key): (Ticket, SamplerKey),
        request: SampleJob,
    ) -> Result<()> {
        if !self.samplers.contains_key(&key) {
            return Err(Error::internal(format!("sampler {} is not resident", key.0)));
        }
        let limits = check::Limits {
            config,
            vocab_size: device.decoder.config().vocab_size,
            context: self.context,
            has_tokenizer: self.stops.tokenizer.is_some(),
        };
        let max_tokens = check_job(&request, &limits)?;
        let waiting: usize = self.jobs.values().map(Job::num_unfinished).sum();
        if waiting + request.num_samples > config.waiting_sequences_max {
            let most = config.waiting_sequences_max;
            return Err(Error::full(format!("waiting_sequences_max = {most} sequences wait")));
        }
        let Entry::Vacant(entry) = self.tickets.entry(ticket) else {
            return Err(Error::internal(format!("ticket {} is in use", ticket.0)));
        };
        let prompt_tokens = request.prompt.len();
        let job = Job::new(ticket, key, request, max_tokens, &self.stops)?;
        let number = self.next_job;
        self.next_job += 1;
        entry.insert(number);
        self.jobs.insert(number, job);
        self.scheduler.add(SequenceId { job: number, index: 0 }, prompt_tokens);
        Ok(())
    }

    /// Forgets a job; nothing is reported for it.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        if let Some(number) = self.tickets.get(&ticket).copied() {
            self.forget(number);
        }
    }

    fn fail(&mut self, number: u64, failure: Failure, done: &mut Vec<Finished>) {
        if let Some(job) = self.forget(number) {
            done.push((job.ticket, Err(failure)));
        }
    }

    /// Frees everything that a job holds.
    fn forget(&mut self, number: u64) -> Option<Job> {
        let job = self.jobs.remove(&number)?;
        self.tickets.remove(&job.ticket);
        for index in 0..job.num_samples() {
            self.scheduler.remove(SequenceId { job: number, index });
        }
        Some(job)
    }
}
