//! Several prompts sampled at the same time, while an observer watches whether the queue moves. Nothing is left running
//! when it ends.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example concurrent_sampling
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tinsmith::{
    Config, Conversation, QueueState, QueueStateChange, QueueStateObserver, SampleOptions,
    SamplingParams, ServiceClient, await_many,
};

/// For all polls of one sample together.
const POLLING: Duration = Duration::from_secs(60);
/// For the wait of this program.
const WAITING: Duration = Duration::from_secs(90);
const PROMPTS: [&str; 3] = ["Where is Oslo?", "Count on from 17.", "What is the opposite of push?"];

/// Says what to do about a queue that stands still.
struct QueueMonitor;

impl QueueStateObserver for QueueMonitor {
    fn on_queue_state_change(&self, change: &QueueStateChange) {
        match &change.queue_state {
            QueueState::PausedRateLimit => println!("rate limited: send fewer requests"),
            QueueState::PausedCapacity => println!("no capacity free: more hardware, or patience"),
            QueueState::Active => {}
            QueueState::Unknown(name) => println!("the queue is {name}"),
        }
    }
}

async fn run_concurrent_samples(service: &ServiceClient) -> Result<(), Box<dyn Error>> {
    let sampler = service.create_sampling_client("base").await?;
    let tokenizer = sampler.get_tokenizer().await?;

    let mut started = Vec::new();
    for prompt in PROMPTS {
        let params = SamplingParams {
            max_tokens: Some(64),
            temperature: 0.0,
            stop: Some(Conversation::stop(&tokenizer)?),
            ..SamplingParams::default()
        };
        let options = SampleOptions::new(1, params).observer(QueueMonitor).poll_timeout(POLLING);
        let input = Conversation::new().user(prompt).prompt(&tokenizer)?;
        started.push(sampler.sample_with(input, options));
    }
    for (prompt, result) in PROMPTS.iter().zip(await_many(started, Some(WAITING)).await) {
        match result {
            Ok(response) => {
                let tokens = &response.sequences[0].tokens;
                println!("{prompt} {}", tokenizer.decode_plain(tokens)?);
            }
            Err(error) => println!("{prompt} failed: {error}"),
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    // Attached to the whole session; dropping the guard detaches it.
    let paused = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&paused);
    let attached = service.on_queue_state_change(move |change: &QueueStateChange| {
        counter.fetch_add(usize::from(change.queue_state.is_paused()), Ordering::Relaxed);
    });
    let result = run_concurrent_samples(&service).await;
    // Whatever happened, nothing stays behind.
    drop(attached);
    service.close().await?;
    println!("the queue stood still {} times", paused.load(Ordering::Relaxed));
    result
}
