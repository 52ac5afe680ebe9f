//! Requests that fail, journals that do not fit, base models that are not there.

use std::time::Duration;

use tinsmith_backend_cpu::{KernelSet, Kernels};
use tinsmith_store::{Category, Outcome, Retrieved};

use crate::{
    model::ACTIVATION_BYTES_MAX,
    world::{Op, World, assert_done, config, configs, failed_metric, failure},
};

use Op::{ForwardBackward, Save, Step};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_requests_contribute_nothing_and_are_counted() {
    let good = [Op::Create, ForwardBackward(1), ForwardBackward(2), Step, Step, Save("end")];
    let undisturbed = World::new(config()).await;
    assert_done(&undisturbed.play(0, 0, &good).await);
    let weights = undisturbed.weights(0, "end").await;
    let ops = [
        Op::Create,
        Op::Refused,
        ForwardBackward(1),
        Op::Broken,
        Op::Refused,
        ForwardBackward(2),
        Op::BrokenStep,
        Step,
        Op::Refused,
        Step,
        Op::Broken,
        Save("end"),
    ];
    for config in configs() {
        for killed in [None, Some(2), Some(5), Some(7), Some(9)] {
            let mut world = World::new(config.clone()).await;
            let mut outcomes = Vec::new();
            for part in [&ops[..killed.unwrap_or(0)], &ops[killed.unwrap_or(0)..]] {
                outcomes.extend(world.play(0, outcomes.len(), part).await);
                world.kill().await;
                world.start().await;
            }
            for (op, outcome) in ops.iter().zip(&outcomes) {
                let bad = matches!(op, Op::Refused | Op::Broken | Op::BrokenStep);
                assert_eq!(category(outcome), bad.then_some(Category::User), "{op:?}");
            }
            assert_eq!(failed_metric(&outcomes[7]), 4, "killed at {killed:?}");
            assert_eq!(failed_metric(&outcomes[9]), 1, "killed at {killed:?}");
            assert_eq!(world.weights(0, "end").await, weights);
        }
    }
}

fn category(outcome: &Outcome) -> Option<Category> {
    match outcome {
        Outcome::Done(_) => None,
        Outcome::Failed(failure) => Some(failure.category),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_taken_count_as_failures_before_and_after_a_kill() {
    let ops = [
        Op::Create,
        Save("a"),
        Op::SaveSampler("a"),
        Op::Sampler(0),
        ForwardBackward(1),
        Save("a"),
        Op::SaveSampler("a"),
        Op::Sampler(0),
        Step,
    ];
    for killed in [0, 6, 8] {
        let mut world = World::new(config()).await;
        let mut outcomes = world.play(0, 0, &ops[..killed]).await;
        world.kill().await;
        world.start().await;
        outcomes.extend(world.play(0, killed, &ops[killed..]).await);
        let bad: Vec<bool> = outcomes.iter().map(|outcome| category(outcome).is_some()).collect();
        assert_eq!(bad, [false, false, false, false, false, true, true, true, false]);
        assert_eq!(failed_metric(&outcomes[8]), 3, "killed at {killed}");
    }
}

/// The count belongs to the step's place in the order, however full the pipe is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_behind_a_step_are_counted_by_the_next() {
    let world = World::new(config()).await;
    let ops = [
        Op::Create,
        ForwardBackward(1),
        Step,
        Op::Broken,
        Op::Refused,
        ForwardBackward(2),
        Step,
        Op::BrokenStep,
        ForwardBackward(2),
        Step,
    ];
    let mut ids = vec![world.submit(0, 0, &ops[0]).await.unwrap().request_id];
    // Backwards, so that all of it is there before the first can run.
    for seq in (1..ops.len()).rev() {
        ids.push(world.submit(0, seq, &ops[seq]).await.unwrap().request_id);
    }
    let step = |seq: usize| ids[ops.len() - seq].clone();
    assert_eq!(failed_metric(&world.outcome(&step(2)).await), 0);
    assert_eq!(failed_metric(&world.outcome(&step(6)).await), 2);
    assert_eq!(failed_metric(&world.outcome(&step(9)).await), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_gives_another_result_marks_the_run() {
    let mut world = World::new(config()).await;
    let ops = [Op::Create, ForwardBackward(1), Step, ForwardBackward(2), Save("before")];
    assert_done(&world.play(0, 0, &ops).await);
    world.kill().await;
    // The same digest, another bit.
    world.start_with("00", true).await;
    let outcomes = world.play(0, 5, &[Step, ForwardBackward(3), Step]).await;
    let reason = "request 1 gave another result when replayed";
    for outcome in &outcomes {
        let failure = failure(outcome);
        assert_eq!(failure.category, Category::Server);
        assert_eq!(failure.message, format!("the training run is corrupted: {reason}"));
    }
    assert_eq!(world.record(0).await.corrupted.as_deref(), Some(reason));
    assert_done(&world.play(1, 0, &ops).await);
    world.stop().await;
    assert_eq!(world.stats.corrupted_runs, 1);

    // It stays so, with the first reason, also where the weights are right again.
    world.start().await;
    let outcomes = world.play(0, 8, &[Step]).await;
    assert!(failure(&outcomes[0]).message.ends_with(reason));
    assert_eq!(world.record(0).await.corrupted.as_deref(), Some(reason));
    assert_done(&world.play(2, 0, &ops).await);
}

/// The numbers are others then, and nobody calls the run corrupted for it: not where it goes on, and not
/// back on the first set, whose journal holds what the second computed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_with_another_kernel_set_and_says_so() {
    let Ok(other) = Kernels::best(KernelSet::W16Avx2) else {
        println!("not run: this CPU has no other kernel set");
        return;
    };
    for (config, ended_well) in configs().into_iter().zip([false, true, false]) {
        let mut world = World::new(config).await;
        let ops = [Op::Create, ForwardBackward(1), Step, ForwardBackward(2), Save("before")];
        assert_done(&world.play(0, 0, &ops).await);
        let first = world.kernels;
        for (round, kernels) in [other, first, other].into_iter().enumerate() {
            if ended_well {
                world.stop().await;
            } else {
                world.kill().await;
            }
            world.kernels = kernels;
            world.start().await;
            assert_done(&world.play(0, 5 + 3 * round, &[Step, ForwardBackward(3), Step]).await);
            let record = world.record(0).await;
            assert_eq!(record.corrupted, None, "{kernels}");
            let note = record.note.unwrap_or_default();
            assert!(note.contains("without comparison") && note.contains("w16-avx2."), "{note}");
        }
        world.stop().await;
        assert_eq!(world.stats.corrupted_runs, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_waits_for_its_base_model() {
    let ops = [Op::Create, ForwardBackward(1), Step, ForwardBackward(2), Step, Save("end")];
    let undisturbed = World::new(config()).await;
    let expected = undisturbed.play(0, 0, &ops).await;

    let mut world = World::new(config()).await;
    assert_eq!(world.play(0, 0, &ops[..3]).await, expected[..3]);
    world.stop().await;
    world.start_with("11", false).await;
    let mut ids = Vec::new();
    for (seq, op) in ops.iter().enumerate().skip(3) {
        ids.push(world.submit(0, seq, op).await.unwrap().request_id);
    }
    let note = note(&world).await;
    assert!(note.starts_with("its base model tiny (digest 00) is not served"), "{note}");
    let retrieved = world.store().retrieve(&world.tenant, &ids[0], Duration::ZERO).await.unwrap();
    assert!(matches!(retrieved, Retrieved::Pending(_)), "{retrieved:?}");
    world.stop().await;
    world.start().await;
    for (id, expected) in ids.iter().zip(&expected[3..]) {
        assert_eq!(world.outcome(id).await, *expected);
    }
    assert_eq!(world.weights(0, "end").await, undisturbed.weights(0, "end").await);
}

/// What a run's owner is told, once there is something to tell.
async fn note(world: &World) -> String {
    let noted = async {
        loop {
            if let Some(note) = world.record(0).await.note {
                return note;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), noted).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_be_replayed_waits_for_a_better_start() {
    let ops = [
        Op::Create,
        ForwardBackward(1),
        Step,
        ForwardBackward(2),
        Step,
        Op::Forward(1),
        Save("end"),
    ];
    let undisturbed = World::new(config()).await;
    let expected = undisturbed.play(0, 0, &ops).await;

    let mut world = World::new(config()).await;
    assert_eq!(world.play(0, 0, &ops[..3]).await, expected[..3]);
    world.kill().await;
    // Nothing fits any more.
    world.activation_bytes_max = 1;
    world.start().await;
    let mut ids = Vec::new();
    for (seq, op) in ops.iter().enumerate().take(5).skip(3) {
        ids.push(world.submit(0, seq, op).await.unwrap().request_id);
    }
    let note = note(&world).await;
    assert!(note.starts_with("request 0 failed when replayed: "), "{note}");
    // What comes later must not overtake them; another run is answered.
    for (seq, op) in ops.iter().enumerate().skip(5) {
        ids.push(world.submit(0, seq, op).await.unwrap().request_id);
    }
    assert!(category(&world.play(1, 0, &[Op::Create]).await[0]).is_some());
    for id in &ids {
        let retrieved = world.store().retrieve(&world.tenant, id, Duration::ZERO).await.unwrap();
        assert!(matches!(retrieved, Retrieved::Pending(_)), "{retrieved:?}");
    }
    assert_eq!(world.record(0).await.corrupted, None);
    world.stop().await;
    world.activation_bytes_max = ACTIVATION_BYTES_MAX;
    world.start().await;
    for (id, expected) in ids.iter().zip(&expected[3..]) {
        assert_eq!(world.outcome(id).await, *expected);
    }
    assert_eq!(world.weights(0, "end").await, undisturbed.weights(0, "end").await);
}
