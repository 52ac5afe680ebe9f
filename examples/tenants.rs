//! Several users at once, each with a thread, a session and an adapter: the blocking clients, without any async code.
//! The server computes what they ask for in common batches.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example tenants
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::{io, thread};

use tinsmith::{AdamParams, Config, Datum, Error, LoraOptions, Result, blocking::ServiceClient};

const USERS: u32 = 3;
const STEPS: usize = 10;

/// One user's training: the losses of its first and last step.
fn train(config: Config, user: u32) -> Result<(f64, f64)> {
    let service = ServiceClient::connect(config)?;
    let training = service.create_lora_training_client(LoraOptions::new("base").rank(8).seed(1))?;
    let first = 40 + 10 * user;
    let datum = Datum::text(&[first, first + 1, first + 2, first + 3])?;
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let output = training.forward_backward(vec![datum.clone()], "cross_entropy")?;
        let params = AdamParams { learning_rate: 5e-3, ..AdamParams::default() };
        training.optim_step(params)?;
        losses.push(output.loss().unwrap_or(f64::NAN));
    }
    service.close()?;
    Ok((losses[0], losses[STEPS - 1]))
}

fn main() -> Result<()> {
    // Clones of a configuration share what a busy server asks for: one waits, all wait.
    let config = Config::from_env()?;
    let start = |user| {
        let config = config.clone();
        thread::Builder::new().name(format!("user {user}")).spawn(move || train(config, user))
    };
    let users: io::Result<Vec<_>> = (1..=USERS).map(start).collect();
    let users = users.map_err(|error| Error::validation(format!("start a thread: {error}")))?;
    for (user, thread) in (1..=USERS).zip(users) {
        match thread.join() {
            Ok(Ok((first, last))) => println!("user {user}: loss {first:.2} to {last:.2}"),
            Ok(Err(error)) => println!("user {user}: failed to {error}"),
            Err(_) => println!("user {user}: its thread panicked"),
        }
    }
    Ok(())
}
