//! Runs leave as files and come back the same.

use tinsmith_engine::{Error, Files, Parts, RunKey, SamplerKey};

use crate::tiny::{
    CpuEngine, adam, bits, config, datums, engine, forward_backward, job, optim_step, run_all,
    run_one, sample, sampled, scored, spec,
};

const RUN: RunKey = RunKey(0);
const BACK: RunKey = RunKey(1);
const ALL: Parts = Parts { optimizer: true, gradient: true };

/// `count` requests and steps, ended by a request whose gradient is pending.
fn train(engine: &mut CpuEngine, run: RunKey, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let works = vec![
            forward_backward(run, datums(seed, 3)),
            optim_step(run, adam(0.01)),
            forward_backward(run, datums(seed + 100, 1)),
        ];
        for result in run_all(engine, works) {
            result.unwrap();
        }
    }
}

fn ready() -> CpuEngine {
    let mut engine = engine(1, config());
    engine.create_run(RUN, spec(4, 11)).unwrap();
    engine
}

fn export(engine: &mut CpuEngine, run: RunKey) -> Files {
    engine.export_run(run, ALL, "tiny").unwrap()
}

#[test]
fn a_restored_run_goes_on_bit_for_bit() {
    let mut undisturbed = ready();
    train(&mut undisturbed, RUN, 0..6);
    let expected = export(&mut undisturbed, RUN);

    let mut before = ready();
    train(&mut before, RUN, 0..3);
    let files = export(&mut before, RUN);
    let mut after = engine(2, config());
    after.restore_run(BACK, &files, ALL).unwrap();
    train(&mut after, BACK, 3..6);
    assert_eq!(export(&mut after, BACK), expected);
}

#[test]
fn loading_with_and_without_the_optimizer() {
    let mut engine = ready();
    train(&mut engine, RUN, 0..3);
    let files = export(&mut engine, RUN);
    engine.create_run(BACK, spec(4, 12)).unwrap();
    train(&mut engine, BACK, 7..8);
    engine.load_run(BACK, &files, true).unwrap();
    let loaded = export(&mut engine, BACK);
    assert_eq!(loaded["adapter_model.safetensors"], files["adapter_model.safetensors"]);
    assert_eq!(loaded["optimizer.safetensors"], files["optimizer.safetensors"]);
    assert_ne!(loaded["gradient.safetensors"], files["gradient.safetensors"], "it is cleared");

    engine.load_run(BACK, &files, false).unwrap();
    let fresh = export(&mut engine, BACK);
    engine.create_run(RunKey(2), spec(4, 13)).unwrap();
    let new = export(&mut engine, RunKey(2));
    assert_eq!(fresh["adapter_model.safetensors"], files["adapter_model.safetensors"]);
    assert_eq!(fresh["optimizer.safetensors"], new["optimizer.safetensors"]);
    assert_eq!(fresh["gradient.safetensors"], new["gradient.safetensors"]);
}

#[test]
fn a_load_that_does_not_fit_leaves_the_run_as_it_was() {
    let mut engine = ready();
    train(&mut engine, RUN, 0..1);
    engine.create_run(BACK, spec(2, 12)).unwrap();
    train(&mut engine, BACK, 1..2);
    let before = export(&mut engine, BACK);
    let mut files = export(&mut engine, RUN);
    let error = engine.load_run(BACK, &files, true).unwrap_err();
    assert!(matches!(error, Error::User { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the checkpoint's adapter (rank 4, train_attn true, train_mlp true, train_unembed true) is \
         not of the run's kind (rank 2, train_attn true, train_mlp true, train_unembed true)"
    );
    files.remove("optimizer.safetensors");
    let error = engine.load_run(RUN, &files, true).unwrap_err();
    assert_eq!(error.to_string(), "the checkpoint has no optimizer state; load it without");
    files.get_mut("adapter_model.safetensors").unwrap().truncate(1000);
    let error = engine.load_run(RUN, &files, false).unwrap_err();
    assert!(matches!(error, Error::User { .. }), "{error:?}");
    assert_eq!(export(&mut engine, BACK), before);
}

#[test]
fn a_snapshot_is_what_its_files_are() {
    let mut engine = ready();
    train(&mut engine, RUN, 0..2);
    engine.snapshot_sampler(SamplerKey(0), "a", RUN).unwrap();
    let files = engine.export_run(RUN, Parts::default(), "tiny").unwrap();
    assert_eq!(files.len(), 2, "weights alone are two files");
    engine.create_sampler(SamplerKey(1), "a", Some(&files)).unwrap();
    engine.create_sampler(SamplerKey(2), "a", None).unwrap();
    train(&mut engine, RUN, 2..3);
    let mut draw =
        |key| bits(&sampled(run_one(&mut engine, sample(SamplerKey(key), job(&[1, 2, 3], 40)))));
    assert_eq!(draw(0), draw(1), "and a later step does not reach it");
    assert_ne!(draw(0), draw(2));
    engine.drop_run(RUN);
    engine.drop_sampler(SamplerKey(0));
    assert_eq!((engine.stats().runs, engine.stats().samplers), (0, 2));
}

#[test]
fn a_new_adapter_changes_nothing() {
    let mut engine = ready();
    engine.snapshot_sampler(SamplerKey(0), "a", RUN).unwrap();
    engine.create_sampler(SamplerKey(1), "a", None).unwrap();
    let request = job(&[4, 5, 6], 30);
    let of = |engine: &mut CpuEngine, key| {
        sampled(run_one(engine, sample(SamplerKey(key), request.clone()))).sequences
    };
    assert_eq!(of(&mut engine, 0), of(&mut engine, 1));
    scored(run_one(&mut engine, forward_backward(RUN, datums(1, 1))));
}
