//! A continuous pipeline: so many steps are always on their way, however long the training is, and each result is
//! looked at as soon as it is there.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example pipelining
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::collections::VecDeque;

use tinsmith::{AdamParams, Config, Datum, LoraOptions, Result, ServiceClient};

/// Steps on their way: enough for the server never to wait, few enough to stop in time.
const DEPTH: usize = 3;
const STEPS: u32 = 24;

#[tokio::main]
async fn main() -> Result<()> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let options = LoraOptions::new("base").rank(8).seed(1);
    let training = service.create_lora_training_client(options).await?;

    let mut running = VecDeque::new();
    let (mut deepest, mut losses, mut submitted) = (0, Vec::new(), 0);
    loop {
        // Fill up: the calls return at once, and the server runs them in the order in which they were made.
        while running.len() < DEPTH && submitted < STEPS {
            submitted += 1;
            let token = 30 + submitted % 4;
            let datum = Datum::text(&[token, token + 1, token + 2, token + 3])?;
            let passed = training.forward_backward(vec![datum], "cross_entropy");
            let params = AdamParams { learning_rate: 5e-3, ..AdamParams::default() };
            running.push_back((passed, training.optim_step(params)));
        }
        deepest = deepest.max(running.len());
        let Some((passed, stepped)) = running.pop_front() else { break };
        losses.push(passed.await?.loss().unwrap_or(f64::NAN));
        stepped.await?;
        // Whoever has seen enough stops here: at most DEPTH steps are too many.
        if losses.last().is_some_and(|loss| *loss < 1e-3) {
            submitted = STEPS;
        }
    }
    println!("{} steps, {deepest} on their way at a time", losses.len());
    println!("loss {:.2} to {:.2}", losses[0], losses[losses.len() - 1]);
    service.close().await
}
