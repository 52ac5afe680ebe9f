//! Nothing is left of calls that were given up.

use std::{fs, time::Duration};

use tinsmith::{
    AdamParams, ApiFuture, ServiceClient,
    testing::{Answer, MockServer},
};

use crate::start::datum;

const CALLS: usize = 10_000;
const AT_ONCE: usize = 50;
/// Of these, steps of a run, which are sent in their turns though nobody waits for them.
const STEPS: usize = 5;

/// A figure of this process, such as `VmRSS` in KiB.
fn of_process(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().nth(1)).map_or(0, |n| n.parse().unwrap_or(0))
}

fn files() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[test]
fn ten_thousand_cancelled_calls_leave_nothing() {
    let server = MockServer::start().unwrap();
    let service = ServiceClient::connect_blocking(server.config()).unwrap();
    let training = service.create_lora_training_client("m").wait().unwrap();
    server.when("optim_step").result().always().answer(Answer::hanging());
    server.when("get_server_capabilities").always().answer(Answer::hanging());
    let round = || {
        let step = |_| training.optim_step(AdamParams::default()).map(drop);
        let look = |_| service.get_server_capabilities().map(drop);
        let futures: Vec<ApiFuture<()>> =
            (0..STEPS).map(step).chain((STEPS..AT_ONCE).map(look)).collect();
        // Some are on their way by then.
        assert!(server.wait_for("get_server_capabilities", STEPS, Duration::from_secs(10)));
        futures.iter().for_each(ApiFuture::cancel);
        server.clear_requests();
        for future in futures {
            assert!(future.wait().is_err());
        }
    };
    // Calls that were given up are sent all the same, in their turns: this one's comes after them.
    let settle = || {
        let data = vec![datum()];
        training.forward(data, "cross_entropy").wait().unwrap();
        server.clear_requests();
    };
    // Buffers and pools have grown to what they need.
    (0..20).for_each(|_| round());
    settle();
    let (threads, memory, open) = (of_process("Threads"), of_process("VmRSS"), files());
    (0..CALLS / AT_ONCE).for_each(|_| round());
    settle();
    assert_eq!(of_process("Threads"), threads);
    assert!(files() <= open + AT_ONCE, "{open} files were open, and {} are", files());
    let grown = of_process("VmRSS").saturating_sub(memory);
    assert!(grown < 64 * 1024, "{grown} KiB more than before");
    drop((training, service));
    assert!(
        (0..500).any(|_| {
            std::thread::park_timeout(Duration::from_millis(10));
            server.connections() == 0
        }),
        "{} connections are open",
        server.connections()
    );
}
