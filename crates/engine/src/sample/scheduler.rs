//! Which sequences run in a step, and in which blocks.
//!
//! Waiting, running; a token budget; blocks. Older sequences go first: when blocks run out, the youngest
//! holder gives its blocks back and computes its tokens again later, which gives the same bits.

use std::collections::{BTreeMap, BTreeSet};

use tinsmith_backend::ATTENTION_TILE;

use super::blocks::Blocks;

#[cfg(test)]
mod tests;

/// A sequence, ordered by age.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct SequenceId {
    /// Number of the job, in order of arrival.
    pub(crate) job: u64,
    /// Number of the sample within the job.
    pub(crate) index: usize,
}

/// What bounds a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) prefill_tokens_max: usize,
    pub(crate) max_num_seqs: usize,
}

/// What a step does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Blocks to copy before anything else, in this order: from, to.
    pub(crate) copies: Vec<(u32, u32)>,
    pub(crate) segments: Vec<Segment>,
}

/// Tokens of one sequence that a step computes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Segment {
    pub(crate) sequence: SequenceId,
    /// Of its first token.
    pub(crate) position: usize,
    pub(crate) tokens: usize,
    /// Whether the sequence's last known token is among them.
    pub(crate) last: bool,
}

/// All sequences that are not finished.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    blocks: Blocks,
    sequences: BTreeMap<SequenceId, Entry>,
    running: BTreeSet<SequenceId>,
    waiting: BTreeSet<SequenceId>,
    /// Sequences that gave their blocks back before they were finished.
    pub(crate) preemptions: u64,
    scratch: Vec<SequenceId>,
}

#[derive(Debug)]
struct Entry {
    /// Tokens that are known: the prompt, and those drawn.
    len: usize,
    /// Tokens whose keys and values stand in `blocks`.
    computed: usize,
    blocks: Vec<u32>,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits, num_blocks: usize) -> Self {
        Self {
            limits,
            blocks: Blocks::new(num_blocks),
            sequences: BTreeMap::new(),
            running: BTreeSet::new(),
            waiting: BTreeSet::new(),
            preemptions: 0,
            scratch: Vec::new(),
        }
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn blocks_used(&self) -> usize {
        self.blocks.count() - self.blocks.num_free()
    }

    /// The blocks of a scheduled sequence.
    pub(crate) fn blocks_of(&self, id: SequenceId) -> &[u32] {
        &self.sequences[&id].blocks
    }

    /// A new sequence of `len` tokens, which alone must fit the cache.
    pub(crate) fn add(&mut self, id: SequenceId, len: usize) {
        self.sequences.insert(id, Entry { len, computed: 0, blocks: Vec::new() });
        self.waiting.insert(id);
    }

    /// A new sequence that begins with the computed tokens of `parent` and shares their blocks.
    pub(crate) fn fork(&mut self, parent: SequenceId, id: SequenceId) {
        let Entry { len, computed, blocks } = &self.sequences[&parent];
        let entry = Entry { len: *len, computed: *computed, blocks: blocks.clone() };
        for &block in &entry.blocks {
            self.blocks.share(block);
        }
        self.sequences.insert(id, entry);
        self.waiting.insert(id);
    }

    /// `tokens` more of its tokens are computed.
    pub(crate) fn advance(&mut self, id: SequenceId, tokens: usize) {
        let entry = self.sequences.get_mut(&id).expect("a scheduled sequence is there");
        entry.computed += tokens;
        assert!(entry.computed <= entry.len, "only known tokens are computed");
    }

    /// A token was drawn.
    pub(crate) fn append(&mut self, id: SequenceId) {
        self.sequences.get_mut(&id).expect("a scheduled sequence is there").len += 1;
    }

    /// The sequence is finished, or wanted no more.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        self.give_back(id);
        self.sequences.remove(&id);
        self.running.remove(&id);
        self.waiting.remove(&id);
    }

    /// Decides the next step.
    pub(crate) fn schedule(&mut self, plan: &mut Plan) {
        plan.copies.clear();
        plan.segments.clear();
        let mut budget = self.limits.prefill_tokens_max;
        let preemptions = self.preemptions;
        let mut running = std::mem::take(&mut self.scratch);
        running.clear();
        running.extend(&self.running);
        for &id in &running {
            // An older sequence may have taken its blocks by now.
            if self.running.contains(&id) {
                self.go_on(id, &mut budget, plan);
            }
        }
        self.scratch = running;
        if self.preemptions == preemptions {
            self.admit(&mut budget, plan);
        }
    }

    fn go_on(&mut self, id: SequenceId, budget: &mut usize, plan: &mut Plan) {
        let take = self.affordable(id, *budget);
        // Where there is no room, the sequence keeps its blocks and waits for older ones to finish.
        if take > 0 && self.reserve(id, take, true, plan) {
            self.push_segment(id, take, budget, plan);
        }
    }

    /// Lets waiting sequences in, oldest first, while there is room.
    fn admit(&mut self, budget: &mut usize, plan: &mut Plan) {
        while self.running.len() < self.limits.max_num_seqs
            && let Some(&id) = self.waiting.first()
        {
            let take = self.affordable(id, *budget);
            // Room for all its tokens keeps it from being preempted at once. When nothing else can go on,
            // it is the oldest, and takes what it needs from the younger.
            let alone = plan.segments.is_empty();
            let roomy = self.missing(id, self.sequences[&id].len) <= self.blocks.num_free();
            if take == 0 || !(alone || roomy) || !self.reserve(id, take, alone, plan) {
                break;
            }
            self.waiting.remove(&id);
            self.running.insert(id);
            self.push_segment(id, take, budget, plan);
        }
    }

    /// How many of its tokens the budget lets it compute now. A token that was just drawn is always let in.
    fn affordable(&self, id: SequenceId, budget: usize) -> usize {
        let Entry { len, computed, .. } = &self.sequences[&id];
        match len - computed {
            1 => 1,
            pending => pending.min(budget),
        }
    }

    fn push_segment(&self, id: SequenceId, tokens: usize, budget: &mut usize, plan: &mut Plan) {
        let Entry { len, computed, .. } = &self.sequences[&id];
        if len - computed > 1 {
            *budget -= tokens;
        }
        let last = computed + tokens == *len;
        plan.segments.push(Segment { sequence: id, position: *computed, tokens, last });
    }

    /// Free blocks that it takes to compute up to `end` tokens.
    fn missing(&self, id: SequenceId, end: usize) -> usize {
        let entry = &self.sequences[&id];
        let copy = usize::from(self.shared_tail(entry).is_some());
        end.div_ceil(ATTENTION_TILE).saturating_sub(entry.blocks.len()) + copy
    }

    /// The place of a block that the next token goes into and that others hold too.
    fn shared_tail(&self, entry: &Entry) -> Option<usize> {
        let place = entry.computed / ATTENTION_TILE;
        entry.blocks.get(place).filter(|block| self.blocks.is_shared(**block)).map(|_| place)
    }

    /// Gets the blocks for `tokens` more tokens; with `preempt`, from younger sequences if need be.
    fn reserve(&mut self, id: SequenceId, tokens: usize, preempt: bool, plan: &mut Plan) -> bool {
        let end = self.sequences[&id].computed + tokens;
        while self.missing(id, end) > self.blocks.num_free() {
            if !(preempt && self.preempt_younger(id)) {
                return false;
            }
        }
        let tail = self.shared_tail(&self.sequences[&id]);
        let entry = self.sequences.get_mut(&id).expect("a scheduled sequence is there");
        if let Some(place) = tail {
            let (from, to) = (entry.blocks[place], take(&mut self.blocks));
            plan.copies.push((from, to));
            entry.blocks[place] = to;
            self.blocks.release(from);
        }
        while entry.blocks.len() < end.div_ceil(ATTENTION_TILE) {
            entry.blocks.push(take(&mut self.blocks));
        }
        true
    }

    /// Takes the blocks of the youngest holder younger than `id`.
    fn preempt_younger(&mut self, id: SequenceId) -> bool {
        let holds = |other: &&SequenceId| !self.sequences[*other].blocks.is_empty();
        let waiting = self.waiting.iter().rev().find(holds).copied();
        let running = self.running.iter().rev().find(holds).copied();
        let Some(victim) = waiting.max(running).filter(|victim| *victim > id) else { return false };
        self.give_back(victim);
        self.preemptions += 1;
        self.running.remove(&victim);
        self.waiting.insert(victim);
        true
    }

    fn give_back(&mut self, id: SequenceId) {
        let Some(entry) = self.sequences.get_mut(&id) else { return };
        entry.computed = 0;
        for block in entry.blocks.drain(..) {
            self.blocks.release(block);
        }
    }
}

fn take(blocks: &mut Blocks) -> u32 {
    blocks.take().expect("the free blocks were counted")
}
