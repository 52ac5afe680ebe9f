//! Random interleavings of runs with kills, stops, retries and spilling: each acknowledged request takes
//! effect once, in order, as if nothing had happened. A seed fixes everything but the threads' timing.

use std::collections::BTreeMap;

use bytes::Bytes;
use tinsmith_store::Outcome;
use tinsmith_types::ids::RequestId;
use tinsmith_worker::Config;

use crate::{
    model::SplitMix64,
    world::{Op, World, config, configs},
};

const SEEDS: u64 = 20;
const RUNS: usize = 3;
const REQUESTS: usize = 9;

/// What one run's client knows.
struct Client {
    run: i64,
    ops: Vec<Op>,
    /// The order in which it sends.
    order: Vec<usize>,
    sent: BTreeMap<usize, RequestId>,
}

type Ends = (Vec<Outcome>, BTreeMap<String, Bytes>);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_each_request_takes_effect_once() {
    for seed in 0..SEEDS {
        let checked = tokio::spawn(check(seed)).await;
        assert!(checked.is_ok(), "seed {seed}");
    }
}

async fn check(seed: u64) {
    let mut random = SplitMix64(seed);
    let mut clients: Vec<Client> = (0..RUNS).map(|run| client(run, &mut random)).collect();
    let expected = sequential(&clients).await;

    let [seldom, often, replays] = configs();
    let chosen = [seldom, often, replays][random.below(3)].clone();
    let resident_runs_max = [1, 2, 8][random.below(3)];
    let in_flight_per_run_max = [1, 3][random.below(2)];
    let mut world = World::new(Config { resident_runs_max, in_flight_per_run_max, ..chosen }).await;
    while clients.iter().any(|client| client.sent.len() < client.ops.len()) {
        disturb(&mut world, &mut random).await;
        let client = &mut clients[random.below(RUNS)];
        act(&world, client, &mut random).await;
    }
    for (client, (outcomes, weights)) in clients.iter().zip(&expected) {
        for (seq, id) in &client.sent {
            assert_eq!(world.outcome(id).await, outcomes[*seq], "{:?}", client.ops[*seq]);
        }
        assert_eq!(world.weights(client.run, "end").await, *weights);
    }
    world.stop().await;
    assert_eq!(world.stats.corrupted_runs, 0);
}

fn client(run: usize, random: &mut SplitMix64) -> Client {
    let mut ops = vec![Op::Create, Op::Save("first")];
    let first = format!("tinker://SESSION:train:{run}/weights/first");
    for _ in 0..REQUESTS {
        ops.push(match random.below(13) {
            0 => Op::Refused,
            1 => Op::Broken,
            2 => Op::BrokenStep,
            3 => Op::Forward(random.next()),
            4 => Op::Sampler(i64::try_from(100 * run + ops.len()).unwrap()),
            5 => Op::Load(first.clone(), random.below(2) == 0),
            6..=8 => Op::Step,
            _ => Op::ForwardBackward(random.next() / 2),
        });
    }
    ops.extend([Op::ForwardBackward(1), Op::Step, Op::Save("end")]);
    // Neighbours overtake each other; the first request makes the run.
    let mut order: Vec<usize> = (0..ops.len()).collect();
    for place in 1..ops.len() - 1 {
        if random.below(3) == 0 {
            order.swap(place, place + 1);
        }
    }
    Client { run: i64::try_from(run).unwrap(), ops, order, sent: BTreeMap::new() }
}

/// One run after the other, one request after the other.
async fn sequential(clients: &[Client]) -> Vec<Ends> {
    let world = World::new(config()).await;
    let mut ends = Vec::new();
    for client in clients {
        let mut outcomes = Vec::new();
        for (seq, op) in client.ops.iter().enumerate() {
            outcomes.extend(world.play(client.run, seq, std::slice::from_ref(op)).await);
        }
        ends.push((outcomes, world.weights(client.run, "end").await));
    }
    ends
}

async fn disturb(world: &mut World, random: &mut SplitMix64) {
    match random.below(24) {
        0 | 1 => {
            world.kill().await;
            world.start().await;
        }
        2 => {
            world.stop().await;
            world.start().await;
        }
        _ => {}
    }
}

/// Sends what is next, sends something again, or waits for something.
async fn act(world: &World, client: &mut Client, random: &mut SplitMix64) {
    let known = client.sent.len();
    let chosen = random.below(8);
    if chosen < 2 && known > 0 {
        let seq = client.order[random.below(known)];
        let again = world.submit(client.run, seq, &client.ops[seq]).await.unwrap();
        assert!(!again.fresh);
        assert_eq!(again.request_id, client.sent[&seq]);
    } else if chosen == 2 && known > 0 {
        // All before it have been sent, so that it ends.
        let complete = (0..).take_while(|seq| client.sent.contains_key(seq)).count();
        world.outcome(&client.sent[&random.below(complete)]).await;
    } else if known < client.ops.len() {
        let seq = client.order[known];
        let submitted = world.submit(client.run, seq, &client.ops[seq]).await.unwrap();
        assert!(submitted.fresh);
        client.sent.insert(seq, submitted.request_id);
    }
}
