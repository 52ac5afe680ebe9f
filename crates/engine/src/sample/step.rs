//! One sampling step: the scheduler's plan through the decoder.

use std::{collections::BTreeMap, ops::Range};

use tinsmith_backend::{ATTENTION_TILE, Backend, Draw, Drawn, PagedSequence, Targets};
use tinsmith_model::{batch::InferBatch, lora::Adapter};

use super::{
    Sampler, Sampling,
    job::Job,
    scheduler::{Move, Plan, Scheduler, Segment, SequenceId},
};
use crate::{Result, SamplerKey, device::Device, engine::Finished, error::failure};

/// What a step works with, kept from step to step.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    plan: Plan,
    tokens: Vec<u32>,
    score: Score,
    draw: DrawRows,
    drawn: Vec<Drawn>,
}

/// Prompt tokens to score.
#[derive(Debug, Default)]
struct Score {
    rows: Vec<usize>,
    targets: Vec<u32>,
    logprobs: Vec<f32>,
    /// Job and count of rows.
    jobs: Vec<(u64, usize)>,
}

/// Tokens to draw.
#[derive(Debug, Default)]
struct DrawRows {
    rows: Vec<usize>,
    draws: Vec<Draw>,
    sequences: Vec<SequenceId>,
}

impl<B: Backend> Sampling<B> {
    /// Runs one step.
    pub(crate) fn step(&mut self, device: &mut Device<B>, done: &mut Vec<Finished>) {
        let mut scratch = std::mem::take(&mut self.scratch);
        self.scheduler.schedule(&mut scratch.plan);
        self.move_blocks(device, &mut scratch.plan);
        let jobs = &self.jobs;
        scratch
            .plan
            .segments
            .sort_by_key(|segment| (jobs[&segment.sequence.job].sampler, segment.sequence));
        self.fill(&mut scratch);
        match self.compute(device, &mut scratch) {
            Ok(()) => self.settle(&scratch, done),
            Err(error) => {
                let failure = failure(&error);
                for segment in &scratch.plan.segments {
                    self.fail(segment.sequence.job, failure.clone(), done);
                }
            }
        }
        self.scratch = scratch;
    }

    /// Copies, spills and reloads blocks. What cannot be reloaded is left out of the step, and computed again.
    fn move_blocks(&mut self, device: &mut Device<B>, plan: &mut Plan) {
        let Self { cache, spill, .. } = self;
        let mut lost = Vec::new();
        for &each in &plan.moves {
            match each {
                Move::Copy { from, to } => device.backend.copy_block(cache, from, to),
                Move::Spill { block, slot } if lost.contains(&block) => spill.discard(slot),
                Move::Spill { block, slot } => {
                    spill.write(&mut device.backend, cache, (block, slot));
                }
                Move::Reload { slot, block } => {
                    if !spill.read(&mut device.backend, cache, (slot, block)) {
                        lost.push(block);
                    }
                }
            }
        }
        if !lost.is_empty() {
            self.scheduler.lose(&lost, plan);
        }
        if self.spill.is_broken() {
            self.scheduler.blocks.slots.close();
        }
    }

    /// Lists the rows of the step, which of them to score, and which to draw from.
    fn fill(&self, scratch: &mut Scratch) {
        let Scratch { plan, tokens, score, draw, drawn: _ } = scratch;
        tokens.clear();
        score.clear();
        draw.clear();
        for segment in &plan.segments {
            let SequenceId { job: number, index } = segment.sequence;
            let job = &self.jobs[&number];
            let first = tokens.len();
            job.extend(index, (segment.position, segment.tokens), tokens);
            // The row of a token scores the one after it.
            let scored = job.unscored(segment.position, segment.tokens);
            if index == 0 && !scored.is_empty() {
                score.jobs.push((number, scored.len()));
                score.targets.extend_from_slice(&job.prompt[scored.clone()]);
                score.rows.extend(scored.map(|place| first + place - 1 - segment.position));
            }
            if segment.last && job.draws() {
                let samples = if job.forked { index..index + 1 } else { 0..job.num_samples() };
                for index in samples {
                    draw.rows.push(tokens.len() - 1);
                    draw.draws.push(job.draw(index));
                    draw.sequences.push(SequenceId { job: number, index });
                }
            }
        }
        score.logprobs.resize(score.rows.len(), 0.0);
    }

    fn compute(&mut self, device: &mut Device<B>, scratch: &mut Scratch) -> Result<()> {
        let Scratch { plan, tokens, score, draw, drawn } = scratch;
        let Device { backend, decoder, workspace, .. } = device;
        if tokens.is_empty() {
            drawn.clear();
            return Ok(());
        }
        let batch = InferBatch {
            tokens,
            sequences: paged(&self.scheduler, &plan.segments),
            uses: uses(&self.samplers, &self.jobs, &plan.segments),
        };
        decoder.infer(backend, workspace, &mut self.cache, &batch)?;
        if !score.rows.is_empty() {
            let targets = Targets { ids: &score.targets, per_row: 1 };
            let picked = (&batch, score.rows.as_slice());
            decoder.score(backend, workspace, picked, targets, &mut score.logprobs)?;
        }
        drawn.clear();
        if !draw.rows.is_empty() {
            decoder.sample(backend, workspace, (&batch, &draw.rows), &draw.draws, drawn)?;
        }
        Ok(())
    }

    /// Takes in what the step gave.
    fn settle(&mut self, scratch: &Scratch, done: &mut Vec<Finished>) {
        for segment in &scratch.plan.segments {
            self.scheduler.advance(segment.sequence, segment.tokens);
            self.publish(segment.sequence);
            let Some(job) = self.jobs.get_mut(&segment.sequence.job) else { continue };
            self.prefix_hit_tokens += job.begin(segment.position) as u64;
            let prompt = job.prompt.len().saturating_sub(segment.position).min(segment.tokens);
            self.prefill_tokens += prompt as u64;
        }
        let mut logprobs = scratch.score.logprobs.as_slice();
        for &(number, count) in &scratch.score.jobs {
            let (own, rest) = logprobs.split_at(count);
            logprobs = rest;
            let scored = self.jobs.get_mut(&number).map(|job| job.score(own));
            if let Some(Err(failure)) = scored {
                self.fail(number, failure, done);
            }
        }
        self.fork(&scratch.plan.segments);
        for (&sequence, drawn) in scratch.draw.sequences.iter().zip(&scratch.drawn) {
            self.decode_tokens += 1;
            self.take(sequence, *drawn, done);
        }
        self.finish_undrawn(&scratch.plan.segments, done);
    }

    /// Names the blocks that a step has filled, and lets others find them.
    fn publish(&mut self, sequence: SequenceId) {
        while let Some(block) = self.scheduler.nameless(sequence) {
            let tokens = &mut self.block_tokens;
            tokens.clear();
            let place = (block * ATTENTION_TILE, ATTENTION_TILE);
            self.jobs[&sequence.job].extend(sequence.index, place, tokens);
            self.scheduler.name(sequence, tokens);
        }
        self.scheduler.publish(sequence);
    }

    /// Lets the samples of each job whose prompt is computed go their own ways.
    fn fork(&mut self, segments: &[Segment]) {
        for segment in segments.iter().filter(|segment| segment.last) {
            let Some(job) = self.jobs.get_mut(&segment.sequence.job) else { continue };
            if !job.forked && job.draws() {
                job.forked = true;
                for index in 1..job.num_samples() {
                    let fork = SequenceId { index, ..segment.sequence };
                    self.scheduler.fork(segment.sequence, fork);
                }
            }
        }
    }

    /// Takes in one drawn token.
    fn take(&mut self, sequence: SequenceId, drawn: Drawn, done: &mut Vec<Finished>) {
        let number = sequence.job;
        // An earlier draw of the same step may have failed the job.
        let Some(job) = self.jobs.get_mut(&number) else { return };
        match job.push(sequence.index, (drawn.token, drawn.logprob), &self.stops) {
            Ok(false) => self.scheduler.append(sequence),
            Ok(true) => {
                self.scheduler.remove(sequence);
                self.finish_if_complete(number, done);
            }
            Err(failure) => self.fail(number, failure, done),
        }
    }

    /// Ends jobs that only wanted their prompt scored.
    fn finish_undrawn(&mut self, segments: &[Segment], done: &mut Vec<Finished>) {
        for segment in segments.iter().filter(|segment| segment.last) {
            let number = segment.sequence.job;
            let Some(job) = self.jobs.get_mut(&number) else { continue };
            if !job.draws() {
                job.finish_empty();
                self.finish_if_complete(number, done);
            }
        }
    }

    fn finish_if_complete(&mut self, number: u64, done: &mut Vec<Finished>) {
        if self.jobs.get(&number).is_some_and(|job| job.num_unfinished() == 0)
            && let Some(job) = self.forget(number)
        {
            done.push((job.ticket, Ok(job.output())));
        }
    }
}

fn paged<'a>(scheduler: &'a Scheduler, segments: &[Segment]) -> Vec<PagedSequence<'a>> {
    let mut row = 0;
    let paged = |segment: &Segment| {
        let rows = row..row + segment.tokens;
        row = rows.end;
        let blocks = scheduler.blocks_of(segment.sequence);
        PagedSequence { rows, position: segment.position, blocks }
    };
    segments.iter().map(paged).collect()
}

/// The rows of each adapter; the segments are grouped by sampler.
fn uses<'a, B: Backend>(
    samplers: &'a BTreeMap<SamplerKey, Sampler<B>>,
    jobs: &BTreeMap<u64, Job>,
    segments: &[Segment],
) -> Vec<(Range<usize>, &'a Adapter<B>)> {
    let mut uses = Vec::new();
    let mut row = 0;
    let sampler_of = |segment: &Segment| jobs[&segment.sequence.job].sampler;
    for group in segments.chunk_by(|one, next| sampler_of(one) == sampler_of(next)) {
        let end = row + group.iter().map(|segment| segment.tokens).sum::<usize>();
        if let Some(adapter) = &samplers[&sampler_of(&group[0])].adapter {
            uses.push((row..end, adapter));
        }
        row = end;
    }
    uses
}

impl Score {
    fn clear(&mut self) {
        self.rows.clear();
        self.targets.clear();
        self.logprobs.clear();
        self.jobs.clear();
    }
}

impl DrawRows {
    fn clear(&mut self) {
        self.rows.clear();
        self.draws.clear();
        self.sequences.clear();
    }
}
