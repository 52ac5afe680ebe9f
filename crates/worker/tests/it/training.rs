//! Undisturbed runs: checkpoints, samplers, loads, order, spilling.

use std::time::Duration;

use prost::Message as _;
use tinsmith_store::{
    Category, CheckpointKind, Outcome, QueueState, RecordedSequence, Retrieved, Room,
};
use tinsmith_types::{
    ids::SequenceId,
    proto::{
        self,
        pack::{unpack_f32, unpack_i32},
    },
};
use tinsmith_worker::Config;

use crate::world::{Op, World, assert_done, config, failure};

use Op::{ForwardBackward, Save, Step};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn training_gives_results_checkpoints_and_samplers() {
    let world = World::new(config()).await;
    let ops = [
        Op::Create,
        ForwardBackward(1),
        Step,
        Op::Forward(1),
        Op::Sampler(0),
        ForwardBackward(2),
        Step,
        Op::Forward(1),
        Op::Sampler(1),
        Op::SaveSampler("named"),
        Save("trained"),
    ];
    let outcomes = world.play(0, 0, &ops).await;
    assert_done(&outcomes);
    assert!(world.record(0).await.ready);
    assert_ne!(outcomes[3], outcomes[7], "a step changes what is computed");
    let path = br#"{"path":"tinker://SESSION:train:0/weights/trained","type":"save_weights"}"#;
    assert_eq!(outcomes[10], Outcome::Done(path.to_vec().into()));

    let named = world.files(0, CheckpointKind::SamplerWeights, "named").await;
    let trained = world.weights(0, "trained").await;
    let adapter = "adapter_model.safetensors";
    assert_eq!(named[adapter], trained[adapter]);
    assert!(trained.contains_key("optimizer.safetensors"));
    assert!(!named.contains_key("optimizer.safetensors"));

    let (first, second) = (world.sample(0, 1).await, world.sample(1, 1).await);
    assert_done(&[first.clone(), second.clone()]);
    assert_ne!(first, second, "each sampler keeps its weights");
    assert_eq!(world.sample(0, 2).await, first, "and its seed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_hold_the_adapter_or_what_recipients_can_open() {
    const RECIPIENT: &[&str] = &["age1m60dkltm0hqmf56mv8pweep4xulcxs7gtduxwnddl3lpgmug9d8s0dmj33"];
    let world = World::new(config()).await;
    let ops = [
        Op::Create,
        ForwardBackward(1),
        Step,
        Op::Export("plain", None),
        Op::Export("sealed", Some(RECIPIENT)),
        Save("trained"),
    ];
    let outcomes = world.play(0, 0, &ops).await;
    assert_done(&outcomes);
    let kind = CheckpointKind::ExternalWeights;
    let (plain, sealed) =
        (world.files(0, kind, "plain").await, world.files(0, kind, "sealed").await);
    let trained = world.weights(0, "trained").await;
    let names: Vec<&str> = plain.keys().map(String::as_str).collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    for (name, content) in &plain {
        assert_eq!(content, &trained[name]);
        let closed = &sealed[&format!("{name}.age")];
        assert!(closed.starts_with(b"age-encryption.org/v1"), "{name}");
    }
    assert_eq!((plain.len(), sealed.len()), (2, 2));
    let size: usize = plain.values().map(|content| content.len()).sum();
    let result = format!(
        r#"{{"path":"tinker://SESSION:train:0/external_weights/plain","size_bytes":{size},"type":"save_weights_external"}}"#
    );
    assert_eq!(outcomes[3], Outcome::Done(result.into()));

    let again = [Op::Export("plain", None), Op::Export("bad", Some(&["age1example"])), Step];
    let outcomes = world.play(0, 6, &again).await;
    assert!(failure(&outcomes[0]).message.contains("exists already"));
    assert!(failure(&outcomes[1]).message.contains("recipient [0]"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampler_is_the_same_after_a_restart_and_when_it_was_dropped() {
    let mut world = World::new(Config { resident_samplers_max: 1, ..config() }).await;
    let ops = [
        Op::Create,
        ForwardBackward(1),
        Step,
        Op::Sampler(0),
        ForwardBackward(2),
        Step,
        Op::Sampler(1),
    ];
    assert_done(&world.play(0, 0, &ops).await);
    let expected = [world.sample(0, 0).await, world.sample(1, 0).await];
    assert_done(&expected);
    assert_eq!([world.sample(0, 1).await, world.sample(1, 1).await], expected);
    world.kill().await;
    world.start().await;
    assert_eq!([world.sample(0, 1).await, world.sample(1, 1).await], expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_that_ask_for_it_are_recorded_before_they_end() {
    let mut world = World::new(config()).await;
    let ops = [Op::Create, ForwardBackward(1), Step, Op::Sampler(0)];
    assert_done(&world.play(0, 0, &ops).await);
    let id = world.submit_sample(0, 0, (2, 5)).await;
    let Outcome::Done(bytes) = world.outcome(&id).await else { panic!("{id}") };
    let given = proto::SampleResponse::decode(bytes).unwrap();
    let ids: Vec<_> = (0..2).map(|index| SequenceId::of(&id, index)).collect();
    let recorded = async |world: &World| {
        let wanted = ids.iter().cloned().collect();
        world.store().recorded_sequences(&world.tenant, wanted).await.unwrap()
    };
    let first = recorded(&world).await;
    for (id, sequence) in ids.iter().zip(&given.sequences) {
        let RecordedSequence { prompt, tokens, logprobs } = &first[id];
        assert_eq!(*prompt, [1, 2, 3]);
        let drawn = unpack_i32(&sequence.tokens).unwrap();
        assert!(drawn.iter().map(|token| token.cast_unsigned()).eq(tokens.iter().copied()));
        assert_eq!(unpack_f32(sequence.logprobs.as_ref().unwrap()).unwrap(), *logprobs);
    }
    world.kill().await;
    world.start().await;
    assert_eq!(recorded(&world).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samplers_in_flight_move_together_whether_in_memory_or_not() {
    for resident_samplers_max in [1, 2, 4] {
        let mut world = World::new(Config { resident_samplers_max, ..config() }).await;
        let learn = |seed| [ForwardBackward(seed), Step];
        assert_done(&world.play(0, 0, &[Op::Create, Op::InFlight(0), Op::Sampler(1)]).await);
        let first = world.sample(0, 0).await;
        assert_done(std::slice::from_ref(&first));
        assert_done(&world.play(0, 3, &learn(1)).await);
        assert_eq!(world.sample(0, 1).await, first, "training alone moves nothing");
        assert_done(&world.play(0, 5, &[Op::InFlight(2)]).await);
        let second = world.sample(2, 0).await;
        assert_ne!(second, first);
        assert_eq!(world.sample(0, 2).await, second);
        assert_eq!(world.sample(1, 0).await, first, "a snapshot stays");
        // One that nobody has sampled from yet.
        assert_done(&world.play(0, 6, &learn(2)).await);
        assert_done(&world.play(0, 8, &[Op::InFlight(3)]).await);
        world.kill().await;
        world.start().await;
        let third = world.sample(0, 3).await;
        assert_ne!(third, second);
        assert_eq!([world.sample(2, 1).await, world.sample(3, 0).await], [third.clone(), third]);
        assert_eq!(world.sample(1, 1).await, first);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_sampler_number_leaves_the_first_one_as_it_is() {
    let world = World::new(config()).await;
    let ops = [Op::Create, ForwardBackward(1), Step, Op::Sampler(0)];
    assert_done(&world.play(0, 0, &ops).await);
    let first = world.sample(0, 0).await;
    let ops = [ForwardBackward(2), Step, Op::Sampler(0)];
    let outcomes = world.play(0, 4, &ops).await;
    assert_eq!(failure(&outcomes[2]).category, Category::User);
    assert_eq!(world.sample(0, 1).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_goes_on_bit_for_bit_with_the_optimizer_and_not_without() {
    let world = World::new(config()).await;
    let head = [Op::Create, ForwardBackward(1), Step, ForwardBackward(2), Step, Save("half")];
    assert_done(&world.play(0, 0, &head).await);
    let tail = [ForwardBackward(3), Step, Op::Forward(4), Save("end")];
    let expected = world.play(0, 6, &tail).await;
    assert_done(&expected);
    let weights = world.weights(0, "end").await;
    let half = || world.path(0, "weights", "half");

    // As the beginning of a run.
    assert_done(&world.play(1, 0, &[Op::CreateFrom(half(), true)]).await);
    assert!(world.record(1).await.ready);
    assert_eq!(world.play(1, 1, &tail).await[..3], expected[..3]);
    assert_eq!(world.weights(1, "end").await, weights);
    // Without the optimizer's state.
    assert_done(&world.play(2, 0, &[Op::CreateFrom(half(), false)]).await);
    assert_ne!(world.play(2, 1, &tail).await[..3], expected[..3]);
    assert_ne!(world.weights(2, "end").await, weights);
    // Into a run that has learned something else, whose gradient goes.
    let other = [Op::Create, ForwardBackward(9), Step, ForwardBackward(8), Op::Load(half(), true)];
    assert_done(&world.play(3, 0, &other).await);
    assert_eq!(world.play(3, 5, &tail).await[..3], expected[..3]);
    assert_eq!(world.weights(3, "end").await, weights);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_that_cannot_be_change_nothing() {
    let world = World::new(config()).await;
    let head = [Op::Create, ForwardBackward(1), Step, Op::SaveSampler("s"), ForwardBackward(2)];
    assert_done(&world.play(0, 0, &head).await);
    let missing = Op::Load(world.path(0, "weights", "none"), false);
    let stateless = Op::Load(world.path(0, "sampler_weights", "s"), true);
    let outcomes = world.play(0, 5, &[missing, stateless, Step, Save("end")]).await;
    assert_eq!(failure(&outcomes[0]).category, Category::User);
    assert_eq!(failure(&outcomes[1]).category, Category::User);

    let ops = [Op::Create, ForwardBackward(1), Step, ForwardBackward(2), Step, Save("end")];
    let undisturbed = World::new(config()).await;
    undisturbed.play(0, 0, &ops).await;
    assert_eq!(world.weights(0, "end").await, undisturbed.weights(0, "end").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_run_in_the_order_of_their_numbers() {
    let ops = [
        Op::Create,
        ForwardBackward(1),
        Step,
        ForwardBackward(2),
        Step,
        Op::Forward(3),
        Save("end"),
    ];
    let ordered = World::new(config()).await;
    let expected = ordered.play(0, 0, &ops).await;
    assert_done(&expected);

    let world = World::new(config()).await;
    let mut ids = vec![None; ops.len()];
    for seq in [0, 3, 2, 1, 6, 4, 5] {
        ids[seq] = Some(world.submit(0, seq, &ops[seq]).await.unwrap().request_id);
    }
    for (id, expected) in ids.into_iter().zip(expected) {
        assert_eq!(world.outcome(&id.unwrap()).await, expected);
    }
    assert_eq!(world.weights(0, "end").await, ordered.weights(0, "end").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spilled_runs_compute_the_same() {
    let ops = |run: u64| {
        let mut ops = vec![Op::Create];
        for seed in 0..4 {
            ops.extend([ForwardBackward(10 * run + seed), ForwardBackward(seed), Step]);
        }
        ops.extend([Op::Forward(7), Save("end")]);
        ops
    };
    let mut all = Vec::new();
    for resident_runs_max in [8, 1] {
        let world = World::new(Config { resident_runs_max, ..config() }).await;
        let mut ids = Vec::new();
        for seq in 0..ops(0).len() {
            for run in [0, 1, 2] {
                let op = &ops(run)[seq];
                let run = i64::try_from(run).unwrap();
                ids.push(world.submit(run, seq, op).await.unwrap().request_id);
            }
        }
        let mut outcomes = Vec::new();
        for id in &ids {
            outcomes.push(world.outcome(id).await);
        }
        assert_done(&outcomes);
        let mut weights = Vec::new();
        for run in 0..3 {
            weights.push(world.weights(run, "end").await);
        }
        all.push((outcomes, weights));
    }
    assert_eq!(all[0], all[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_runs_take_turns_in_memory_for_three() {
    let ops = |run: u64| {
        let train = [ForwardBackward(10 * run), Step, ForwardBackward(10 * run + 1)];
        [vec![Op::Create], train.to_vec(), vec![Step, Op::Forward(7), Save("end")]].concat()
    };
    let roomy = config().resident_runs_max.max(20);
    let mut all = Vec::new();
    for room in [20, 3] {
        let config = Config { resident_runs_max: roomy, ..config() };
        let mut world = World::with_room_for(room, config).await;
        let mut ids = Vec::new();
        for seq in 0..ops(0).len() {
            for run in 0..20 {
                let op = &ops(run)[seq];
                ids.push(world.submit(i64::try_from(run).unwrap(), seq, op).await.unwrap());
            }
        }
        let mut outcomes = Vec::new();
        for id in &ids {
            outcomes.push(world.outcome(&id.request_id).await);
        }
        assert_done(&outcomes);
        let mut weights = Vec::new();
        for run in 0..20 {
            weights.push(world.weights(run, "end").await);
        }
        all.push((outcomes, weights));
        world.stop().await;
        assert_eq!(world.stats.resident_runs, room);
    }
    assert_eq!(all[0], all[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samplers_take_turns_in_little_memory() {
    let mut world = World::new(Config { resident_samplers_max: 1, ..config() }).await;
    let ops = [Op::Create, Op::Sampler(0), Op::Sampler(1), Op::Sampler(2)];
    assert_done(&world.play(0, 0, &ops).await);
    let expected = world.sample(0, 0).await;
    for seq in 1..4 {
        let next = [Op::Sampler(2 + seq)];
        let number = usize::try_from(seq).unwrap();
        let (first, second, third, saved) = tokio::join!(
            world.sample(0, seq),
            world.sample(1, seq),
            world.sample(2, seq),
            world.play(0, 3 + number, &next),
        );
        assert_done(&saved);
        // The run was never trained, so that all of them are the same.
        assert_eq!([&first, &second, &third], [&expected; 3]);
    }
    assert_done(&[expected]);
    world.stop().await;
    assert_eq!(world.stats.resident_samplers, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_room_hears_so() {
    let world = World::new(Config { resident_samplers_max: 1, ..config() }).await;
    assert_done(&world.play(0, 0, &[Op::Create, Op::Sampler(0), Op::Sampler(1)]).await);
    for seq in 0..20 {
        world.submit_sample(0, seq, (8, 60)).await;
    }
    let waits = world.submit_sample(1, 0, (1, 4)).await;
    let mut states = Vec::new();
    while let Retrieved::Pending(state) =
        world.store().retrieve(&world.tenant, &waits, Duration::ZERO).await.unwrap()
    {
        if !states.contains(&state) {
            states.push(state);
        }
        tokio::task::yield_now().await;
    }
    assert!(states.contains(&QueueState::PausedCapacity(Room::Samplers)), "{states:?}");
}

/// What a world's worker did after all but the first of many samples were cancelled.
async fn cancel_most() -> tinsmith_worker::Stats {
    const SAMPLES: i64 = 50;
    let mut world = World::new(config()).await;
    assert_done(&world.play(0, 0, &[Op::Create, Op::Sampler(0)]).await);
    let mut ids = Vec::new();
    // As many sequences as run at a time, so that one sample comes after the other.
    for seq in 0..SAMPLES {
        ids.push(world.submit_sample(0, seq, (8, 60)).await);
    }
    let (first, rest) = ids.split_first().unwrap();
    assert_done(&[world.outcome(first).await]);
    for id in rest {
        world.store().cancel_sample(&world.tenant, id).await.unwrap();
    }
    assert_done(&[world.sample(0, SAMPLES).await]);
    world.stop().await;
    world.stats
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_samples_leave_their_engine() {
    // On a busy machine all samples may be done before the first one is seen.
    for _ in 0..10 {
        let stats = cancel_most().await;
        let engine = stats.engines[0];
        assert_eq!((engine.running, engine.waiting, engine.kv_blocks_used), (0, 0, 0));
        if stats.cancelled_samples > 0 {
            assert!(engine.decode_tokens < 50 * 8 * 60, "{engine:?}");
            return;
        }
    }
    panic!("no sample was cancelled inside the engine");
}
