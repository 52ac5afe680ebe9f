//! How training and sampling share the engine's thread: in turns of a few milliseconds.
//!
//! A training step that is under way is interrupted, between the parts of its ops, when training's turn is over.
//! Requests for runs that come meanwhile are held until it has ended; samples start at once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, mpsc::Receiver},
    time::Duration,
};

use tinsmith_engine::{Backend, Between};
use tinsmith_store::{Claimed, Shortage, Target};

use crate::{
    Stats,
    run::ITEM_BYTES,
    worker::{CARE_INTERVAL, Worker},
};

/// Prompt tokens of a sampling step, before it is known how long they take.
const FIRST_TOKENS: usize = 128;
/// Fewer prompt tokens say nothing about the pace: a step's other work takes longer.
const PACE_TOKENS_MIN: usize = 32;

/// Where the thread stands in its turns.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// When samples had their last turn.
    sampled_at: Duration,
    /// How long that was.
    sampled_for: Duration,
    /// How long all of them were.
    sampled: Duration,
    /// Requests for runs that came during a training step, in their order.
    held: VecDeque<Claimed>,
    held_bytes: usize,
    /// How fast each model takes prompts in.
    paces: BTreeMap<usize, Pace>,
}

/// How fast a model takes prompts in.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Prompt tokens that take about as long as a turn.
    tokens: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { tokens: FIRST_TOKENS }
    }
}

impl Pace {
    /// Takes note of a step. It follows slowly upwards, since a step does other things too, and at once
    /// downwards.
    fn take_in(&mut self, tokens: u64, taken: Duration, turn: Duration) {
        if tokens < PACE_TOKENS_MIN as u64 {
            return;
        }
        let fitting = u128::from(tokens) * turn.as_micros() / taken.as_micros().max(1);
        let fitting = usize::try_from(fitting).unwrap_or(usize::MAX);
        self.tokens = fitting.min(self.tokens.saturating_mul(2)).max(PACE_TOKENS_MIN);
    }
}

/// What comes from outside, and goes there.
pub(crate) struct Outside<'a> {
    pub(crate) claims: &'a mut Receiver<Claimed>,
    pub(crate) stats: &'a Mutex<Stats>,
}

/// The worker, while its engine's training half is out.
struct Meanwhile<'a, 'o, B: Backend> {
    worker: &'a mut Worker<B>,
    outside: Option<&'a mut Outside<'o>>,
}

impl<B: Backend> Between for Meanwhile<'_, '_, B> {
    fn is_due(&mut self) -> bool {
        self.worker.is_training_over()
    }

    fn run(&mut self) {
        self.worker.sample_in_turn(self.outside.as_deref_mut());
    }
}

impl Turns {
    /// Whether nothing is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// The next request that was held.
    pub(crate) fn next_held(&mut self) -> Option<Claimed> {
        let claimed = self.held.pop_front()?;
        self.held_bytes -= claimed.body.len() + ITEM_BYTES;
        Some(claimed)
    }

    fn hold(&mut self, claimed: Claimed) {
        self.held_bytes += claimed.body.len() + ITEM_BYTES;
        self.held.push_back(claimed);
    }
}

impl<B: Backend> Worker<B> {
    /// One step of every engine that has work: of training, with samples in their turns, or of samples alone.
    pub(crate) fn step(&mut self, mut outside: Option<&mut Outside<'_>>) {
        let mut trains = false;
        for index in 0..self.models.len() {
            if let Some(mut training) = self.models[index].engine.begin_training() {
                trains = true;
                let (start, sampled) = (self.clock.monotonic(), self.turns.sampled);
                let outside = outside.as_deref_mut();
                training.step(&mut Meanwhile { worker: self, outside });
                let outcomes = self.models[index].engine.end_training(training);
                let sampled = self.turns.sampled.saturating_sub(sampled);
                let work = self.clock.monotonic().saturating_sub(start).saturating_sub(sampled);
                self.count_work(index, work);
                self.finish_all(outcomes);
            }
        }
        if !trains {
            self.sample(false);
            self.turns.sampled_at = self.clock.monotonic();
            self.turns.sampled_for = Duration::ZERO;
        } else if self.is_training_over() {
            self.sample_in_turn(outside);
        }
    }

    /// Whether samples have waited for as long as they had before, within bounds.
    fn is_training_over(&self) -> bool {
        let least = self.config.training_turn;
        let turn = self.turns.sampled_for.clamp(least, least * 2);
        self.clock.monotonic().saturating_sub(self.turns.sampled_at) >= turn
    }

    /// Lets samples have their turn, and those that have come start.
    fn sample_in_turn(&mut self, mut outside: Option<&mut Outside<'_>>) {
        let start = self.clock.monotonic();
        let taken = loop {
            if let Some(outside) = outside.as_deref_mut() {
                self.take_samples(outside.claims);
                self.admit();
                self.publish_if_due(outside.stats);
            }
            let worked = self.sample(true);
            let taken = self.clock.monotonic().saturating_sub(start);
            if !worked || taken >= self.config.training_turn {
                break taken;
            }
        };
        self.turns.sampled_at = start + taken;
        self.turns.sampled_for = taken;
        self.turns.sampled += taken;
    }

    /// One sampling step of every engine that has samples; whether there was any. Where training waits, or other
    /// samples, it is kept short.
    fn sample(&mut self, trains: bool) -> bool {
        let mut worked = false;
        for index in 0..self.models.len() {
            let engine = &mut self.models[index].engine;
            if engine.is_sampling_idle() {
                let outcomes = engine.sample();
                self.finish_all(outcomes);
                continue;
            }
            worked = true;
            let before = engine.stats();
            let pace = self.turns.paces.entry(index).or_default();
            let hurries = trains || before.running > 1;
            engine.set_prefill_tokens(if hurries { pace.tokens } else { usize::MAX });
            let start = self.clock.monotonic();
            let outcomes = engine.sample();
            let taken = self.clock.monotonic().saturating_sub(start);
            let tokens = engine.stats().prefill_tokens - before.prefill_tokens;
            pace.take_in(tokens, taken, self.config.training_turn);
            self.finish_all(outcomes);
        }
        worked
    }

    /// Starts the samples that came during a training step, and holds what else did.
    fn take_samples(&mut self, claims: &Receiver<Claimed>) {
        while self.may_claim(self.turns.held_bytes) {
            let Ok(claimed) = claims.try_recv() else { return };
            match claimed.target {
                Target::Sampler(..) => self.enqueue(claimed),
                Target::Run(..) => self.turns.hold(claimed),
            }
        }
    }

    /// Books time that an engine spent on its runs.
    fn count_work(&mut self, model: usize, work: Duration) {
        for run in self.runs.values_mut() {
            if run.model == model && run.in_flight > 0 {
                run.unsaved.work += work;
            }
        }
    }

    /// Tells the store what waits for room, for those who wait for its results.
    pub(crate) fn tell_shortage(&mut self) {
        let blocked = self.blocked.is_some();
        let deferred = !self.deferred.is_empty();
        self.is_short = blocked || deferred;
        self.store.set_shortage(Shortage {
            runs: blocked.then(|| self.runs.keys().cloned().collect()),
            samples: deferred.then(|| self.tickets.keys().cloned().collect()),
        });
    }

    /// Shows the figures of now where nothing else can be looked after.
    fn publish_if_due(&mut self, stats: &Mutex<Stats>) {
        if self.clock.monotonic().saturating_sub(self.cared_at) >= CARE_INTERVAL {
            self.publish(stats);
        }
    }
}
