//! What the engine takes up, counted by the allocator, against what it planned.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod counting;
mod steady;
#[path = "../it/tiny.rs"]
#[expect(dead_code, reason = "these tests need a part of it")]
mod tiny;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tinsmith_backend::StepKind;
use tinsmith_backend_cpu::{Config as CpuConfig, CpuBackend, Kernels};
use tinsmith_engine::{Config, Decoder, Engine, ModelDir, Plan, RunKey, Ticket};
use tinsmith_model::memory::{StepShape, pairs_bytes, step_bytes};

use counting::{live, peak};
use tiny::{CpuEngine, SplitMix64, config, datum, forward, forward_backward, spec};

/// The allocator counts what all tests of the process do: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One micro-batch: for each run, its rank and the tokens of its datums.
#[derive(Clone, Debug)]
struct Step {
    runs: Vec<(usize, Vec<usize>)>,
    kind: StepKind,
    recompute: bool,
    threads: usize,
    kernels: Kernels,
}

impl Step {
    fn shape(&self) -> StepShape {
        let lengths = || self.runs.iter().flat_map(|(_, lengths)| lengths);
        StepShape {
            tokens: lengths().sum(),
            sequences: lengths().count(),
            longest: *lengths().max().unwrap(),
            rank: self.runs.iter().map(|(rank, _)| *rank).max().unwrap(),
            kind: self.kind,
            recompute: self.recompute,
        }
    }
}

fn backend(threads: usize, kernels: Kernels) -> CpuBackend {
    CpuBackend::new(CpuConfig { threads, kernels }).unwrap()
}

fn engine(threads: usize, kernels: Kernels, config: Config) -> CpuEngine {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    let model = ModelDir::open(dir.path()).unwrap();
    let mut backend = backend(threads, kernels);
    let decoder = Decoder::load(&mut backend, &model).unwrap();
    Engine::new(backend, decoder, Vec::new(), None, config).unwrap()
}

/// Planned and counted bytes of one micro-batch, made by a thread that has made none before.
fn measure(step: &Step) -> (usize, usize) {
    let step = step.clone();
    let counted = move || {
        let limits = Config { train_tokens_max: 4096, kv_blocks: 16, ..config() };
        let probe = engine(step.threads, step.kernels, limits);
        let backend = backend(step.threads, step.kernels);
        let planned = step_bytes(&backend, probe.decoder_config(), &step.shape());
        drop(probe);
        // A datum whose layers are computed again fits just so.
        let most = if step.recompute { planned } else { limits.activation_bytes_max };
        let before = live();
        let mut engine =
            engine(step.threads, step.kernels, Config { activation_bytes_max: most, ..limits });
        let Plan { embeddings, layers, cache, .. } = engine.plan();
        let mut fixed = embeddings + layers + cache;
        for (key, (rank, _)) in (0..).zip(&step.runs) {
            engine.create_run(RunKey(key), spec(*rank, key)).unwrap();
            // A gradient that is zero needs no copy.
            let copy = pairs_bytes(&backend, engine.decoder_config(), &spec(*rank, key));
            fixed += engine.run_bytes(&spec(*rank, key)) - copy;
        }
        // Weights for the way back come with the first step that goes there.
        let goes_back = step.kind == StepKind::ForwardBackward;
        let later = if goes_back { fixed.saturating_sub(live() - before) } else { 0 };
        let mut random = SplitMix64(1);
        for (key, (_, lengths)) in (0..).zip(&step.runs) {
            let datums: Vec<_> =
                lengths.iter().map(|length| datum(&random.tokens(length + 1))).collect();
            let work = if goes_back { forward_backward } else { forward };
            engine.submit(Ticket(key), work(RunKey(key), datums)).unwrap();
        }
        let base = live();
        let (steps, most) = peak(|| {
            while !engine.is_idle() {
                for (_, result) in engine.step() {
                    result.unwrap();
                }
            }
            engine.stats().steps
        });
        assert_eq!(steps, 1, "all datums go together");
        (planned, most - base - later)
    };
    std::thread::Builder::new().name("step".to_owned()).spawn(counted).unwrap().join().unwrap()
}

#[test]
fn a_step_takes_what_was_planned() {
    let _alone = alone();
    let of = |runs: &[(usize, Vec<usize>)]| Step {
        runs: runs.to_vec(),
        kind: StepKind::ForwardBackward,
        recompute: false,
        threads: 1,
        kernels: Kernels::f32(),
    };
    let long = of(&[(8, vec![511])]);
    let mut steps = vec![
        long.clone(),
        Step { threads: 2, ..long.clone() },
        Step { recompute: true, ..long.clone() },
        Step { kind: StepKind::Forward, ..long },
        of(&[(8, vec![100])]),
        of(&[(64, vec![200, 100])]),
        of(&[(1, vec![3; 100])]),
        of(&[(4, vec![40, 41]), (16, vec![100]), (1, vec![7; 9]), (32, vec![90]), (8, vec![300])]),
    ];
    let sets = Kernels::available();
    steps.extend(sets.into_iter().map(|kernels| Step { kernels, ..of(&[(8, vec![300, 200])]) }));
    for step in steps {
        let (planned, counted) = measure(&step);
        println!("planned {planned}, counted {counted} bytes: {step:?}");
        assert!(counted.abs_diff(planned) * 10 <= planned, "{planned} and {counted}: {step:?}");
    }
}

#[test]
fn a_loaded_model_takes_what_was_planned() {
    let _alone = alone();
    let before = live();
    let (engine, most) = peak(|| engine(1, Kernels::f32(), Config { kv_blocks: 1024, ..config() }));
    let planned = engine.plan().at_once();
    let counted = most - before;
    println!("planned {planned}, counted {counted} bytes");
    assert!(counted.abs_diff(planned) * 10 <= planned, "{planned} and {counted}");
}
