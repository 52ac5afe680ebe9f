//! One sampling step: the scheduler's plan through the decoder.

use std::{collections::BTreeMap, mem, ops::Range};

use tinsmith_backend::{ATTENTION_TILE, Ask, Backend, Drawn, PagedSequence, recycle::recycle};
use tinsmith_model::{batch::InferBatch, lora::Adapter};

use super::{
    Resident, Sampler, Sampling,
    job::Job,
    scheduler::{Move, Plan, Scheduler, Segment, SequenceId},
};
use crate::{Result, SamplerKey, device::Device, engine::Finished, error::failure};

/// What a step works with, kept from step to step.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    plan: Plan,
    tokens: Vec<u32>,
    reads: Reads,
    answers: Vec<Drawn>,
    /// Empty between steps.
    sequences: Vec<PagedSequence<'static>>,
    /// Empty between steps; what its items point to is of no matter.
    uses: Vec<(Range<usize>, &'static ())>,
}

/// What is read off the step's rows.
#[derive(Debug, Default)]
struct Reads {
    /// Rows of the step that something is asked of, in ascending order.
    rows: Vec<usize>,
    asks: Vec<Ask>,
    /// Tokens that all asks so far are answered with.
    num_answers: usize,
    scored: Vec<Scored>,
    drawn: Vec<Draw>,
}

/// Prompt positions of a job that are scored.
#[derive(Debug)]
struct Scored {
    job: u64,
    places: Range<usize>,
    answers: Range<usize>,
}

/// Tokens to be drawn: the next one, and one after each that is tried.
#[derive(Debug)]
struct Draw {
    sequence: SequenceId,
    answers: Range<usize>,
}

impl<B: Backend> Sampling<B> {
    /// Runs one step.
    pub(crate) fn step(&mut self, device: &mut Device<B>, done: &mut Vec<Finished>) {
        let mut scratch = mem::take(&mut self.scratch);
        self.scheduler.schedule(&mut scratch.plan);
        self.try_ahead(&mut scratch.plan);
        self.move_blocks(device, &mut scratch.plan);
        let jobs = &self.jobs;
        scratch.plan.segments.sort_unstable_by_key(|segment| {
            (jobs[&segment.sequence.job].sampler, segment.sequence)
        });
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

    /// Fills a small step up with tokens that are tried: its rows cost next to nothing while the weights are what
    /// takes the time.
    fn try_ahead(&mut self, plan: &mut Plan) {
        let rows = plan.segments.iter().map(|segment| segment.tokens).sum();
        let mut room = self.speculative_rows_max.saturating_sub(rows);
        for place in 0..plan.segments.len() {
            let Segment { sequence, position, tokens, last, .. } = plan.segments[place];
            let share = room / (plan.segments.len() - place);
            let job = self.jobs.get_mut(&sequence.job).expect("a scheduled job is there");
            // Only a token that was drawn goes on: nothing else is asked of its row.
            if share == 0 || tokens != 1 || !last || position < job.prompt.len() {
                continue;
            }
            let guessed = job.guess(sequence.index, share);
            let tried = self.scheduler.try_more(place, guessed, plan);
            job.speculation_mut(sequence.index).shorten(tried);
            self.tried_tokens += tried as u64;
            room -= tried;
        }
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

    /// Lists the rows of the step, and what is read off them.
    fn fill(&self, scratch: &mut Scratch) {
        let Scratch { plan, tokens, reads, .. } = scratch;
        tokens.clear();
        reads.clear();
        for segment in &plan.segments {
            let SequenceId { job: number, index } = segment.sequence;
            let job = &self.jobs[&number];
            let first = tokens.len();
            job.extend(index, (segment.position, segment.tokens), tokens);
            if index == 0 {
                // The row of a token scores the one after it.
                let row_of = |place: usize| first + place - 1 - segment.position;
                let places = job.unscored(segment.position, segment.tokens);
                reads.score(number, job, places, row_of);
            }
            if segment.last && job.draws() {
                let samples = if job.forked { index..index + 1 } else { 0..job.num_samples() };
                let row = tokens.len() - 1 - segment.tried;
                for index in samples {
                    reads.draw(job, SequenceId { job: number, index }, row, segment.tried);
                }
            }
        }
    }

    fn compute(&mut self, device: &mut Device<B>, scratch: &mut Scratch) -> Result<()> {
        let Scratch { plan, tokens, reads, answers, sequences, uses } = scratch;
        let Device { backend, decoder, workspace, .. } = device;
        if tokens.is_empty() {
            answers.clear();
            return Ok(());
        }
        let mut batch =
            InferBatch { tokens, sequences: mem::take(sequences), uses: recycle(mem::take(uses)) };
        list_paged(&self.scheduler, &plan.segments, &mut batch.sequences);
        let adapters = (&self.samplers, &self.adapters);
        list_uses(adapters, &self.jobs, &plan.segments, &mut batch.uses);
        decoder.infer(backend, workspace, &mut self.cache, &batch)?;
        answers.clear();
        if !reads.rows.is_empty() {
            decoder.sample(backend, workspace, (&batch, &reads.rows), &reads.asks, answers)?;
        }
        (*sequences, *uses) = (recycle(batch.sequences), recycle(batch.uses));
        Ok(())
    }

    /// Takes in what the step gave.
    fn settle(&mut self, scratch: &Scratch, done: &mut Vec<Finished>) {
        for segment in &scratch.plan.segments {
            self.scheduler.advance(segment.sequence, segment.tokens - segment.tried);
            self.publish(segment.sequence);
            let Some(job) = self.jobs.get_mut(&segment.sequence.job) else { continue };
            self.prefix_hit_tokens += job.begin(segment.position) as u64;
            let prompt = job.prompt.len().saturating_sub(segment.position).min(segment.tokens);
            self.prefill_tokens += prompt as u64;
        }
        let Scratch { plan, reads, answers, .. } = scratch;
        for Scored { job: number, places, answers: own } in &reads.scored {
            let Some(job) = self.jobs.get_mut(number) else { continue };
            if let Err(failure) = job.score(places.clone(), &answers[own.clone()]) {
                self.fail(*number, failure, done);
            }
        }
        self.fork(&plan.segments);
        for Draw { sequence, answers: own } in &reads.drawn {
            self.take_all(*sequence, &answers[own.clone()], done);
        }
        self.finish_undrawn(&plan.segments, done);
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

    /// Takes in drawn tokens as long as each is the one that was tried.
    fn take_all(&mut self, sequence: SequenceId, answers: &[Drawn], done: &mut Vec<Finished>) {
        // An earlier draw of the same step may have failed the job.
        let Some(job) = self.jobs.get(&sequence.job) else { return };
        let each = job.num_drawn();
        let tried = answers.len() / each - 1;
        for (right, answers) in answers.chunks_exact(each).enumerate() {
            self.decode_tokens += 1;
            if !self.take(sequence, answers, done) {
                return;
            }
            let job = self.jobs.get_mut(&sequence.job).expect("it goes on");
            let speculation = job.speculation_mut(sequence.index);
            if right == tried || speculation.tried()[right] != answers[0].token {
                speculation.learn(right);
                return;
            }
            self.tried_tokens_kept += 1;
            self.scheduler.advance(sequence, 1);
            self.publish(sequence);
        }
    }

    /// Takes in one drawn token; gives whether the sample goes on.
    fn take(&mut self, sequence: SequenceId, answers: &[Drawn], done: &mut Vec<Finished>) -> bool {
        let number = sequence.job;
        let job = self.jobs.get_mut(&number).expect("a job that draws is there");
        match job.push(sequence.index, answers, &self.stops) {
            Ok(false) => {
                self.scheduler.append(sequence);
                return true;
            }
            Ok(true) => {
                self.scheduler.remove(sequence);
                self.finish_if_complete(number, done);
            }
            Err(failure) => self.fail(number, failure, done),
        }
        false
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

/// Appends each segment's rows and blocks.
fn list_paged<'a>(
    scheduler: &'a Scheduler,
    segments: &[Segment],
    paged: &mut Vec<PagedSequence<'a>>,
) {
    let mut row = 0;
    for segment in segments {
        let rows = row..row + segment.tokens;
        row = rows.end;
        let blocks = scheduler.blocks_of(segment.sequence);
        paged.push(PagedSequence { rows, position: segment.position, blocks });
    }
}

/// Appends the rows of each adapter; the segments are grouped by sampler.
fn list_uses<'a, B: Backend>(
    (samplers, adapters): (&BTreeMap<SamplerKey, Sampler>, &'a BTreeMap<u64, Resident<B>>),
    jobs: &BTreeMap<u64, Job>,
    segments: &[Segment],
    uses: &mut Vec<(Range<usize>, &'a Adapter<B>)>,
) {
    let mut row = 0;
    let sampler_of = |segment: &Segment| jobs[&segment.sequence.job].sampler;
    for group in segments.chunk_by(|one, next| sampler_of(one) == sampler_of(next)) {
        let end = row + group.iter().map(|segment| segment.tokens).sum::<usize>();
        if let Some(number) = samplers[&sampler_of(&group[0])].adapter {
            uses.push((row..end, &adapters[&number].adapter));
        }
        row = end;
    }
}

impl Reads {
    fn clear(&mut self) {
        self.rows.clear();
        self.asks.clear();
        self.num_answers = 0;
        self.scored.clear();
        self.drawn.clear();
    }

    /// Asks what a job wants to know of prompt positions.
    fn score(
        &mut self,
        number: u64,
        job: &Job,
        places: Range<usize>,
        row_of: impl Fn(usize) -> usize,
    ) {
        let start = self.asks.len();
        for place in places.clone().filter(|&place| job.scores(place)) {
            job.ask_score(place, self.rows.len(), &mut self.asks);
            self.rows.push(row_of(place));
        }
        let asked = &self.asks[start..];
        if !asked.is_empty() {
            let count = asked.iter().map(|ask| ask.query.answers()).sum();
            let answers = self.answers(count);
            self.scored.push(Scored { job: number, places, answers });
        }
    }

    /// Asks for a sample's next token, of `row`, and for one after each that is tried, of the rows after it.
    fn draw(&mut self, job: &Job, sequence: SequenceId, row: usize, tried: usize) {
        for ahead in 0..=tried {
            // The samples of one prompt draw from the same row.
            if self.rows.last() != Some(&(row + ahead)) {
                self.rows.push(row + ahead);
            }
            job.ask_draw(sequence.index, (self.rows.len() - 1, ahead), &mut self.asks);
        }
        let answers = self.answers((1 + tried) * job.num_drawn());
        self.drawn.push(Draw { sequence, answers });
    }

    /// The places of the next answers.
    fn answers(&mut self, count: usize) -> Range<usize> {
        let first = self.num_answers;
        self.num_answers += count;
        first..self.num_answers
    }
}
