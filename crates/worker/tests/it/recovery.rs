//! Stops and kills: what was acknowledged takes effect once, and the run goes on bit for bit.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tinsmith_store::Outcome;
use tinsmith_worker::Config;

use crate::world::{Op, World, always, assert_done, config, configs};

use Op::{ForwardBackward, Save, Step};

/// Gradients pend over most places between two of these.
fn script() -> Vec<Op> {
    vec![
        Op::Create,
        ForwardBackward(1),
        ForwardBackward(2),
        Step,
        Op::Forward(3),
        ForwardBackward(4),
        Save("half"),
        Op::Sampler(0),
        ForwardBackward(5),
        Step,
        Op::Refused,
        ForwardBackward(6),
        Step,
        Op::Forward(3),
        Save("end"),
    ]
}

async fn undisturbed(ops: &[Op]) -> (Vec<Outcome>, BTreeMap<String, Bytes>) {
    let world = World::new(config()).await;
    let outcomes = world.play(0, 0, ops).await;
    (outcomes, world.weights(0, "end").await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_after_any_request_changes_nothing() {
    let ops = script();
    let (expected, weights) = undisturbed(&ops).await;
    for config in configs() {
        for acknowledged in 1..=ops.len() {
            let mut world = World::new(config.clone()).await;
            let mut ids = Vec::new();
            for (seq, op) in ops[..acknowledged].iter().enumerate() {
                ids.push(world.submit(0, seq, op).await.unwrap().request_id);
            }
            // Some of it has ended when the node dies, the rest has not.
            let ended = acknowledged * (acknowledged % 4) / 3;
            if let Some(id) = ids[..ended].last() {
                world.outcome(id).await;
            }
            world.kill().await;
            world.start().await;
            for (id, expected) in ids.iter().zip(&expected) {
                assert_eq!(world.outcome(id).await, *expected, "killed after {acknowledged}");
            }
            let retried = world.submit(0, acknowledged - 1, &ops[acknowledged - 1]).await.unwrap();
            assert!(!retried.fresh);
            let rest = world.play(0, acknowledged, &ops[acknowledged..]).await;
            assert_eq!(rest, expected[acknowledged..], "killed after {acknowledged}");
            assert_eq!(world.weights(0, "end").await, weights, "killed after {acknowledged}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_during_a_replay_change_nothing() {
    let ops = script();
    let (expected, weights) = undisturbed(&ops).await;
    for config in configs() {
        let mut world = World::new(config).await;
        let mut next = 0;
        for wanted in [5, 9, 12] {
            let outcomes = world.play(0, next, &ops[next..wanted]).await;
            assert_eq!(outcomes, expected[next..wanted]);
            next = wanted;
            for wait in [0, 1] {
                world.kill().await;
                world.start().await;
                // Something that makes the node replay, and is not waited for.
                let submitted = world.submit(0, next, &ops[next]).await.unwrap();
                assert_eq!(submitted.fresh, wait == 0);
                let id = submitted.request_id;
                let wait = Duration::from_millis(wait);
                world.store().retrieve(&world.tenant, &id, wait).await.unwrap();
            }
        }
        let rest = world.play(0, next, &ops[next..]).await;
        assert_eq!(rest, expected[next..]);
        assert_eq!(world.weights(0, "end").await, weights);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_nothing_to_replay() {
    let ops = script();
    let (expected, weights) = undisturbed(&ops).await;
    for stopped in [1, 3, 7, 12] {
        let mut world = World::new(config()).await;
        assert_eq!(world.play(0, 0, &ops[..stopped]).await, expected[..stopped]);
        world.stop().await;
        world.start().await;
        assert_eq!(world.play(0, stopped, &ops[stopped..]).await, expected[stopped..]);
        assert_eq!(world.weights(0, "end").await, weights);
        world.stop().await;
        assert_eq!(world.stats.replayed_requests, 0, "stopped after {stopped}");
        assert_eq!(world.stats.corrupted_runs, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_without_snapshots_replays_what_trains() {
    let mut world = World::new(config()).await;
    let ops = script();
    world.play(0, 0, &ops).await;
    world.kill().await;
    world.start().await;
    assert_done(&world.play(0, ops.len(), &[Op::Forward(1)]).await);
    world.stop().await;
    // The creation, five batches and three steps.
    assert_eq!(world.stats.replayed_requests, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_survives_its_checkpoint() {
    let tail = [ForwardBackward(3), Step, Save("end")];
    let mut weights = Vec::new();
    for disturbed in [false, true] {
        let mut world = World::new(config()).await;
        let head = [Op::Create, ForwardBackward(1), Step, Save("half")];
        assert_done(&world.play(0, 0, &head).await);
        let half = world.path(0, "weights", "half");
        assert_done(&world.play(1, 0, &[Op::CreateFrom(half.clone(), true)]).await);
        let load = [Op::Create, ForwardBackward(2), Op::Load(half, true)];
        assert_done(&world.play(2, 0, &load).await);
        if disturbed {
            let kind = tinsmith_store::CheckpointKind::Weights;
            let run = world.run_id(0);
            let deleted = world.store().delete_checkpoint(&world.tenant, &run, kind, "half").await;
            deleted.unwrap();
            world.kill().await;
            world.start().await;
        }
        assert_done(&world.play(1, 1, &tail).await);
        assert_done(&world.play(2, 3, &tail).await);
        weights.push((world.weights(1, "end").await, world.weights(2, "end").await));
    }
    assert_eq!(weights[0], weights[1]);
    assert_eq!(weights[0].0, weights[0].1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_spill_survive_a_kill() {
    let ops = [Op::Create, ForwardBackward(1), ForwardBackward(2), Step, Save("end")];
    let (expected, weights) = undisturbed(&ops).await;
    let mut world = World::new(Config { resident_runs_max: 1, ..always() }).await;
    let mut ids = Vec::new();
    for (seq, op) in ops.iter().enumerate() {
        // The same seed of the adapter.
        for run in [0, 10, 20] {
            ids.push((seq, world.submit(run, seq, op).await.unwrap().request_id));
        }
        if seq == 2 {
            world.kill().await;
            world.start().await;
        }
    }
    for (seq, id) in &ids {
        let outcome = world.outcome(id).await;
        if matches!(ops[*seq], ForwardBackward(_) | Step) {
            assert_eq!(outcome, expected[*seq]);
        } else {
            assert_done(&[outcome]);
        }
    }
    for run in [0, 10, 20] {
        assert_eq!(world.weights(run, "end").await, weights);
    }
}
