//! Which sequences run in a step, and in which blocks.
//!
//! Waiting, running; a token budget; blocks. Older sequences go first: when blocks run out, the youngest
//! holder gives its blocks back. What it finds of them when it runs again it takes over, in the cache or
//! from the spill file; it computes the rest again, which gives the same bits.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use tinsmith_backend::ATTENTION_TILE;

use super::{
    blocks::Blocks,
    prefix::{self, Key},
    spill::Kept,
};

#[cfg(test)]
mod tests;

/// Blocks of a running sequence whose bookkeeping costs no allocation.
const ROOM_BLOCKS: usize = 128;

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

/// What a sequence is when it arrives.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Tokens that are known.
    pub(crate) len: usize,
    /// Names of its full blocks.
    pub(crate) keys: Vec<Key>,
    /// The name before the first one.
    pub(crate) root: Key,
    /// How many of its first tokens nobody needs the rows of: they may be found instead of computed.
    pub(crate) reusable: usize,
}

/// What a step does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Blocks to move before anything else, in this order.
    pub(crate) moves: Vec<Move>,
    pub(crate) segments: Vec<Segment>,
}

/// What happens to a block's content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Move {
    Copy { from: u32, to: u32 },
    Spill { block: u32, slot: u32 },
    Reload { slot: u32, block: u32 },
}

/// Tokens of one sequence that a step computes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Segment {
    pub(crate) sequence: SequenceId,
    /// Of its first token.
    pub(crate) position: usize,
    pub(crate) tokens: usize,
    /// Of these, tokens at the end that are only tried.
    pub(crate) tried: usize,
    /// Whether the sequence's last known token is among them.
    pub(crate) last: bool,
}

/// All sequences that are not finished.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    /// Prompt tokens of a step for now, at most [`Limits::prefill_tokens_max`].
    pub(crate) prefill_tokens: usize,
    pub(crate) blocks: Blocks,
    sequences: BTreeMap<SequenceId, Entry>,
    running: BTreeSet<SequenceId>,
    waiting: BTreeSet<SequenceId>,
    /// Sequences that gave their blocks back before they were finished.
    pub(crate) preemptions: u64,
    scratch: Vec<SequenceId>,
    /// Names of the blocks that prompts fill in the step that is being planned.
    coming: Vec<Key>,
}

#[derive(Debug)]
struct Entry {
    /// Tokens that are known: the prompt, and those drawn.
    len: usize,
    /// Tokens whose keys and values stand in `blocks`.
    computed: usize,
    blocks: Vec<u32>,
    /// Names of its full blocks, as far as they have been asked for.
    keys: Vec<Key>,
    root: Key,
    /// See [`Arrival::reusable`].
    reusable: usize,
    /// Its first blocks, that many, have their names in the cache.
    named: usize,
    /// Its first blocks, that many, are wanted back.
    wanted: usize,
}

/// What became of a waiting sequence.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Admission {
    In,
    /// Another sequence computes in this step what it needs next.
    NextStep,
    NoRoom,
}

impl Scheduler {
    /// For `num_blocks` blocks in the cache and `num_slots` in the spill file.
    pub(crate) fn new(limits: Limits, num_blocks: usize, num_slots: usize) -> Self {
        Self {
            limits,
            prefill_tokens: limits.prefill_tokens_max,
            blocks: Blocks::new(num_blocks, num_slots),
            sequences: BTreeMap::new(),
            running: BTreeSet::new(),
            waiting: BTreeSet::new(),
            preemptions: 0,
            scratch: Vec::new(),
            coming: Vec::new(),
        }
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Blocks that sequences hold.
    pub(crate) fn blocks_used(&self) -> usize {
        self.blocks.count() - self.blocks.num_free()
    }

    /// The blocks of a scheduled sequence.
    pub(crate) fn blocks_of(&self, id: SequenceId) -> &[u32] {
        &self.sequences[&id].blocks
    }

    /// A new sequence, which alone must fit the cache.
    pub(crate) fn add(&mut self, id: SequenceId, arrival: Arrival) {
        let Arrival { len, keys, root, reusable } = arrival;
        let blocks = Vec::new();
        let entry = Entry { len, computed: 0, blocks, keys, root, reusable, named: 0, wanted: 0 };
        self.sequences.insert(id, entry);
        self.waiting.insert(id);
    }

    /// A new sequence that begins with the computed tokens of `parent` and shares their blocks.
    pub(crate) fn fork(&mut self, parent: SequenceId, id: SequenceId) {
        let parent = &self.sequences[&parent];
        let (blocks, keys) = (parent.blocks.clone(), parent.keys.clone());
        let entry = Entry { blocks, keys, wanted: 0, ..*parent };
        for &block in &entry.blocks {
            self.blocks.share(block);
        }
        self.sequences.insert(id, entry);
        self.waiting.insert(id);
    }

    /// `tokens` more of its tokens are computed.
    pub(crate) fn advance(&mut self, id: SequenceId, tokens: usize) {
        let entry = self.entry_mut(id);
        entry.computed += tokens;
        assert!(entry.computed <= entry.len, "only known tokens are computed");
    }

    /// The first of its computed full blocks whose name is not known yet.
    pub(crate) fn nameless(&self, id: SequenceId) -> Option<usize> {
        let Entry { computed, keys, .. } = &self.sequences[&id];
        (keys.len() < computed / ATTENTION_TILE).then_some(keys.len())
    }

    /// Names the block that [`Self::nameless`] gave by its tokens.
    pub(crate) fn name(&mut self, id: SequenceId, tokens: &[u32]) {
        let entry = self.entry_mut(id);
        let before = entry.keys.last().unwrap_or(&entry.root);
        let key = prefix::next(before, tokens);
        entry.keys.push(key);
    }

    /// Lets others find its computed blocks; where there is the same block already, that one is held instead.
    pub(crate) fn publish(&mut self, id: SequenceId) {
        let entry = self.sequences.get_mut(&id).expect("a scheduled sequence is there");
        while entry.named < entry.keys.len().min(entry.computed / ATTENTION_TILE) {
            let (place, root) = (entry.named, entry.root);
            let block = entry.blocks[place];
            let kept = Kept { name: entry.keys[place], root, wanted: 0 };
            if let Some(same) = self.blocks.name(block, kept) {
                self.blocks.share(same);
                self.blocks.release(block);
                entry.blocks[place] = same;
            }
            entry.named += 1;
        }
    }

    /// A token was drawn. The rows of those before it are not needed any more.
    pub(crate) fn append(&mut self, id: SequenceId) {
        let entry = self.entry_mut(id);
        entry.len += 1;
        entry.reusable = usize::MAX;
    }

    /// The sequence is finished, or wanted no more.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        self.give_back(id);
        self.unwant(id);
        self.sequences.remove(&id);
        self.running.remove(&id);
        self.waiting.remove(&id);
    }

    /// These blocks do not hold what their names say: whoever holds one begins again.
    pub(crate) fn lose(&mut self, blocks: &[u32], plan: &mut Plan) {
        for &block in blocks {
            self.blocks.unname(block);
        }
        let struck = |entry: &Entry| entry.blocks.iter().any(|block| blocks.contains(block));
        let lost: Vec<SequenceId> =
            self.sequences.iter().filter(|(_, entry)| struck(entry)).map(|(id, _)| *id).collect();
        for &id in &lost {
            self.give_back(id);
            self.running.remove(&id);
            self.waiting.insert(id);
        }
        plan.segments.retain(|segment| !lost.contains(&segment.sequence));
    }

    /// Adds up to `more` tokens to be tried to a segment of the plan, as far as blocks are free; gives how many.
    pub(crate) fn try_more(&mut self, place: usize, more: usize, plan: &mut Plan) -> usize {
        let Segment { sequence, position, tokens, .. } = plan.segments[place];
        let entry = self.sequences.get_mut(&sequence).expect("a scheduled sequence is there");
        let mut end = position + tokens + more;
        while entry.blocks.len() < end.div_ceil(ATTENTION_TILE) {
            if self.blocks.num_free() == 0 {
                end = entry.blocks.len() * ATTENTION_TILE;
                break;
            }
            entry.blocks.push(take(&mut self.blocks, plan));
        }
        let tried = end - position - tokens;
        plan.segments[place].tokens += tried;
        plan.segments[place].tried = tried;
        tried
    }

    /// Decides the next step.
    pub(crate) fn schedule(&mut self, plan: &mut Plan) {
        plan.moves.clear();
        plan.segments.clear();
        self.coming.clear();
        let mut budget = self.prefill_tokens;
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
            self.admit_all(&mut budget, plan);
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
    fn admit_all(&mut self, budget: &mut usize, plan: &mut Plan) {
        let mut after = Bound::Unbounded;
        // As many as could run at all may be passed over: a look at each costs time.
        let mut passed = 0;
        while self.running.len() < self.limits.max_num_seqs && passed < self.limits.max_num_seqs {
            let Some(&id) = self.waiting.range((after, Bound::Unbounded)).next() else { break };
            match self.admit(id, budget, plan) {
                Admission::In => {}
                Admission::NextStep => {
                    passed += 1;
                    after = Bound::Excluded(id);
                }
                Admission::NoRoom => break,
            }
        }
    }

    fn admit(&mut self, id: SequenceId, budget: &mut usize, plan: &mut Plan) -> Admission {
        let fresh = self.sequences[&id].blocks.is_empty();
        let further = if fresh { self.find(id) } else { 0 };
        let admission = self.admit_found(id, further, budget, plan);
        if admission == Admission::In {
            self.unwant(id);
            self.waiting.remove(&id);
            self.running.insert(id);
            let entry = self.entry_mut(id);
            entry.blocks.reserve(ROOM_BLOCKS);
            entry.keys.reserve(ROOM_BLOCKS);
        } else if fresh {
            self.give_back(id);
        }
        admission
    }

    /// Admits a sequence that holds what was found, where `further` blocks more can be taken over.
    fn admit_found(
        &mut self,
        id: SequenceId,
        further: usize,
        budget: &mut usize,
        plan: &mut Plan,
    ) -> Admission {
        let entry = &self.sequences[&id];
        let (len, next) = (entry.len, entry.named + further);
        if next < entry.findable() && self.coming.contains(&entry.keys[next]) {
            return Admission::NextStep;
        }
        let pending = len - entry.computed - further * ATTENTION_TILE;
        // Room for all its tokens keeps it from being preempted at once. When nothing else can go on, it is
        // the oldest, and takes what it needs from the younger.
        let alone = plan.segments.is_empty();
        let roomy = self.missing(id, len) <= self.blocks.num_free();
        if (pending > 1 && *budget == 0) || !(alone || roomy) {
            return Admission::NoRoom;
        }
        self.take_over(id, further, alone, plan);
        let take = self.affordable(id, *budget);
        if take == 0 || !self.reserve(id, take, alone, plan) {
            return Admission::NoRoom;
        }
        self.push_segment(id, take, budget, plan);
        Admission::In
    }

    /// Holds the blocks of its beginning that stand in the cache. Gives how many more, in the spill file or
    /// behind one that is, could follow.
    fn find(&mut self, id: SequenceId) -> usize {
        let entry = self.sequences.get_mut(&id).expect("a waiting sequence is there");
        let findable = entry.findable();
        for name in &entry.keys[..findable] {
            let Some(block) = self.blocks.find(name) else { break };
            self.blocks.share(block);
            entry.blocks.push(block);
        }
        entry.named = entry.blocks.len();
        entry.computed = entry.named * ATTENTION_TILE;
        let kept =
            |name: &&Key| self.blocks.find(name).is_some() || self.blocks.slots.contains(name);
        entry.keys[entry.named..findable].iter().take_while(kept).count()
    }

    /// Takes over up to `further` blocks that follow those found, as long as there is room.
    fn take_over(&mut self, id: SequenceId, further: usize, preempt: bool, plan: &mut Plan) {
        for _ in 0..further {
            let Some(block) = self.next_kept(id, preempt, plan) else { return };
            let entry = self.entry_mut(id);
            entry.blocks.push(block);
            entry.named += 1;
            entry.computed += ATTENTION_TILE;
        }
    }

    /// The block that follows those it holds, from the cache or the spill file.
    fn next_kept(&mut self, id: SequenceId, preempt: bool, plan: &mut Plan) -> Option<u32> {
        let entry = &self.sequences[&id];
        let name = entry.keys[entry.named];
        if let Some(block) = self.blocks.find(&name) {
            self.blocks.share(block);
            return Some(block);
        }
        while self.blocks.num_free() == 0 {
            if !(preempt && self.preempt_younger(id)) {
                return None;
            }
        }
        self.blocks.reload(&name, &mut plan.moves)
    }

    /// How many of its tokens the budget lets it compute now. A token that was just drawn is always let in.
    fn affordable(&self, id: SequenceId, budget: usize) -> usize {
        let Entry { len, computed, .. } = &self.sequences[&id];
        match len - computed {
            1 => 1,
            pending => pending.min(budget),
        }
    }

    fn push_segment(&mut self, id: SequenceId, tokens: usize, budget: &mut usize, plan: &mut Plan) {
        let Entry { len, computed, keys, .. } = &self.sequences[&id];
        let (position, end) = (*computed, computed + tokens);
        if len - position > 1 {
            *budget -= tokens;
        }
        let filled = position / ATTENTION_TILE..(end / ATTENTION_TILE).min(keys.len());
        self.coming.extend_from_slice(keys.get(filled).unwrap_or_default());
        let last = end == *len;
        plan.segments.push(Segment { sequence: id, position, tokens, tried: 0, last });
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
            let (from, to) = (entry.blocks[place], take(&mut self.blocks, plan));
            plan.moves.push(Move::Copy { from, to });
            entry.blocks[place] = to;
            self.blocks.release(from);
        }
        while entry.blocks.len() < end.div_ceil(ATTENTION_TILE) {
            entry.blocks.push(take(&mut self.blocks, plan));
        }
        true
    }

    /// Takes the blocks of the youngest holder younger than `id`.
    fn preempt_younger(&mut self, id: SequenceId) -> bool {
        let holds = |other: &&SequenceId| !self.sequences[*other].blocks.is_empty();
        let waiting = self.waiting.iter().rev().find(holds).copied();
        let running = self.running.iter().rev().find(holds).copied();
        let Some(victim) = waiting.max(running).filter(|victim| *victim > id) else { return false };
        self.want(victim);
        self.give_back(victim);
        self.preemptions += 1;
        self.running.remove(&victim);
        self.waiting.insert(victim);
        true
    }

    /// Lets the content of its named blocks be spilled when they are taken.
    fn want(&mut self, id: SequenceId) {
        self.unwant(id);
        let entry = self.sequences.get_mut(&id).expect("a preempted sequence is there");
        if self.blocks.slots.is_open() {
            entry.wanted = entry.named;
            for &block in &entry.blocks[..entry.named] {
                self.blocks.want(block);
            }
        }
    }

    fn unwant(&mut self, id: SequenceId) {
        let Some(entry) = self.sequences.get_mut(&id) else { return };
        for name in &entry.keys[..std::mem::take(&mut entry.wanted)] {
            self.blocks.unwant(name);
        }
    }

    fn give_back(&mut self, id: SequenceId) {
        let Some(entry) = self.sequences.get_mut(&id) else { return };
        entry.computed = 0;
        entry.named = 0;
        // The last first: a beginning is of more use than what follows, and is kept longer.
        for block in entry.blocks.drain(..).rev() {
            self.blocks.release(block);
        }
    }

    fn entry_mut(&mut self, id: SequenceId) -> &mut Entry {
        self.sequences.get_mut(&id).expect("a scheduled sequence is there")
    }
}

impl Entry {
    /// How many of its first blocks may be found instead of computed: one token at least is computed.
    fn findable(&self) -> usize {
        (self.reusable.min(self.len - 1) / ATTENTION_TILE).min(self.keys.len())
    }
}

fn take(blocks: &mut Blocks, plan: &mut Plan) -> u32 {
    blocks.take(&mut plan.moves).expect("the free blocks were counted")
}
