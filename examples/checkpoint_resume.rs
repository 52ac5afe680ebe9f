//! A run that is stopped and goes on from its checkpoint as if nothing had happened, and another that takes the weights
//! alone for a task of its own.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example checkpoint_resume
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use tinsmith::{
    AdamParams, Config, Datum, LoraOptions, Result, SaveOptions, ServiceClient, TrainingClient,
};

const STEPS: usize = 4;

/// The losses of some steps.
async fn train(training: &TrainingClient, tokens: &[u32]) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let passed = training.forward_backward(vec![Datum::text(tokens)?], "cross_entropy");
        let params = AdamParams { learning_rate: 5e-3, ..AdamParams::default() };
        let stepped = training.optim_step(params);
        losses.push(passed.await?.loss().unwrap_or(f64::NAN));
        stepped.await?;
    }
    Ok(losses)
}

#[tokio::main]
async fn main() -> Result<()> {
    let config = Config::from_env()?;
    let service = ServiceClient::connect(config.clone()).await?;
    let options = LoraOptions::new("base").rank(8).seed(1);
    let training = service.create_lora_training_client(options).await?;
    let task = [40, 41, 42, 43, 44];
    train(&training, &task).await?;
    // A day is enough for this one; without it, a checkpoint stays until it is deleted.
    let saved = training.save_state(SaveOptions::new("halfway").ttl_seconds(86_400)).await?.path;
    let uninterrupted = train(&training, &task).await?;
    service.close().await?;

    // Another program, another day: all it needs is the path.
    let service = ServiceClient::connect(config).await?;
    let resumed = service.create_training_client_from_state_with_optimizer(saved.as_str()).await?;
    println!(
        "rank {} and model {} as before",
        resumed.lora_rank().unwrap_or(0),
        resumed.base_model()
    );
    let losses = train(&resumed, &task).await?;
    println!("goes on with the optimizer: loss {:.3} to {:.3}", losses[0], losses[STEPS - 1]);
    println!("the same as without a stop: {}", losses == uninterrupted);

    // Transfer: the weights are a good beginning for another task, the optimizer's momentum is not.
    let transferred = service.create_training_client_from_state(saved.as_str()).await?;
    let losses = train(&transferred, &[44, 43, 42, 41, 40]).await?;
    println!("learns something else: loss {:.3} to {:.3}", losses[0], losses[STEPS - 1]);

    // A step that went wrong is taken back: the run itself goes to where it was saved.
    resumed.load_state_with_optimizer(saved.as_str()).await?;
    println!("taken back, and the same again: {}", train(&resumed, &task).await? == uninterrupted);
    service.close().await
}
