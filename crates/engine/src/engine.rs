//! The engine's face: runs and samplers come and go, work is submitted, steps are made.

use std::sync::Arc;

use tinsmith_backend::{ATTENTION_TILE, Backend, Between, Nothing};
use tinsmith_model::{config::DecoderConfig, decoder::Decoder, lora::LoraSpec, peft, peft::Files};
use tinsmith_tokenizer::Tokenizer;

use crate::{
    Config, Error, Failure, Output, Parts, Result, RunKey, SamplerKey, Stats, Ticket, Work,
    device::Device,
    plan::{Plan, run_bytes, sampler_bytes},
    sample::{Sampling, SpillFile, StopSource},
    train::{ForwardRequest, Run, Trainer},
};

/// A ticket with what its work gave.
pub(crate) type Finished = (Ticket, Result<Output, Failure>);

/// A base model with its training runs and samplers.
///
/// Not for several threads at a time: one thread owns it and calls [`Engine::step`] while there is work. While a
/// [`Training`] is out, the engine samples, and knows no runs.
#[derive(Debug)]
pub struct Engine<B: Backend> {
    config: Config,
    /// Of sampling.
    device: Device<B>,
    sampling: Sampling<B>,
    /// `None`: it is out, to make a step.
    training: Option<Box<Training<B>>>,
    /// What training had come to when it was last here.
    trained: Trained,
    /// Given out by the next step.
    done: Vec<Finished>,
    turn: Turn,
    steps: u64,
}

/// The half of an engine that trains: its own while it makes a step, so that the other half can sample
/// between the parts of that step.
#[derive(Debug)]
pub struct Training<B: Backend> {
    config: Config,
    device: Device<B>,
    trainer: Trainer<B>,
    /// Of steps that were made and not yet taken in.
    done: Vec<Finished>,
}

/// Counters and gauges of training.
#[derive(Clone, Copy, Debug, Default)]
struct Trained {
    tokens: u64,
    queued: usize,
    runs: usize,
    runs_bytes: usize,
}

/// Which kind of step comes next when there is work of both.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Turn {
    Train,
    Sample,
}

impl<B: Backend> Training<B> {
    /// Makes one step: the optimizer steps whose turn it is, and one micro-batch. What `between` has to run, it
    /// runs between the parts of both.
    pub fn step(&mut self, between: &mut dyn Between) {
        let Self { config, device, trainer, done } = self;
        trainer.step(device, config, between, done);
    }

    fn trained(&self) -> Trained {
        Trained {
            tokens: self.trainer.tokens,
            queued: self.trainer.queued(),
            runs: self.trainer.num_runs(),
            runs_bytes: self.trainer.bytes,
        }
    }
}

impl<B: Backend> Engine<B> {
    /// An engine without runs and samplers. `end_tokens` end a text unless a job says otherwise; without a
    /// `tokenizer`, stop strings are refused.
    ///
    /// # Errors
    /// A limit that leaves no room for any work, or no room on the device for the cache.
    pub fn new(
        backend: B,
        decoder: Decoder<B>,
        end_tokens: Vec<u32>,
        tokenizer: Option<Arc<Tokenizer>>,
        config: Config,
    ) -> Result<Self> {
        check_config(&config)?;
        let mut device = Device::new(backend, Arc::new(decoder))?;
        let stops = StopSource { end_tokens, tokenizer };
        let sampling = Sampling::new(&mut device, &config, stops)?;
        let training = Training {
            config,
            device: device.sibling()?,
            trainer: Trainer::new(),
            done: Vec::new(),
        };
        Ok(Self {
            config,
            device,
            sampling,
            training: Some(Box::new(training)),
            trained: Trained::default(),
            done: Vec::new(),
            turn: Turn::Train,
            steps: 0,
        })
    }

    /// Gives keys and values that a waiting sequence needs again a file to go to when their room is needed, up to
    /// [`Config::kv_spill_bytes`]. Call it before work is submitted.
    pub fn spill_to(&mut self, file: Box<dyn SpillFile>) {
        self.sampling.spill_to(&self.device, &self.config, file);
    }

    /// The base model's switches.
    pub fn decoder_config(&self) -> &DecoderConfig {
        self.device.decoder.config()
    }

    /// The kernel set in use with its version, e.g. `f32.1`.
    pub fn kernel_set(&self) -> &str {
        self.device.backend.kernel_set()
    }

    /// What this engine takes up at most.
    pub fn plan(&self) -> Plan {
        Plan::new(&self.device.backend, self.device.decoder.config(), &self.config)
    }

    /// Bytes that all resident runs may take up.
    pub fn runs_bytes_max(&self) -> usize {
        self.config.runs_bytes_max
    }

    /// Bytes of a run of this spec.
    pub fn run_bytes(&self, spec: &LoraSpec) -> usize {
        run_bytes(&self.device.backend, self.device.decoder.config(), spec)
    }

    /// Bytes of a sampler with an adapter of this spec.
    pub fn sampler_bytes(&self, spec: &LoraSpec) -> usize {
        sampler_bytes(&self.device.backend, self.device.decoder.config(), spec)
    }

    /// Tokens of a prompt with its completion at most.
    pub fn max_model_len(&self) -> usize {
        self.sampling.context()
    }

    /// Makes a run with a new adapter.
    ///
    /// # Errors
    /// A spec that no adapter can have, or no room.
    pub fn create_run(&mut self, run: RunKey, spec: LoraSpec) -> Result<()> {
        spec.check()?;
        let Training { config, device, trainer, .. } = self.training()?;
        trainer.check_new(device, config, run, Some(&spec))?;
        let made = Run::new(&mut device.backend, device.decoder.config(), spec)?;
        trainer.insert(device, run, made);
        Ok(())
    }

    /// Makes a run from files. Parts that are not asked for, or not in the files, are zero.
    ///
    /// # Errors
    /// Files that do not fit this base model, or no room.
    pub fn restore_run(&mut self, run: RunKey, files: &Files, parts: Parts) -> Result<()> {
        let Training { config, device, trainer, .. } = self.training()?;
        trainer.check_new(device, config, run, None)?;
        let restored = Run::restore(&mut device.backend, device.decoder.config(), files, parts)?;
        let spec = *restored.adapter.spec();
        trainer.check_new(device, config, run, Some(&spec))?;
        trainer.insert(device, run, restored);
        Ok(())
    }

    /// Loads a checkpoint into an idle run. Its pending gradient is cleared; without `optimizer`, the moments
    /// and the step count are too.
    ///
    /// # Errors
    /// Files of another kind of adapter than the run's, or without the optimizer's state where it is asked
    /// for; the run is as before.
    pub fn load_run(&mut self, run: RunKey, files: &Files, optimizer: bool) -> Result<()> {
        let Training { device, trainer, .. } = self.training()?;
        let config = device.decoder.config();
        trainer.idle_mut(run)?.load(&mut device.backend, config, files, optimizer)
    }

    /// The state of an idle run as files.
    ///
    /// # Errors
    /// The run is not resident, or has work in its queue.
    pub fn export_run(
        &mut self,
        run: RunKey,
        parts: Parts,
        base_model_name: &str,
    ) -> Result<Files> {
        let Training { device, trainer, .. } = self.training()?;
        let config = device.decoder.config();
        Ok(trainer.idle_mut(run)?.export(&mut device.backend, config, parts, base_model_name))
    }

    /// Frees a run; its queued work fails. Not while a [`Training`] is out.
    pub fn drop_run(&mut self, run: RunKey) {
        if let Some(training) = &mut self.training {
            training.trainer.remove(run, &mut self.done);
        }
    }

    /// The half that trains.
    fn training(&mut self) -> Result<&mut Training<B>> {
        self.training.as_deref_mut().ok_or_else(under_way)
    }

    /// Makes a sampler from an adapter's files, or of the base model alone. Samplers of the same `scope` (whose
    /// tenant they are) and the same files share what has been computed of a prompt; others never do.
    ///
    /// # Errors
    /// Files that do not fit this base model, or no room.
    pub fn create_sampler(
        &mut self,
        sampler: SamplerKey,
        scope: &str,
        files: Option<&Files>,
    ) -> Result<()> {
        self.sampling.check_new(&self.device, &self.config, sampler, None)?;
        let Device { backend, decoder, .. } = &mut self.device;
        let adapter = match files {
            Some(files) => Some(peft::read_adapter(backend, decoder.config(), files)?),
            None => None,
        };
        let spec = adapter.as_ref().map(|adapter| *adapter.spec());
        self.sampling.check_new(&self.device, &self.config, sampler, spec.as_ref())?;
        self.sampling.insert_read(&self.device, (sampler, scope), adapter, files);
        Ok(())
    }

    /// Makes a sampler of a run's weights as they are after the work that has been done. It shares nothing.
    ///
    /// # Errors
    /// The run is not resident, or there is no room.
    pub fn snapshot_sampler(
        &mut self,
        sampler: SamplerKey,
        scope: &str,
        run: RunKey,
    ) -> Result<()> {
        let Self { config, device, sampling, training, .. } = self;
        let training = training.as_ref().ok_or_else(under_way)?;
        let adapter = &training.trainer.get(run)?.adapter;
        sampling.check_new(device, config, sampler, Some(adapter.spec()))?;
        let adapter = adapter.copy(&mut device.backend)?;
        self.sampling.insert_own(&self.device, (sampler, scope), adapter);
        Ok(())
    }

    /// Makes a sampler from an adapter's files that shares nothing of what it computes, not even with samplers of the
    /// same files.
    ///
    /// # Errors
    /// Files that do not fit this base model, or no room.
    pub fn create_own_sampler(
        &mut self,
        sampler: SamplerKey,
        scope: &str,
        files: &Files,
    ) -> Result<()> {
        self.sampling.check_new(&self.device, &self.config, sampler, None)?;
        let Device { backend, decoder, .. } = &mut self.device;
        let adapter = peft::read_adapter(backend, decoder.config(), files)?;
        self.sampling.check_new(&self.device, &self.config, sampler, Some(adapter.spec()))?;
        self.sampling.insert_own(&self.device, (sampler, scope), adapter);
        Ok(())
    }

    /// Makes a sampler with the weights of another; they share nothing of what they compute.
    ///
    /// # Errors
    /// The other is not resident, or there is no room.
    pub fn join_sampler(
        &mut self,
        sampler: SamplerKey,
        scope: &str,
        other: SamplerKey,
    ) -> Result<()> {
        self.sampling.check_new(&self.device, &self.config, sampler, None)?;
        self.sampling.insert_follower((sampler, scope), other)
    }

    /// Gives a sampler the weights of another, at once: its running sequences go on with them, on what was computed
    /// with the old ones.
    ///
    /// # Errors
    /// One of the two is not resident.
    pub fn follow_sampler(&mut self, sampler: SamplerKey, other: SamplerKey) -> Result<()> {
        self.sampling.follow(sampler, other)
    }

    /// Frees a sampler; its jobs fail.
    pub fn drop_sampler(&mut self, sampler: SamplerKey) {
        self.sampling.remove(sampler, &mut self.done);
    }

    /// Checks work and queues it.
    ///
    /// # Errors
    /// [`Error::User`] is the caller's message; [`Error::Full`] asks to come back later. Nothing is queued.
    pub fn submit(&mut self, ticket: Ticket, work: Work) -> Result<()> {
        match work {
            Work::ForwardBackward { run, datums, loss, config: options, forward_only } => {
                let request = ForwardRequest { datums, loss, config: options, forward_only };
                let Training { config, device, trainer, .. } = self.training()?;
                trainer.submit_forward(device, config, (ticket, run), request)
            }
            Work::OptimStep { run, params } => {
                let Training { config, trainer, .. } = self.training()?;
                trainer.submit_optim(config, (ticket, run), params)
            }
            Work::Sample { sampler, job } => {
                self.sampling.submit(&self.device, &self.config, (ticket, sampler), job)
            }
        }
    }

    /// Forgets a sampling job and frees its blocks at once; nothing is reported for it. Training work cannot
    /// be taken back.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.sampling.cancel(ticket);
    }

    /// Schedules, runs and takes in one step, of training and sampling in turn. Gives the work that finished.
    pub fn step(&mut self) -> Vec<(Ticket, Result<Output, Failure>)> {
        let turn = match (self.has_training(), !self.sampling.is_idle()) {
            (true, true) => self.turn,
            (true, false) => Turn::Train,
            (false, true) => Turn::Sample,
            (false, false) => return std::mem::take(&mut self.done),
        };
        match turn {
            Turn::Train => {
                self.turn = Turn::Sample;
                let Some(mut training) = self.begin_training() else { return Vec::new() };
                training.step(&mut Nothing);
                self.end_training(training)
            }
            Turn::Sample => {
                self.turn = Turn::Train;
                self.sample()
            }
        }
    }

    /// Gives out the half that trains, for a step of it, if it is here and has work.
    pub fn begin_training(&mut self) -> Option<Box<Training<B>>> {
        if !self.has_training() {
            return None;
        }
        self.steps += 1;
        let training = self.training.take()?;
        self.trained = training.trained();
        Some(training)
    }

    /// Takes it back. Gives the work that finished.
    pub fn end_training(
        &mut self,
        mut training: Box<Training<B>>,
    ) -> Vec<(Ticket, Result<Output, Failure>)> {
        let mut done = std::mem::take(&mut self.done);
        done.append(&mut training.done);
        self.training = Some(training);
        done
    }

    /// Makes a sampling step if there is work for one. Gives the work that finished.
    pub fn sample(&mut self) -> Vec<(Ticket, Result<Output, Failure>)> {
        let mut done = std::mem::take(&mut self.done);
        if !self.sampling.is_idle() {
            self.steps += 1;
            self.sampling.step(&mut self.device, &mut done);
        }
        done
    }

    /// Bounds the prompt tokens of a sampling step for now: from one attention tile to
    /// [`Config::prefill_tokens_max`]. Whoever has a clock keeps steps short by it; no bit depends on it.
    pub fn set_prefill_tokens(&mut self, tokens: usize) {
        let most = self.config.prefill_tokens_max;
        self.sampling.scheduler.prefill_tokens = tokens.clamp(ATTENTION_TILE.min(most), most);
    }

    /// Whether there is nothing to sample.
    pub fn is_sampling_idle(&self) -> bool {
        self.sampling.is_idle()
    }

    fn has_training(&self) -> bool {
        self.training.as_ref().is_some_and(|training| training.trainer.queued() > 0)
    }

    /// Whether a step would do nothing and give nothing.
    pub fn is_idle(&self) -> bool {
        self.done.is_empty() && !self.has_training() && self.sampling.is_idle()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        let scheduler = &self.sampling.scheduler;
        let trained = self.training.as_ref().map_or(self.trained, |training| training.trained());
        Stats {
            steps: self.steps,
            train_tokens: trained.tokens,
            prefill_tokens: self.sampling.prefill_tokens,
            decode_tokens: self.sampling.decode_tokens,
            tried_tokens: self.sampling.tried_tokens,
            tried_tokens_kept: self.sampling.tried_tokens_kept,
            preemptions: scheduler.preemptions,
            prefix_hit_tokens: self.sampling.prefix_hit_tokens,
            prefix_evictions: scheduler.blocks.evicted,
            kv_blocks_spilled: self.sampling.spill.spilled,
            kv_blocks_reloaded: self.sampling.spill.reloaded,
            kv_spill_faults: self.sampling.spill.faults,
            running: scheduler.num_running(),
            waiting: scheduler.num_waiting(),
            training_queue: trained.queued,
            kv_blocks_used: scheduler.blocks_used(),
            kv_blocks_cached: scheduler.blocks.num_kept(),
            kv_spill_blocks: scheduler.blocks.slots.num_used(),
            kv_blocks: self.config.kv_blocks,
            runs: trained.runs,
            runs_bytes: trained.runs_bytes,
            samplers: self.sampling.num_samplers(),
            samplers_bytes: self.sampling.bytes,
        }
    }
}

fn under_way() -> Error {
    Error::internal("a training step is under way")
}

fn check_config(config: &Config) -> Result<()> {
    let limits = [
        ("train_tokens_max", config.train_tokens_max),
        ("train_context_max", config.train_context_max),
        ("activation_bytes_max", config.activation_bytes_max),
        ("training_queue_max", config.training_queue_max),
        ("prefill_tokens_max", config.prefill_tokens_max),
        ("max_num_seqs", config.max_num_seqs),
        ("kv_blocks", config.kv_blocks),
        ("max_model_len", config.max_model_len),
        ("waiting_sequences_max", config.waiting_sequences_max),
        ("num_samples_max", config.num_samples_max),
        ("runs_max", config.runs_max),
        ("runs_bytes_max", config.runs_bytes_max),
        ("samplers_max", config.samplers_max),
        ("samplers_bytes_max", config.samplers_bytes_max),
        ("rank_max", config.rank_max),
    ];
    for (name, limit) in limits {
        if limit == 0 {
            return Err(Error::internal(format!("{name} is 0; it must be at least 1")));
        }
    }
    if config.kv_blocks > u32::MAX as usize / ATTENTION_TILE {
        return Err(Error::internal(format!("kv_blocks = {} is too many", config.kv_blocks)));
    }
    Ok(())
}
