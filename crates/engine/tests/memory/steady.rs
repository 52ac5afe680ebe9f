//! Steps that follow others of their kind find all they need in place.

use tinsmith_backend_cpu::Kernels;
use tinsmith_engine::{Config, RunKey, SamplerKey, Ticket};

use crate::{
    alone,
    counting::count,
    engine,
    tiny::{
        self, CpuEngine, SplitMix64, config, datum, forward_backward, job, sample, sampled, spec,
        train_a_little,
    },
};

/// Allocations of one step that gives nothing yet.
fn quiet_step(engine: &mut CpuEngine) -> usize {
    let before = count();
    let done = engine.step();
    let counted = count() - before;
    assert!(done.is_empty(), "the work goes on");
    counted
}

/// An engine with a sampler that has an adapter of its own.
fn sampling_engine(kernels: Kernels) -> CpuEngine {
    // Every step is to give a token of each.
    let limits = Config { kv_blocks: 256, speculative_rows_max: 0, ..config() };
    let mut engine = engine(1, kernels, limits);
    let run = RunKey(0);
    engine.create_run(run, spec(8, 1)).unwrap();
    train_a_little(&mut engine, run);
    engine.snapshot_sampler(SamplerKey(0), "tenant", run).unwrap();
    engine
}

/// Allocations of each step while `sequences` are decoded, over two borders of blocks, after the first tokens.
fn decoding(engine: &mut CpuEngine, sequences: u64) -> Vec<usize> {
    const WARM: usize = 40;
    const COUNTED: usize = 80;
    let mut random = SplitMix64(sequences);
    for ticket in 0..sequences {
        let mut job = job(&random.tokens(20), WARM + COUNTED + 1);
        job.seed = Some(ticket);
        // All ways to draw.
        (job.top_k, job.top_p) =
            ((ticket % 2 == 1).then_some(12), if ticket % 3 == 2 { 0.9 } else { 1.0 });
        engine.submit(Ticket(ticket), sample(SamplerKey(0), job)).unwrap();
    }
    for _ in 0..WARM {
        assert!(engine.step().is_empty(), "the work goes on");
    }
    let counts = (0..COUNTED).map(|_| quiet_step(engine)).collect();
    let done = engine.step();
    assert_eq!(done.len(), usize::try_from(sequences).unwrap(), "all end together");
    for (_, result) in done {
        assert_eq!(sampled(result).sequences[0].tokens.len(), WARM + COUNTED + 1);
    }
    assert!(engine.is_idle());
    counts
}

#[test]
fn decoding_allocates_nothing() {
    let _alone = alone();
    for kernels in tiny::kernel_sets() {
        let mut engine = sampling_engine(kernels);
        // The turns of so many positions are made once.
        decoding(&mut engine, 1);
        for sequences in [1, 8] {
            let counts = decoding(&mut engine, sequences);
            assert!(counts.iter().all(|&count| count == 0), "{kernels:?}, {sequences}: {counts:?}");
        }
    }
}

/// Allocations of a micro-batch of one datum, those of its results among them.
fn training(engine: &mut CpuEngine, tokens: usize) -> usize {
    let datum = datum(&SplitMix64(1).tokens(tokens + 1));
    engine.submit(Ticket(0), forward_backward(RunKey(0), vec![datum])).unwrap();
    let before = count();
    let done = engine.step();
    let counted = count() - before;
    assert_eq!(done.len(), 1, "one micro-batch");
    assert!(engine.is_idle());
    counted
}

#[test]
fn training_allocates_as_often_for_many_tokens_as_for_few() {
    let _alone = alone();
    for kernels in tiny::kernel_sets() {
        let limits = Config { train_tokens_max: 1024, kv_blocks: 16, ..config() };
        let mut engine = engine(1, kernels, limits);
        engine.create_run(RunKey(0), spec(8, 1)).unwrap();
        training(&mut engine, 512);
        // The first to find a gradient that it may have to bring back.
        training(&mut engine, 512);
        let counts = [64, 512, 64, 512].map(|tokens| training(&mut engine, tokens));
        println!("{kernels:?}: {counts:?}");
        assert!(counts.iter().all(|&count| count == counts[0]), "{kernels:?}: {counts:?}");
    }
}
