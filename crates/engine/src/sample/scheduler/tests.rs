use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A job of the test: its prompt, how many tokens each sample draws, when it arrives, when it is cancelled.
#[derive(Clone, Debug)]
struct TestJob {
    prompt: usize,
    /// Jobs of one family have the same tokens, as far as they go; those of another tenant have other names.
    family: u32,
    /// How many tokens at the end of the prompt are to be scored.
    scored: usize,
    tokens: Vec<usize>,
    arrives: usize,
    cancelled: Option<usize>,
}

fn job() -> impl Strategy<Value = TestJob> {
    let tokens = prop::collection::vec(1usize..70, 1..4);
    let cancelled = prop::option::weighted(0.1, 0usize..60);
    let scored = prop_oneof![4 => Just(0usize), 1 => 0usize..100];
    (1usize..100, 0u32..3, scored, tokens, 0usize..20, cancelled).prop_map(
        |(prompt, family, scored, tokens, arrives, cancelled)| {
            let scored = scored.min(prompt - 1);
            TestJob { prompt, family, scored, tokens, arrives, cancelled }
        },
    )
}

impl TestJob {
    fn root(&self) -> Key {
        [u8::try_from(self.family).unwrap(); 32]
    }

    /// The token at a position of a sample. Samples begin to differ where they are drawn; sample 0 goes on as
    /// the prompts of its family do.
    fn token(&self, index: usize, position: usize) -> u32 {
        let own = if position < self.prompt { 0 } else { u32::try_from(index).unwrap() };
        own << 16 | u32::try_from(position).unwrap()
    }

    fn tokens(&self, index: usize, positions: std::ops::Range<usize>) -> Vec<u32> {
        positions.map(|position| self.token(index, position)).collect()
    }

    fn arrival(&self) -> Arrival {
        let (len, root) = (self.prompt, self.root());
        let keys = prefix::keys(&root, &self.tokens(0, 0..len));
        Arrival { len, keys, root, reusable: len - 1 - self.scored }
    }

    /// What stands in a cache at each position: a hash of the family and of all tokens up to it.
    fn content(&self, index: usize) -> Vec<u64> {
        let mut hash = u64::from(self.family);
        let next = |token| {
            hash = (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            hash
        };
        self.tokens(index, 0..self.prompt + self.tokens[index]).into_iter().map(next).collect()
    }
}

/// What the test knows of a sequence.
#[derive(Debug)]
struct Known {
    len: usize,
    /// By position; as long as the sequence will be.
    content: Vec<u64>,
}

/// A cache and a spill file whose every token says what it was computed from.
#[derive(Debug)]
struct Device {
    blocks: Vec<[u64; ATTENTION_TILE]>,
    slots: Vec<Option<[u64; ATTENTION_TILE]>>,
    reloads: usize,
    /// Every so many reloads fail; 0: none.
    faulty: usize,
}

impl Device {
    /// Gives the blocks that could not be reloaded.
    fn run(&mut self, moves: &[Move]) -> Vec<u32> {
        let mut lost = Vec::new();
        for &each in moves {
            match each {
                Move::Copy { from, to } => self.blocks[to as usize] = self.blocks[from as usize],
                Move::Spill { block, slot } => {
                    assert!(!lost.contains(&block), "what was just lost is not spilled");
                    self.slots[slot as usize] = Some(self.blocks[block as usize]);
                }
                Move::Reload { slot, block } => {
                    let content = self.slots[slot as usize].take().expect("it was spilled");
                    self.reloads += 1;
                    if self.faulty > 0 && self.reloads.is_multiple_of(self.faulty) {
                        self.blocks[block as usize] = [0; ATTENTION_TILE];
                        lost.push(block);
                    } else {
                        self.blocks[block as usize] = content;
                    }
                }
            }
        }
        lost
    }

    /// Computes a segment: everything before it must stand in its blocks.
    fn compute(&mut self, content: &[u64], segment: &Segment, blocks: &[u32]) {
        let Segment { sequence, position, tokens, .. } = *segment;
        for place in 0..position {
            let block = &self.blocks[blocks[place / ATTENTION_TILE] as usize];
            assert_eq!(block[place % ATTENTION_TILE], content[place], "{sequence:?} at {place}");
        }
        for place in position..position + tokens {
            let block = &mut self.blocks[blocks[place / ATTENTION_TILE] as usize];
            block[place % ATTENTION_TILE] = content[place];
        }
    }
}

/// A scheduler with all that an engine has around it.
struct Driver<'a> {
    jobs: &'a [TestJob],
    limits: Limits,
    scheduler: Scheduler,
    device: Device,
    known: BTreeMap<SequenceId, Known>,
}

impl<'a> Driver<'a> {
    fn new(
        jobs: &'a [TestJob],
        limits: Limits,
        (blocks, slots): (usize, usize),
        faulty: usize,
    ) -> Self {
        let device = Device {
            blocks: vec![[0; ATTENTION_TILE]; blocks],
            slots: vec![None; slots],
            reloads: 0,
            faulty,
        };
        let scheduler = Scheduler::new(limits, blocks, slots);
        Self { jobs, limits, scheduler, device, known: BTreeMap::new() }
    }

    fn job(&self, id: SequenceId) -> &'a TestJob {
        &self.jobs[usize::try_from(id.job).unwrap()]
    }

    /// Works as the engine does until all is done.
    fn drive(&mut self) {
        let mut plan = Plan::default();
        let steps_max = 40_000;
        for step in 0..steps_max {
            self.come_and_go(step);
            self.scheduler.schedule(&mut plan);
            self.check_blocks();
            self.check_plan(&plan);
            let lost = self.device.run(&plan.moves);
            if !lost.is_empty() {
                self.scheduler.lose(&lost, &mut plan);
                self.check_blocks();
            } else if plan.segments.is_empty() {
                assert!(self.known.is_empty(), "work is left and nothing runs: {:?}", self.known);
                if step > 20 {
                    break;
                }
            }
            for segment in std::mem::take(&mut plan.segments) {
                self.settle(segment);
                self.check_blocks();
            }
            assert!(step + 1 < steps_max, "no end");
        }
        assert_eq!(self.scheduler.blocks_used(), 0);
        assert_eq!(self.scheduler.blocks.slots.num_used(), 0, "nobody wants anything back");
        for family in 0..3 {
            self.scheduler.blocks.forget(&[family; 32]);
        }
        assert_eq!(self.scheduler.blocks.num_kept(), 0);
        assert_eq!(self.scheduler.blocks.num_free(), self.scheduler.blocks.count());
    }

    fn come_and_go(&mut self, step: usize) {
        for (number, job) in (0u64..).zip(self.jobs) {
            let first = SequenceId { job: number, index: 0 };
            if job.arrives == step {
                self.scheduler.add(first, job.arrival());
                let content = job.content(0);
                self.known.insert(first, Known { len: job.prompt, content });
            }
            if job.cancelled == Some(step) {
                for index in 0..job.tokens.len() {
                    let id = SequenceId { job: number, index };
                    self.scheduler.remove(id);
                    self.known.remove(&id);
                }
            }
        }
    }

    /// Every block has as many holders as sequences list it, and the rest are free or can be found.
    fn check_blocks(&self) {
        let scheduler = &self.scheduler;
        let mut holders: BTreeMap<u32, u32> = BTreeMap::new();
        for entry in scheduler.sequences.values() {
            for &block in &entry.blocks {
                *holders.entry(block).or_default() += 1;
            }
            assert!(entry.computed.div_ceil(ATTENTION_TILE) <= entry.blocks.len());
            assert!(entry.named <= entry.computed / ATTENTION_TILE);
        }
        scheduler.blocks.check(&holders);
        assert_eq!(scheduler.blocks_used(), holders.len());
        let listed = scheduler.running.len() + scheduler.waiting.len();
        assert_eq!(listed, scheduler.sequences.len());
    }

    fn check_plan(&self, plan: &Plan) {
        let scheduler = &self.scheduler;
        let prefill: usize =
            plan.segments.iter().map(|segment| segment.tokens).filter(|tokens| *tokens > 1).sum();
        assert!(prefill <= self.limits.prefill_tokens_max);
        assert!(scheduler.num_running() <= self.limits.max_num_seqs);
        assert!(plan.segments.len() <= scheduler.num_running());
        let mut written: Vec<u32> = Vec::new();
        for segment in &plan.segments {
            let blocks = scheduler.blocks_of(segment.sequence);
            let places = segment.position / ATTENTION_TILE
                ..(segment.position + segment.tokens).div_ceil(ATTENTION_TILE);
            written.extend(&blocks[places]);
        }
        for &block in &written {
            assert!(!scheduler.blocks.is_shared(block), "a shared block is written");
        }
        written.sort_unstable();
        let count = written.len();
        written.dedup();
        assert_eq!(written.len(), count, "two sequences write one block");
    }

    fn settle(&mut self, segment: Segment) {
        let id = segment.sequence;
        let job = self.job(id);
        let content = &self.known[&id].content;
        self.device.compute(content, &segment, self.scheduler.blocks_of(id));
        self.scheduler.advance(id, segment.tokens);
        while let Some(block) = self.scheduler.nameless(id) {
            let first = block * ATTENTION_TILE;
            self.scheduler.name(id, &job.tokens(id.index, first..first + ATTENTION_TILE));
        }
        self.scheduler.publish(id);
        let len = self.known[&id].len;
        assert_eq!(segment.last, segment.position + segment.tokens == len);
        if !segment.last {
            return;
        }
        let mut drawn = vec![id];
        if len == job.prompt {
            for index in 1..job.tokens.len() {
                let fork = SequenceId { index, ..id };
                self.scheduler.fork(id, fork);
                self.known.insert(fork, Known { len, content: job.content(index) });
                drawn.push(fork);
            }
        }
        for id in drawn {
            let own = self.known.get_mut(&id).unwrap();
            own.len += 1;
            if own.len == own.content.len() {
                self.known.remove(&id);
                self.scheduler.remove(id);
            } else {
                self.scheduler.append(id);
            }
        }
    }
}

proptest! {
    #[test]
    fn everything_finishes_and_no_block_leaks(
        jobs in prop::collection::vec(job(), 1..8),
        prefill_tokens_max in 1usize..80,
        max_num_seqs in 1usize..6,
        more_blocks in 0usize..8,
        slots in prop_oneof![Just(0usize), 1usize..16],
        faulty in 0usize..6,
    ) {
        // The longest sequence alone must fit: 99 + 69 - 1 tokens.
        let num_blocks = 168usize.div_ceil(ATTENTION_TILE) + more_blocks;
        let limits = Limits { prefill_tokens_max, max_num_seqs };
        Driver::new(&jobs, limits, (num_blocks, slots), faulty).drive();
    }
}

const ROOMY: Limits = Limits { prefill_tokens_max: 512, max_num_seqs: 64 };

fn plain(prompt: usize, tokens: usize, samples: usize, arrives: usize) -> TestJob {
    let tokens = vec![tokens; samples];
    TestJob { prompt, family: 0, scored: 0, tokens, arrives, cancelled: None }
}

#[test]
fn samples_share_the_blocks_of_their_prompt() {
    let mut scheduler = Scheduler::new(ROOMY, 64, 0);
    let mut plan = Plan::default();
    let first = SequenceId { job: 0, index: 0 };
    let prompt = 10 * ATTENTION_TILE + 1;
    scheduler.add(first, plain(prompt, 1, 1, 0).arrival());
    scheduler.schedule(&mut plan);
    assert_eq!(scheduler.blocks_used(), 11);
    scheduler.advance(first, prompt);
    for index in 1..16 {
        scheduler.fork(first, SequenceId { job: 0, index });
    }
    assert_eq!(scheduler.blocks_used(), 11);
    for index in 0..16 {
        scheduler.append(SequenceId { job: 0, index });
    }
    scheduler.schedule(&mut plan);
    // Each but the last writes into a copy of the prompt's last block.
    assert_eq!(plan.moves.len(), 15);
    assert_eq!(scheduler.blocks_used(), 10 + 16);
}

/// Plans one step, and gives where each segment begins and how long it is.
fn step(driver: &mut Driver<'_>, number: usize) -> Vec<(u64, usize, usize)> {
    let mut plan = Plan::default();
    driver.come_and_go(number);
    driver.scheduler.schedule(&mut plan);
    assert!(driver.device.run(&plan.moves).is_empty());
    let segments = std::mem::take(&mut plan.segments);
    segments
        .into_iter()
        .map(|segment| {
            driver.settle(segment);
            (segment.sequence.job, segment.position, segment.tokens)
        })
        .collect()
}

#[test]
fn a_prompt_that_arrives_many_times_is_computed_once() {
    let jobs = [plain(100, 2, 1, 0), plain(100, 2, 1, 0), plain(100, 2, 1, 0), plain(64, 2, 1, 0)];
    let mut driver = Driver::new(&jobs, ROOMY, (32, 0), 0);
    assert_eq!(step(&mut driver, 0), [(0, 0, 100)]);
    // One token at least is computed: the last of these prompts ends with a whole block.
    assert_eq!(step(&mut driver, 1), [(0, 100, 1), (1, 96, 4), (2, 96, 4), (3, 32, 32)]);
}

#[test]
fn rows_that_are_needed_are_computed() {
    let scored = |scored| TestJob { scored, ..plain(100, 2, 1, 1) };
    let jobs = [plain(100, 1, 1, 0), scored(99), scored(40), scored(3), scored(4)];
    let mut driver = Driver::new(&jobs, ROOMY, (32, 0), 0);
    step(&mut driver, 0);
    // The row before the first that is scored is needed.
    assert_eq!(step(&mut driver, 1), [(1, 0, 100), (2, 32, 68), (3, 96, 4), (4, 64, 36)]);
}

#[test]
fn other_tenants_and_weights_find_nothing() {
    let jobs = [plain(100, 1, 1, 0), TestJob { family: 1, ..plain(100, 1, 1, 1) }];
    let mut driver = Driver::new(&jobs, ROOMY, (32, 0), 0);
    step(&mut driver, 0);
    assert_eq!(step(&mut driver, 1), [(1, 0, 100)]);
}

#[test]
fn a_completion_is_found_by_the_next_turn() {
    let jobs = [plain(40, 40, 1, 0), plain(90, 1, 1, 60)];
    let mut driver = Driver::new(&jobs, ROOMY, (32, 0), 0);
    for number in 0..60 {
        step(&mut driver, number);
    }
    // Of 80 tokens, the last was never fed back; 64 fill whole blocks.
    assert_eq!(step(&mut driver, 60), [(1, 64, 26)]);
}

#[test]
fn what_was_used_last_is_kept_longest() {
    let other = |family, arrives| TestJob { family, ..plain(64, 1, 1, arrives) };
    // Six blocks hold three prompts of two. The first is used again before a fourth needs room.
    let jobs =
        [other(0, 0), other(1, 1), other(2, 2), other(0, 3), other(3, 4), other(0, 5), other(1, 6)];
    let mut driver = Driver::new(&jobs, ROOMY, (6, 0), 0);
    let segments: Vec<_> = (0..7).flat_map(|number| step(&mut driver, number)).collect();
    let positions: Vec<usize> = segments.iter().map(|(_, position, _)| *position).collect();
    assert_eq!(positions, [0, 0, 0, 32, 0, 32, 0]);
}

#[test]
fn a_preempted_sequence_gets_its_blocks_back_from_the_file() {
    let second = TestJob { family: 1, ..plain(64, 60, 1, 0) };
    let jobs = [plain(64, 60, 1, 0), second];
    // Of its two blocks, the other sequence needs one.
    for (slots, reloads) in [(0, 0), (8, 1)] {
        let mut driver = Driver::new(&jobs, ROOMY, (5, slots), 0);
        driver.drive();
        assert_eq!(driver.scheduler.preemptions, 1);
        assert_eq!(driver.device.reloads, reloads, "{slots} slots");
    }
}
