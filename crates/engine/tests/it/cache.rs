//! The cache of prefixes and the spill file: what they save, and that no bit shows them.

use std::{fs::File, io};

use tinsmith_engine::{
    Config, Parts, RunKey, SampleJob, SampleOutput, SamplerKey, SpillFile, Ticket, Work,
};

use crate::tiny::{
    BASE, CpuEngine, SplitMix64, base, bits, config, job, run_all, run_one, sample, sampled, spec,
    train_a_little,
};

const TILE: usize = 32;
fn draw(engine: &mut CpuEngine, sampler: SamplerKey, job: SampleJob) -> SampleOutput {
    sampled(run_one(engine, sample(sampler, job)))
}

/// How much of a prompt of 100 tokens a sampler finds.
fn hit(engine: &mut CpuEngine, sampler: SamplerKey) -> usize {
    draw(engine, sampler, job(&SplitMix64(5).tokens(100), 2)).prompt_cache_hit_tokens
}

#[test]
fn the_next_turn_finds_the_one_before_and_draws_the_same() {
    let mut engine = base(config());
    let mut random = SplitMix64(5);
    let mut prompt = random.tokens(70);
    let mut hits = 0;
    for turn in 0..4 {
        let request = SampleJob { num_samples: 2, ..job(&prompt, 30 + turn) };
        let output = draw(&mut engine, BASE, request.clone());
        let alone = draw(&mut base(config()), BASE, request);
        assert_eq!(bits(&output), bits(&alone), "turn {turn}");
        assert_eq!((output.prompt_cache_hit_tokens, alone.prompt_cache_hit_tokens), (hits, 0));
        prompt.extend(&output.sequences[1].tokens);
        // The last token was never fed back.
        hits = (prompt.len() - 1) / TILE * TILE;
        prompt.extend(random.tokens(20));
    }
    let stats = engine.stats();
    assert!(stats.kv_blocks_cached > 0 && stats.kv_blocks_used == 0, "{stats:?}");
    assert!(stats.prefix_hit_tokens >= 3 * 96, "{stats:?}");
}

#[test]
fn scored_rows_are_computed_and_have_the_same_bits() {
    let mut engine = base(config());
    let prompt = SplitMix64(5).tokens(100);
    let scored = SampleJob { prompt_logprobs: true, ..job(&prompt, 20) };
    let fresh = draw(&mut engine, BASE, scored.clone());
    let again = draw(&mut engine, BASE, scored);
    assert_eq!(bits(&fresh), bits(&again));
    assert_eq!(again.prompt_cache_hit_tokens, 0);
    let plain = draw(&mut engine, BASE, job(&prompt, 20));
    assert_eq!(plain.prompt_cache_hit_tokens, 96);
    assert_eq!(plain.sequences, again.sequences);
}

#[test]
fn tenants_and_weights_find_only_their_own() {
    let mut engine = base(config());
    let run = RunKey(0);
    engine.create_run(run, spec(4, 1)).unwrap();
    train_a_little(&mut engine, run);
    let files = engine.export_run(run, Parts::default(), "tiny").unwrap();
    let other = SamplerKey(1);
    engine.create_sampler(other, "b", None).unwrap();
    assert_eq!(hit(&mut engine, BASE), 0);
    assert_eq!(hit(&mut engine, other), 0, "another tenant");
    assert_eq!((hit(&mut engine, BASE), hit(&mut engine, other)), (96, 96));

    let [first, second, third, own] = [2, 3, 4, 5].map(SamplerKey);
    for (sampler, scope) in [(first, "a"), (second, "a"), (third, "b")] {
        engine.create_sampler(sampler, scope, Some(&files)).unwrap();
    }
    engine.snapshot_sampler(own, "a", run).unwrap();
    assert_eq!(hit(&mut engine, first), 0, "other weights");
    assert_eq!(hit(&mut engine, second), 96, "the same files");
    assert_eq!(hit(&mut engine, third), 0, "of another tenant");
    assert_eq!(hit(&mut engine, own), 0, "only in memory");

    let cached = engine.stats().kv_blocks_cached;
    engine.drop_sampler(first);
    assert_eq!(engine.stats().kv_blocks_cached, cached, "the second has the same");
    engine.drop_sampler(second);
    assert_eq!(engine.stats().kv_blocks_cached, cached - 3);
    assert_eq!(hit(&mut engine, third), 96);
    engine.create_sampler(first, "a", Some(&files)).unwrap();
    assert_eq!(hit(&mut engine, first), 0);
}

#[test]
fn a_sampler_follows_another_on_what_it_has_computed() {
    let mut engine = base(config());
    let run = RunKey(0);
    engine.create_run(run, spec(4, 1)).unwrap();
    let [old, new, joined, read] = [1, 2, 3, 4].map(SamplerKey);
    train_a_little(&mut engine, run);
    engine.snapshot_sampler(old, "a", run).unwrap();
    let one = engine.stats().samplers_bytes;
    let prompt = SplitMix64(7).tokens(20);
    let before = draw(&mut engine, old, job(&prompt, 20));
    assert_eq!(hit(&mut engine, old), 0);

    train_a_little(&mut engine, run);
    engine.snapshot_sampler(new, "a", run).unwrap();
    let after = draw(&mut engine, new, job(&prompt, 20));
    assert_ne!(bits(&after), bits(&before));
    assert_eq!(engine.stats().samplers_bytes, 2 * one);
    // In the middle of a sequence.
    engine.submit(Ticket(1), sample(old, job(&SplitMix64(8).tokens(40), 60))).unwrap();
    for _ in 0..20 {
        assert!(engine.step().is_empty());
    }
    engine.follow_sampler(old, new).unwrap();
    assert_eq!(engine.stats().samplers_bytes, one, "the old adapter has gone");
    let mut done = Vec::new();
    while done.is_empty() {
        done = engine.step();
    }
    assert_eq!(sampled(done.pop().unwrap().1).sequences[0].tokens.len(), 60);
    assert_eq!(bits(&draw(&mut engine, old, job(&prompt, 20))), bits(&after));
    assert_eq!((hit(&mut engine, old), hit(&mut engine, new)), (96, 0), "each has its own cache");

    engine.join_sampler(joined, "a", old).unwrap();
    let files = engine.export_run(run, Parts::default(), "tiny").unwrap();
    engine.create_own_sampler(read, "a", &files).unwrap();
    for sampler in [joined, read] {
        assert_eq!(bits(&draw(&mut engine, sampler, job(&prompt, 20))), bits(&after));
        assert_eq!((hit(&mut engine, sampler), hit(&mut engine, sampler)), (0, 96));
    }
    // The weights stay as long as one of them does.
    for sampler in [old, new] {
        engine.drop_sampler(sampler);
    }
    assert_eq!(bits(&draw(&mut engine, joined, job(&prompt, 20))), bits(&after));
    engine.drop_sampler(joined);
    engine.drop_sampler(read);
    assert_eq!(engine.stats().samplers_bytes, 0);
    assert!(engine.follow_sampler(joined, read).is_err());
}

#[test]
fn samples_of_a_long_prompt_share_it_and_copy_its_end() {
    let mut engine = base(config());
    let prompt = SplitMix64(5).tokens(10 * TILE + 7);
    let request = SampleJob { num_samples: 16, ..job(&prompt, 20) };
    engine.submit(Ticket(0), sample(BASE, request)).unwrap();
    let mut used = Vec::new();
    let mut done = Vec::new();
    while done.is_empty() {
        done = engine.step();
        used.push(engine.stats().kv_blocks_used);
    }
    assert_eq!(used.iter().max(), Some(&(10 + 16)), "{used:?}");
    let output = sampled(done.pop().unwrap().1);
    for sequence in &output.sequences {
        // Each is what it would be alone: scored as one prompt, by another engine.
        let mut whole = prompt.clone();
        whole.extend(&sequence.tokens);
        let scored = SampleJob { prompt_logprobs: true, ..job(&whole, 0) };
        let scored = draw(&mut base(config()), BASE, scored).prompt_logprobs.unwrap();
        assert_eq!(scored[prompt.len()..], sequence.logprobs);
    }
}

#[test]
fn the_cache_costs_no_capacity() {
    let mut engine = base(Config { kv_blocks: 8, ..config() });
    let mut random = SplitMix64(5);
    for _ in 0..6 {
        let length = 100 + random.below(100);
        let output = draw(&mut engine, BASE, job(&random.tokens(length), 10));
        assert_eq!(output.sequences[0].tokens.len(), 10);
    }
    let stats = engine.stats();
    assert_eq!(stats.preemptions, 0);
    assert!(stats.prefix_evictions > 0 && stats.kv_blocks_cached <= 8, "{stats:?}");
}

#[test]
fn a_long_prompt_does_not_hold_up_those_who_decode() {
    let mut random = SplitMix64(5);
    let long = || SampleJob { seed: Some(9), ..job(&SplitMix64(6).tokens(400), 20) };
    let short: Vec<SampleJob> = (0..3).map(|_| job(&random.tokens(8), 100)).collect();
    let alone: Vec<_> = short
        .iter()
        .cloned()
        .chain([long()])
        .map(|job| bits(&draw(&mut base(config()), BASE, job)))
        .collect();

    let mut engine = base(Config { prefill_tokens_max: 24, ..config() });
    for (ticket, job) in (0..).zip(short) {
        engine.submit(Ticket(ticket), sample(BASE, job)).unwrap();
    }
    engine.step();
    engine.submit(Ticket(3), sample(BASE, long())).unwrap();
    let mut results = std::collections::BTreeMap::new();
    let mut chunks = 0;
    while !engine.is_idle() {
        let before = engine.stats();
        results.extend(engine.step());
        let after = engine.stats();
        if after.prefill_tokens > before.prefill_tokens {
            chunks += 1;
            assert!(after.prefill_tokens - before.prefill_tokens <= 24);
            assert!(after.decode_tokens - before.decode_tokens >= 3, "everyone draws in each step");
        }
    }
    assert_eq!(chunks, 400usize.div_ceil(24));
    let together: Vec<_> = results.into_values().map(|result| bits(&sampled(result))).collect();
    assert_eq!(together, alone);
}

/// Jobs that together need far more than a few blocks.
fn crowd() -> Vec<Work> {
    let mut random = SplitMix64(31);
    let shared = random.tokens(70);
    let one = |number: usize| {
        let mut prompt = if number.is_multiple_of(2) { shared.clone() } else { Vec::new() };
        let length = 40 + random.below(60);
        prompt.extend(random.tokens(length));
        let mut job = job(&prompt, 60 + random.below(60));
        job.num_samples = 1 + number % 3;
        job.seed = Some(random.next());
        job.prompt_logprobs = number % 4 == 3;
        sample(BASE, job)
    };
    (0..12).map(one).collect()
}

fn crowd_bits(engine: &mut CpuEngine) -> Vec<Vec<Vec<u32>>> {
    run_all(engine, crowd()).into_iter().map(|result| bits(&sampled(result))).collect()
}

/// What may be wrong with a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    None,
    Full,
    Unreadable,
    /// One bit of what is read is another.
    Bit,
    /// All but the first writes fail in turn.
    Flaky,
}

#[derive(Debug)]
struct Disk {
    file: File,
    fault: Fault,
    writes: usize,
}

impl SpillFile for Disk {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.writes += 1;
        let fails = match self.fault {
            Fault::Full => true,
            Fault::Flaky => self.writes.is_multiple_of(3),
            Fault::None | Fault::Unreadable | Fault::Bit => false,
        };
        if fails {
            return Err(io::ErrorKind::StorageFull.into());
        }
        SpillFile::write_at(&mut self.file, bytes, offset)
    }

    fn read_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        if self.fault == Fault::Unreadable {
            return Err(io::Error::other("bad sector"));
        }
        SpillFile::read_at(&mut self.file, bytes, offset)?;
        if self.fault == Fault::Bit {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Ok(())
    }
}

/// An engine with room for little more than one sequence, and a disk.
fn crowded(kv_spill_bytes: usize, fault: Fault) -> CpuEngine {
    let mut engine = base(Config { kv_blocks: 12, kv_spill_bytes, ..config() });
    let file = tempfile::tempfile().unwrap();
    engine.spill_to(Box::new(Disk { file, fault, writes: 0 }));
    engine
}

#[test]
fn spilled_sequences_go_on_bit_for_bit() {
    let undisturbed = crowd_bits(&mut base(config()));
    let mut recomputing = crowded(0, Fault::None);
    assert_eq!(crowd_bits(&mut recomputing), undisturbed);
    let stats = recomputing.stats();
    assert!(stats.preemptions > 0 && stats.kv_blocks_spilled == 0, "{stats:?}");

    let mut spilling = crowded(16 << 20, Fault::None);
    assert_eq!(crowd_bits(&mut spilling), undisturbed);
    let spilled = spilling.stats();
    assert!(spilled.kv_blocks_spilled >= spilled.kv_blocks_reloaded, "{spilled:?}");
    assert!(spilled.kv_blocks_reloaded > 0 && spilled.kv_spill_faults == 0, "{spilled:?}");
    assert_eq!(spilled.kv_spill_blocks, 0, "nothing is left behind");
    assert!(spilled.prefill_tokens < stats.prefill_tokens, "{spilled:?} against {stats:?}");
}

#[test]
fn a_small_or_faulty_spill_file_costs_time_only() {
    let undisturbed = crowd_bits(&mut base(config()));
    // Three blocks of the file.
    let block_bytes = 2 * 2 * 2 * TILE * 4 * 16;
    let mut small = crowded(3 * block_bytes, Fault::None);
    assert_eq!(crowd_bits(&mut small), undisturbed);
    for fault in [Fault::Full, Fault::Unreadable, Fault::Bit, Fault::Flaky] {
        let mut engine = crowded(16 << 20, fault);
        assert_eq!(crowd_bits(&mut engine), undisturbed, "{fault:?}");
        let stats = engine.stats();
        assert!(stats.kv_spill_faults > 0, "{fault:?}: {stats:?}");
        assert_eq!(stats.kv_spill_blocks, 0, "{fault:?}");
    }
}

#[test]
fn cancelled_samples_leave_nothing_in_the_file() {
    let mut engine = crowded(16 << 20, Fault::None);
    for (ticket, work) in (0..).zip(crowd()) {
        engine.submit(Ticket(ticket), work).unwrap();
    }
    while engine.stats().kv_spill_blocks == 0 {
        engine.step();
    }
    for ticket in 0..12 {
        engine.cancel(Ticket(ticket));
    }
    let stats = engine.stats();
    assert_eq!((stats.kv_blocks_used, stats.kv_spill_blocks), (0, 0));
    assert!(engine.is_idle());
}

#[test]
fn spilling_is_off_where_computing_is_less_work() {
    let config = Config {
        kv_blocks: 12,
        kv_spill_bytes: 16 << 20,
        kv_spill_flops_per_byte_min: 1000,
        ..config()
    };
    let mut engine = base(config);
    engine.spill_to(Box::new(tempfile::tempfile().unwrap()));
    crowd_bits(&mut engine);
    assert_eq!(engine.stats().kv_blocks_spilled, 0);
}
