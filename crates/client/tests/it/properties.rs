//! Whatever is asked for, in whatever sizes: requests are numbered without gaps in the order of the calls, batches are
//! cut within their limits and come back whole.

use proptest::prelude::*;
use serde_json::json;
use tinsmith::{
    AdamParams, ApiFuture, Datum, ForwardBackwardOutput, ServiceClient, testing::MockServer,
};

/// A call: a batch of datums with so many tokens each, or a step.
#[derive(Clone, Debug)]
enum Operation {
    Batch(Vec<usize>),
    Step,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let batch = prop::collection::vec(1..5_usize, 1..8).prop_map(Operation::Batch);
    prop::collection::vec(prop_oneof![3 => batch, 1 => Just(Operation::Step)], 1..6)
}

fn datum(tokens: usize) -> Datum {
    let tokens: Vec<u32> = (0..u32::try_from(tokens).unwrap()).collect();
    Datum::next_token(&tokens, &tokens, &vec![1.0; tokens.len()]).unwrap()
}

/// -0.25, -0.5 and so on: what the mock server makes up.
fn loss(tokens: usize) -> f64 {
    (1..=tokens).map(|position| 0.25 * f64::from(u32::try_from(position).unwrap())).sum()
}

fn check(operations: &[Operation], chunk_length: usize, is_parallel: bool) {
    let server = MockServer::start().unwrap();
    server.set_client_config(json!({
        "fwdbwd_max_chunk_len": chunk_length, "parallel_fwdbwd_chunks": is_parallel,
    }));
    let service = ServiceClient::connect_blocking(server.config()).unwrap();
    let training = service.create_lora_training_client("m").wait().unwrap();
    let mut batches: Vec<(&Vec<usize>, ApiFuture<ForwardBackwardOutput>)> = Vec::new();
    let mut steps = Vec::new();
    for operation in operations {
        match operation {
            Operation::Batch(tokens) => {
                let data = tokens.iter().map(|tokens| datum(*tokens)).collect();
                batches.push((tokens, training.forward_backward(data, "cross_entropy")));
            }
            Operation::Step => steps.push(training.optim_step(AdamParams::default())),
        }
    }
    // Waited for in another order than that of the calls.
    steps.into_iter().rev().for_each(|step| drop(step.wait().unwrap()));
    for (tokens, future) in batches.into_iter().rev() {
        let output = future.wait().unwrap();
        let lengths: Vec<_> = output.all_logprobs().unwrap().iter().map(Vec::len).collect();
        assert_eq!(&lengths, tokens);
        let expected: f64 = tokens.iter().map(|tokens| loss(*tokens)).sum();
        assert!((output.loss().unwrap() - expected).abs() < 1e-9);
    }
    check_requests(&server, operations, chunk_length, is_parallel);
}

fn check_requests(
    server: &MockServer,
    operations: &[Operation],
    chunk_length: usize,
    is_parallel: bool,
) {
    let requests = server
        .requests()
        .into_iter()
        .filter(|seen| matches!(seen.endpoint(), "forward_backward" | "optim_step"));
    let mut requests: Vec<_> =
        requests.map(|seen| (seen.body["seq_id"].as_i64().unwrap(), seen.number, seen)).collect();
    requests.sort_by_key(|(seq_id, _, _)| *seq_id);
    let numbers: Vec<i64> = requests.iter().map(|(seq_id, _, _)| *seq_id).collect();
    assert_eq!(numbers, (1..=i64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
    let mut rest = requests.into_iter();
    let mut last_arrival = 0;
    for operation in operations {
        let arrivals: Vec<usize> = match operation {
            Operation::Step => {
                let (_, arrival, seen) = rest.next().unwrap();
                assert_eq!(seen.endpoint(), "optim_step");
                vec![arrival]
            }
            Operation::Batch(tokens) => {
                let chunks: Vec<_> =
                    rest.by_ref().take(tokens.len().div_ceil(chunk_length)).collect();
                let sent = chunks.iter().flat_map(|(_, _, seen)| {
                    let data = seen.body["data"].as_array().unwrap();
                    assert!(data.len() <= chunk_length);
                    data.iter().map(|datum| {
                        let tokens = &datum["model_input"][0]["encoded_text"]["tokens(int32)"];
                        tokens.as_array().unwrap().len()
                    })
                });
                assert_eq!(&sent.collect::<Vec<_>>(), tokens);
                chunks.iter().map(|(_, arrival, _)| *arrival).collect()
            }
        };
        // The first chunk of several is sent last; one after another, they come in order.
        if is_parallel {
            assert_eq!(arrivals.iter().max(), arrivals.first());
        } else {
            assert!(arrivals.is_sorted());
        }
        // Calls do not overtake each other.
        assert!(arrivals.iter().all(|arrival| *arrival > last_arrival));
        last_arrival = *arrivals.iter().max().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn calls_are_numbered_cut_and_combined(
        operations in operations(),
        chunk_length in 1..4_usize,
        is_parallel: bool,
    ) {
        check(&operations, chunk_length, is_parallel);
    }
}

#[test]
fn metrics_of_chunks_are_combined_by_their_kinds() {
    use tinsmith::testing::Answer;
    let server = MockServer::start().unwrap();
    server.set_client_config(json!({ "fwdbwd_max_chunk_len": 2 }));
    let service = ServiceClient::connect_blocking(server.config()).unwrap();
    let training = service.create_lora_training_client("m").wait().unwrap();
    let answer = |value: f64, datums: usize| {
        let logprobs = json!({ "data": [-0.5], "dtype": "float32", "shape": [1] });
        Answer::json(json!({
            "loss_fn_output_type": "x",
            "loss_fn_outputs": vec![json!({ "logprobs": logprobs }); datums],
            "metrics": { "a:sum": value, "a:mean": value, "a:min": value, "a:max": value,
                "a:slack": value, "a:unique": value, "a:other": value },
        }))
    };
    for (seq_id, value, datums) in [(1, 1.0, 2), (2, 5.0, 2), (3, 9.0, 1)] {
        let is_it = move |seen: &tinsmith::testing::Seen| {
            seen.body["request_id"].as_str().is_some_and(|id| id.ends_with(&format!(":{seq_id}")))
        };
        server.when("forward_backward").result().matching(is_it).answer(answer(value, datums));
    }
    let data = (0..5).map(|_| datum(1)).collect();
    let output = training.forward_backward(data, "cross_entropy").wait().unwrap();
    let metric = |name: &str| output.metrics.get(name).copied();
    assert_eq!(output.outputs.len(), 5);
    // Sizes 2, 2, 1: the mean is (2 × 1 + 2 × 5 + 9) / 5, and the slack the rest up to the largest.
    for (name, expected) in [
        ("a:sum", 15.0),
        ("a:mean", 4.2),
        ("a:min", 1.0),
        ("a:max", 9.0),
        ("a:slack", 4.8),
        ("a:unique", 1.0),
        ("a:unique_1", 5.0),
        ("a:unique_2", 9.0),
    ] {
        assert!((metric(name).unwrap() - expected).abs() < 1e-9, "{name}");
    }
    assert_eq!(metric("a:other"), None);
}
