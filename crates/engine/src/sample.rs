//! Sampling: jobs, the sequences that they are made of, and the steps that sequences share.
//!
//! A prompt is computed once for all samples of its job, and what an earlier job of the same tenant and weights
//! has computed of it is found in the cache. Rows of a step are grouped by sampler, so that every adapter is
//! applied once.

mod blocks;
mod check;
mod job;
mod prefix;
mod scheduler;
mod scores;
mod speculate;
mod spill;
mod step;
mod stop;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use tinsmith_backend::{ATTENTION_TILE, Backend};
use tinsmith_model::lora::Adapter;
use tinsmith_tokenizer::Tokenizer;

use crate::{
    Config, Error, Failure, Files, LoraSpec, Result, SampleJob, SamplerKey, Ticket, device::Device,
    engine::Finished,
};
use check::check_job;
use job::Job;
use prefix::{Key, Version};
use scheduler::{Arrival, Limits, Scheduler, SequenceId};
pub use spill::SpillFile;
use spill::{Slots, Spill};
use step::Scratch;

/// All resident samplers and their jobs.
#[derive(Debug)]
pub(crate) struct Sampling<B: Backend> {
    samplers: BTreeMap<SamplerKey, Sampler>,
    /// Those that samplers name, by their numbers.
    adapters: BTreeMap<u64, Resident<B>>,
    jobs: BTreeMap<u64, Job>,
    tickets: BTreeMap<Ticket, u64>,
    /// Number of the next job.
    next_job: u64,
    pub(crate) scheduler: Scheduler,
    cache: B::Cache,
    pub(crate) spill: Spill,
    stops: StopSource,
    /// Tokens of a prompt with its completion.
    context: usize,
    scratch: Scratch,
    /// Tokens of a block that is being named.
    block_tokens: Vec<u32>,
    /// Number of the next sampler that shares nothing, and of the next adapter.
    next_version: u64,
    pub(crate) prefix_hit_tokens: u64,
    /// Planned bytes of all adapters.
    pub(crate) bytes: usize,
    pub(crate) prefill_tokens: u64,
    pub(crate) decode_tokens: u64,
    /// Rows up to which a step has room for tokens that are tried.
    speculative_rows_max: usize,
    pub(crate) tried_tokens: u64,
    pub(crate) tried_tokens_kept: u64,
}

/// What stop rules are made from.
#[derive(Debug)]
pub(crate) struct StopSource {
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
}

#[derive(Clone, Copy, Debug)]
struct Sampler {
    /// `None`: the base model alone.
    adapter: Option<u64>,
    /// What the names of its blocks begin with: its tenant and its weights, or nobody else's.
    root: Key,
}

/// An adapter, for one sampler or for several that follow one run.
#[derive(Debug)]
struct Resident<B: Backend> {
    adapter: Adapter<B>,
    /// Planned.
    bytes: usize,
}

impl<B: Backend> Sampling<B> {
    pub(crate) fn new(device: &mut Device<B>, config: &Config, stops: StopSource) -> Result<Self> {
        let limits = Limits {
            prefill_tokens_max: config.prefill_tokens_max,
            max_num_seqs: config.max_num_seqs,
        };
        let cache = device.decoder.cache(&mut device.backend, config.kv_blocks)?;
        Ok(Self {
            samplers: BTreeMap::new(),
            adapters: BTreeMap::new(),
            jobs: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_job: 0,
            scheduler: Scheduler::new(limits, config.kv_blocks, 0),
            cache,
            spill: Spill::new(None, 0),
            stops,
            context: config.max_model_len,
            scratch: Scratch::default(),
            block_tokens: Vec::with_capacity(ATTENTION_TILE),
            next_version: 0,
            prefix_hit_tokens: 0,
            bytes: 0,
            prefill_tokens: 0,
            decode_tokens: 0,
            speculative_rows_max: config
                .speculative_rows_max
                .min(config.max_num_seqs + config.prefill_tokens_max),
            tried_tokens: 0,
            tried_tokens_kept: 0,
        })
    }

    /// Gives blocks a file to go to. Before the first job.
    pub(crate) fn spill_to(
        &mut self,
        device: &Device<B>,
        config: &Config,
        file: Box<dyn SpillFile>,
    ) {
        let block_bytes = device.backend.block_bytes(&self.cache);
        let decoder = device.decoder.config();
        if !spill::pays(decoder, block_bytes, config.kv_spill_flops_per_byte_min) {
            return;
        }
        self.scheduler.blocks.slots = Slots::new(config.kv_spill_bytes / block_bytes);
        self.spill = Spill::new(Some(file), block_bytes);
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
    pub(crate) fn check_new(
        &self,
        device: &Device<B>,
        config: &Config,
        key: SamplerKey,
        spec: Option<&LoraSpec>,
    ) -> Result<()> {
        if self.samplers.contains_key(&key) {
            return Err(Error::internal(format!("sampler {} is resident already", key.0)));
        }
        if self.samplers.len() >= config.samplers_max {
            let most = config.samplers_max;
            return Err(Error::full(format!("samplers_max = {most} samplers are resident")));
        }
        let bytes = spec.map_or(0, |spec| device.sampler_bytes(spec));
        let most = config.samplers_bytes_max;
        if bytes > most {
            return Err(Error::user(format!(
                "the sampler's adapter takes {bytes} bytes, and this server has {most} for samplers"
            )));
        }
        if self.bytes + bytes > most {
            let message = format!("samplers_bytes_max = {most} bytes of samplers are resident");
            return Err(Error::full(message));
        }
        Ok(())
    }

    /// Adds a sampler of the tenant `scope`, whose adapter is that of `files`.
    pub(crate) fn insert_read(
        &mut self,
        device: &Device<B>,
        (key, scope): (SamplerKey, &str),
        adapter: Option<Adapter<B>>,
        files: Option<&Files>,
    ) {
        let version = files.map_or(Version::Base, |files| Version::Files(prefix::digest(files)));
        let root = prefix::root(scope, version);
        let adapter = adapter.map(|adapter| self.keep(device, adapter));
        self.samplers.insert(key, Sampler { adapter, root });
    }

    /// Adds a sampler of the tenant `scope` that shares nothing of what is computed.
    pub(crate) fn insert_own(
        &mut self,
        device: &Device<B>,
        (key, scope): (SamplerKey, &str),
        adapter: Adapter<B>,
    ) {
        let root = self.own_root(scope);
        let adapter = Some(self.keep(device, adapter));
        self.samplers.insert(key, Sampler { adapter, root });
    }

    /// Adds a sampler of the tenant `scope` that has another's weights and shares nothing of what is computed.
    pub(crate) fn insert_follower(
        &mut self,
        (key, scope): (SamplerKey, &str),
        leader: SamplerKey,
    ) -> Result<()> {
        let adapter = self.sampler(leader)?.adapter;
        let root = self.own_root(scope);
        self.samplers.insert(key, Sampler { adapter, root });
        Ok(())
    }

    /// Gives a sampler the weights of another; its sequences go on with what was computed of them.
    pub(crate) fn follow(&mut self, key: SamplerKey, leader: SamplerKey) -> Result<()> {
        let Sampler { root, .. } = self.sampler(key)?;
        let Sampler { adapter, .. } = self.sampler(leader)?;
        self.samplers.insert(key, Sampler { adapter, root });
        self.drop_unnamed();
        Ok(())
    }

    fn sampler(&self, key: SamplerKey) -> Result<Sampler> {
        let missing = || Error::internal(format!("sampler {} is not resident", key.0));
        self.samplers.get(&key).copied().ok_or_else(missing)
    }

    fn own_root(&mut self, scope: &str) -> Key {
        self.next_version += 1;
        prefix::root(scope, Version::Own(self.next_version))
    }

    fn keep(&mut self, device: &Device<B>, adapter: Adapter<B>) -> u64 {
        let bytes = device.sampler_bytes(adapter.spec());
        self.bytes += bytes;
        self.next_version += 1;
        self.adapters.insert(self.next_version, Resident { adapter, bytes });
        self.next_version
    }

    /// Drops adapters that no sampler has any more.
    fn drop_unnamed(&mut self) {
        let Self { samplers, adapters, bytes, .. } = self;
        adapters.retain(|number, resident| {
            let named = samplers.values().any(|sampler| sampler.adapter == Some(*number));
            if !named {
                *bytes -= resident.bytes;
            }
            named
        });
    }

    /// Frees a sampler and what was computed with it; its jobs fail.
    pub(crate) fn remove(&mut self, key: SamplerKey, done: &mut Vec<Finished>) {
        let Some(Sampler { root, .. }) = self.samplers.remove(&key) else { return };
        self.drop_unnamed();
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
        if !self.samplers.values().any(|sampler| sampler.root == root) {
            self.scheduler.blocks.forget(&root);
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
        let Sampler { root, .. } = self.sampler(key)?;
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
        let job = Job::new(ticket, key, request, max_tokens, &self.stops)?;
        let number = self.next_job;
        self.next_job += 1;
        entry.insert(number);
        let arrival = Arrival {
            len: job.prompt.len(),
            keys: prefix::keys(&root, &job.prompt),
            root,
            reusable: job.reusable(),
        };
        self.jobs.insert(number, job);
        self.scheduler.add(SequenceId { job: number, index: 0 }, arrival);
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
