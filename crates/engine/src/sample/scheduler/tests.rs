use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A job of the test: its prompt, how many tokens each sample draws, when it arrives, when it is cancelled.
#[derive(Clone, Debug)]
struct TestJob {
    prompt: usize,
    tokens: Vec<usize>,
    arrives: usize,
    cancelled: Option<usize>,
}

fn job() -> impl Strategy<Value = TestJob> {
    let tokens = prop::collection::vec(1usize..70, 1..4);
    let cancelled = prop::option::weighted(0.1, 0usize..60);
    (1usize..100, tokens, 0usize..20, cancelled).prop_map(|(prompt, tokens, arrives, cancelled)| {
        TestJob { prompt, tokens, arrives, cancelled }
    })
}

/// What the test knows of a sequence.
#[derive(Debug)]
struct Known {
    len: usize,
    computed: usize,
    end: usize,
}

/// Every block has as many holders as sequences list it, and the rest are free.
fn check_blocks(scheduler: &Scheduler) {
    let mut holders: BTreeMap<u32, usize> = BTreeMap::new();
    for entry in scheduler.sequences.values() {
        for &block in &entry.blocks {
            *holders.entry(block).or_default() += 1;
        }
        assert!(entry.computed.div_ceil(ATTENTION_TILE) <= entry.blocks.len());
    }
    assert_eq!(scheduler.blocks_used(), holders.len());
    let listed = scheduler.running.len() + scheduler.waiting.len();
    assert_eq!(listed, scheduler.sequences.len());
}

/// Drives the scheduler as the engine does until all is done.
fn drive(jobs: &[TestJob], limits: Limits, num_blocks: usize) {
    let mut scheduler = Scheduler::new(limits, num_blocks);
    let mut known: BTreeMap<SequenceId, Known> = BTreeMap::new();
    let mut plan = Plan::default();
    let steps_max = 40_000;
    for step in 0..steps_max {
        for (number, job) in (0u64..).zip(jobs) {
            let first = SequenceId { job: number, index: 0 };
            if job.arrives == step {
                scheduler.add(first, job.prompt);
                let end = job.prompt + job.tokens[0];
                known.insert(first, Known { len: job.prompt, computed: 0, end });
            }
            if job.cancelled == Some(step) {
                for index in 0..job.tokens.len() {
                    let id = SequenceId { job: number, index };
                    scheduler.remove(id);
                    known.remove(&id);
                }
            }
        }
        scheduler.schedule(&mut plan);
        check_blocks(&scheduler);
        check_plan(&scheduler, &plan, limits);
        if plan.segments.is_empty() {
            assert!(known.is_empty(), "work is left and nothing runs: {known:?}");
            if step > 20 {
                assert_eq!(scheduler.blocks_used(), 0);
                return;
            }
        }
        for segment in std::mem::take(&mut plan.segments) {
            settle(jobs, &mut scheduler, &mut known, segment);
            check_blocks(&scheduler);
        }
    }
    panic!("no end after {steps_max} steps");
}

fn check_plan(scheduler: &Scheduler, plan: &Plan, limits: Limits) {
    let prefill: usize =
        plan.segments.iter().map(|segment| segment.tokens).filter(|tokens| *tokens > 1).sum();
    assert!(prefill <= limits.prefill_tokens_max);
    assert!(scheduler.num_running() <= limits.max_num_seqs);
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

fn settle(
    jobs: &[TestJob],
    scheduler: &mut Scheduler,
    known: &mut BTreeMap<SequenceId, Known>,
    segment: Segment,
) {
    let id = segment.sequence;
    let job = &jobs[usize::try_from(id.job).unwrap()];
    scheduler.advance(id, segment.tokens);
    let own = known.get_mut(&id).unwrap();
    own.computed = segment.position + segment.tokens;
    assert!(own.computed <= own.len);
    assert_eq!(segment.last, own.computed == own.len);
    if !segment.last {
        return;
    }
    let mut drawn = vec![id];
    if own.len == job.prompt {
        for index in 1..job.tokens.len() {
            let fork = SequenceId { index, ..id };
            scheduler.fork(id, fork);
            let end = job.prompt + job.tokens[index];
            known.insert(fork, Known { len: job.prompt, computed: job.prompt, end });
            drawn.push(fork);
        }
    }
    for id in drawn {
        let own = known.get_mut(&id).unwrap();
        own.len += 1;
        if own.len == own.end {
            known.remove(&id);
            scheduler.remove(id);
        } else {
            scheduler.append(id);
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
    ) {
        // The longest sequence alone must fit: 99 + 69 - 1 tokens.
        let num_blocks = 168usize.div_ceil(ATTENTION_TILE) + more_blocks;
        drive(&jobs, Limits { prefill_tokens_max, max_num_seqs }, num_blocks);
    }
}

#[test]
fn samples_share_the_blocks_of_their_prompt() {
    let limits = Limits { prefill_tokens_max: 512, max_num_seqs: 8 };
    let mut scheduler = Scheduler::new(limits, 16);
    let mut plan = Plan::default();
    let first = SequenceId { job: 0, index: 0 };
    scheduler.add(first, 2 * ATTENTION_TILE + 1);
    scheduler.schedule(&mut plan);
    assert_eq!(scheduler.blocks_used(), 3);
    scheduler.advance(first, 2 * ATTENTION_TILE + 1);
    for index in 1..4 {
        scheduler.fork(first, SequenceId { job: 0, index });
    }
    assert_eq!(scheduler.blocks_used(), 3);
    for index in 0..4 {
        scheduler.append(SequenceId { job: 0, index });
    }
    scheduler.schedule(&mut plan);
    // Each but the last writes into a copy of the prompt's third block.
    assert_eq!(plan.copies.len(), 3);
    assert_eq!(scheduler.blocks_used(), 6);
}
