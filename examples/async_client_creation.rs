//! Clients that are made at the same time: samplers of several checkpoints, a fresh adapter, and runs that go on from
//! a checkpoint, with and without the optimizer's state. One that fails leaves the others alone.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example async_client_creation
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::time::Duration;

use tinsmith::{
    AdamParams, Config, Datum, LoraOptions, Result, SamplingParams, ServiceClient, await_many,
};

/// For each client: how long its making may take.
const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

#[tokio::main]
async fn main() -> Result<()> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let (mut paths, state) = prepare(&service).await?;
    paths.insert(1, paths[0].replace("first", "missing"));

    // The calls have started when they return: all of them are on their way before the first is waited for.
    let made = paths.iter().map(|path| service.create_sampling_client_async(path.as_str()));
    let mut samplers = Vec::new();
    for (path, sampler) in paths.iter().zip(await_many(made.collect(), LIMIT).await) {
        let name = path.rsplit('/').next().unwrap_or(path);
        match sampler {
            Ok(sampler) => {
                println!("✓ {name}");
                samplers.push(sampler);
            }
            Err(error) => println!("✗ {name}: {error}"),
        }
    }
    println!("{} of {} samplers are ready", samplers.len(), paths.len());

    let fresh = service.create_lora_training_client_async(LoraOptions::new("base").rank(16));
    let weights = service.create_training_client_from_state_async(state.as_str());
    let whole = service.create_training_client_from_state_with_optimizer_async(state.as_str());
    for (name, run) in [("fresh", fresh), ("from state", weights), ("with optimizer", whole)] {
        match run.await {
            Ok(run) => println!("✓ {name}: rank {}", run.lora_rank().unwrap_or_default()),
            Err(error) => println!("✗ {name}: {error}"),
        }
    }

    let params = || SamplingParams { max_tokens: Some(4), ..SamplingParams::default() };
    let samples = samplers.iter().map(|sampler| sampler.sample([5, 6, 7], 1, params()));
    let samples = await_many(samples.collect(), LIMIT).await;
    println!("{} samples came back", samples.iter().filter(|sample| sample.is_ok()).count());
    service.close().await
}

/// Three checkpoints to sample from, one to train on.
async fn prepare(service: &ServiceClient) -> Result<(Vec<String>, String)> {
    let options = LoraOptions::new("base").rank(8).seed(1);
    let training = service.create_lora_training_client(options).await?;
    let mut paths = Vec::new();
    for name in ["first", "second", "third"] {
        let datum = Datum::text(&[5, 6, 7, 8])?;
        let passed = training.forward_backward(vec![datum], "cross_entropy");
        let stepped = training.optim_step(AdamParams::default());
        let saved = training.save_weights_for_sampler(name);
        passed.await?;
        stepped.await?;
        paths.extend(saved.await?.path);
    }
    Ok((paths, training.save_state("resumable").await?.path))
}
