//! The same training, waiting for each request, submitting ahead, and all at once; and what each way takes.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example async_training
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::time::{Duration, Instant};

use tinsmith::{
    AdamParams, ApiFuture, Config, Datum, ForwardBackwardOutput, LoraOptions, Result,
    ServiceClient, TrainingClient, try_await_many,
};

const STEPS: usize = 12;

/// Four short texts as token ids.
fn batch() -> Result<Vec<Datum>> {
    let texts = [[40, 41, 42, 43], [60, 61, 62, 63], [43, 42, 41, 40], [63, 62, 61, 60]];
    texts.iter().map(|text| Datum::text(text)).collect()
}

fn pass(training: &TrainingClient) -> Result<ApiFuture<ForwardBackwardOutput>> {
    Ok(training.forward_backward(batch()?, "cross_entropy"))
}

fn params() -> AdamParams {
    AdamParams { learning_rate: 5e-3, ..AdamParams::default() }
}

fn loss(output: &ForwardBackwardOutput) -> f64 {
    output.loss().unwrap_or(f64::NAN)
}

/// Part 1: each request is waited for before the next one is sent.
async fn sync_training(training: &TrainingClient) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        losses.push(loss(&pass(training)?.await?));
        training.optim_step(params()).await?;
    }
    Ok(losses)
}

/// Part 2: the next step is submitted while the last one runs; the server keeps them in order.
async fn async_training(training: &TrainingClient) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    let mut running: Option<ApiFuture<ForwardBackwardOutput>> = None;
    for _ in 0..STEPS {
        let next = pass(training)?;
        let stepped = training.optim_step(params());
        if let Some(last) = running.replace(next) {
            losses.push(loss(&last.await?));
        }
        drop(stepped);
    }
    if let Some(last) = running {
        losses.push(loss(&last.await?));
    }
    Ok(losses)
}

/// Part 3: everything is submitted at once, and collected afterwards.
async fn batched_training(training: &TrainingClient) -> Result<Vec<f64>> {
    let (mut passes, mut steps) = (Vec::new(), Vec::new());
    for _ in 0..STEPS {
        passes.push(pass(training)?);
        steps.push(training.optim_step(params()));
    }
    let losses = try_await_many(passes, None).await?.iter().map(loss).collect();
    try_await_many(steps, None).await?;
    Ok(losses)
}

#[expect(clippy::disallowed_methods, reason = "this is what is measured")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::main]
async fn main() -> Result<()> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let run = || service.create_lora_training_client(LoraOptions::new("base").rank(8).seed(1));

    let mut measured: Vec<(&str, Vec<f64>, Duration)> = Vec::new();
    let (training, start) = (run().await?, now());
    measured.push(("sync", sync_training(&training).await?, start.elapsed()));
    let (training, start) = (run().await?, now());
    measured.push(("async", async_training(&training).await?, start.elapsed()));
    let (training, start) = (run().await?, now());
    measured.push(("batched", batched_training(&training).await?, start.elapsed()));

    // Part 4: the comparison. The order of the requests is the same, and so are the numbers, to the last bit.
    let (first, baseline) = (measured[0].1.clone(), measured[0].2);
    for (name, losses, took) in &measured {
        let (begin, end) = (losses[0], losses[STEPS - 1]);
        println!("{name}: {STEPS} steps, loss {begin:.3} to {end:.3}, same: {}", *losses == first);
        let ratio = baseline.as_secs_f64() / took.as_secs_f64();
        println!("{name}: {:.3} s, {ratio:.2} x", took.as_secs_f64());
    }
    service.close().await
}
