//! How long ten training clients take to be made one after the other, and at the same time.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example parallel_client_creation
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::time::Instant;

use tinsmith::{Config, LoraOptions, Result, ServiceClient, try_await_many};

const CLIENTS: usize = 10;

#[expect(clippy::disallowed_methods, reason = "this is what is measured")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::main]
async fn main() -> Result<()> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let create = || service.create_lora_training_client(LoraOptions::new("base").rank(16));
    // What is done once for a session is not part of either.
    create().await?;

    let start = now();
    for _ in 0..CLIENTS {
        create().await?;
    }
    let sequential = start.elapsed().as_secs_f64();

    let start = now();
    try_await_many((0..CLIENTS).map(|_| create()).collect(), None).await?;
    let parallel = start.elapsed().as_secs_f64();

    println!("Sequential: {sequential:.3}s");
    println!("Parallel: {parallel:.3}s");
    println!("Speedup: {:.2}x", sequential / parallel);
    service.close().await
}
