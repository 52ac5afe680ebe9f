//! Recovery points: a long run saves itself every few steps, and after a disaster goes on from the newest point, or from
//! the one that was best.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example recovery_points
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::collections::BTreeMap;

use tinsmith::{
    AdamParams, Config, Datum, LoraOptions, RecoveryPolicy, RecoveryStrategy, Result, SaveOptions,
    ServiceClient, TrainingClient,
};

const STEPS: usize = 9;
/// Steps from one recovery point to the next.
const EVERY: usize = 3;
const WEEK: i64 = 7 * 86_400;

/// One step: the loss before it. The rate of the last ones is a mistake.
async fn step(training: &TrainingClient, number: usize) -> Result<f64> {
    let passed = training.forward_backward(vec![Datum::text(&[40, 41, 42, 43])?], "cross_entropy");
    let learning_rate = if number <= 2 * EVERY { 5e-3 } else { 0.5 };
    let stepped = training.optim_step(AdamParams { learning_rate, ..AdamParams::default() });
    let loss = passed.await?.loss().unwrap_or(f64::NAN);
    stepped.await?;
    Ok(loss)
}

async fn evaluate(training: &TrainingClient) -> Result<f64> {
    let output = training.forward(vec![Datum::text(&[40, 41, 42, 43])?], "cross_entropy").await?;
    Ok(output.loss().unwrap_or(f64::NAN))
}

/// Trains, and leaves recovery points: the run's id.
async fn train(config: Config) -> Result<String> {
    let service = ServiceClient::connect(config).await?;
    let options = LoraOptions::new("base").rank(8).seed(1);
    let training = service.create_lora_training_client(options).await?;
    for number in 1..=STEPS {
        step(&training, number).await?;
        if number % EVERY == 0 {
            let loss = evaluate(&training).await?;
            // Notes are texts; the best is found by the number in one of them.
            let notes = BTreeMap::from([("eval_loss".to_owned(), loss.to_string().into())]);
            let point = SaveOptions::new(format!("step-{number}"));
            training.save_state(point.ttl_seconds(WEEK).user_metadata(notes)).await?;
            println!("saved step-{number}, loss {loss:.2}");
        }
    }
    Ok(training.model_id().to_owned())
}

#[tokio::main]
async fn main() -> Result<()> {
    let config = Config::from_env()?;
    // The session ends with its last client: all that is left of the run is on the server.
    let run = train(config.clone()).await?;

    let service = ServiceClient::connect(config).await?;
    let newest = service.recover(run.as_str(), RecoveryPolicy::default()).await?;
    println!("newest: {}", newest.checkpoint.rsplit('/').next().unwrap_or_default());

    let best = RecoveryStrategy::Best { metric: "eval_loss".to_owned(), lower_is_better: true };
    let policy = RecoveryPolicy::default().strategy(best).on_recovery(|recovered| {
        println!("told of the recovery after {} attempt", recovered.attempts);
    });
    let best = service.recover(run.as_str(), policy).await?;
    println!("best: {}", best.checkpoint.rsplit('/').next().unwrap_or_default());
    println!("goes on at loss {:.2}", evaluate(&best.client).await?);
    service.close().await
}
