//! Reinforcement learning: sample, judge, learn from what was better than its group; and again.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example rl_loop
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::error::Error;

use tinsmith::{
    AdamParams, Config, Datum, LoraOptions, Loss, SampleResponse, SamplingParams, ServiceClient,
    Tokenizer, try_await_many,
};

const PROMPTS: [&str; 4] = ["The", "My friend", "In the morning", "Every day"];
const GROUP: u32 = 16;
const ROUNDS: u64 = 10;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let options = LoraOptions::new("base").rank(16).seed(1);
    let training = service.create_lora_training_client(options).await?;
    let tokenizer = training.get_tokenizer().await?;
    let prompts: Result<Vec<_>, _> = PROMPTS.iter().map(|p| tokenizer.encode(p, false)).collect();
    let prompts = prompts?;

    for round in 1..=ROUNDS {
        // The weights as they are now. Their logprobs go with the samples, so that the loss knows how far the policy
        // has moved since.
        let sampler = training.save_weights_and_get_sampling_client().await?;
        let params =
            SamplingParams { max_tokens: Some(12), seed: Some(round), ..SamplingParams::default() };
        let groups = prompts.iter().map(|prompt| sampler.sample(prompt, GROUP, params.clone()));
        let groups = try_await_many(groups.collect(), None).await?;

        let (mut datums, mut rewards) = (Vec::new(), Vec::new());
        for (prompt, group) in prompts.iter().zip(&groups) {
            let scores = judge(&tokenizer, group)?;
            datums.extend(learnt(prompt, group, &scores)?);
            rewards.extend(scores);
        }
        let count = datums.len();
        // Groups whose samples are all as good teach nothing.
        if count > 0 {
            let passed = training.forward_backward(datums, Loss::ppo().clip(0.8, 1.2));
            let params = AdamParams { learning_rate: 3e-3, ..AdamParams::default() };
            let stepped = training.optim_step(params);
            passed.await?;
            stepped.await?;
        }
        if round == 1 || round == ROUNDS {
            println!(
                "round {round}: reward {:.2}, {count} samples to learn from",
                average(&rewards)
            );
        }
    }
    service.close().await?;
    Ok(())
}

/// Each sample with how much better it is than its group; what is just as good teaches nothing.
fn learnt(prompt: &[u32], group: &SampleResponse, scores: &[f32]) -> tinsmith::Result<Vec<Datum>> {
    let mean = average(scores);
    let mut datums = Vec::new();
    for (sequence, score) in group.sequences.iter().zip(scores) {
        let (tokens, logprobs) = (&sequence.tokens, &sequence.logprobs);
        if !tokens.is_empty() && score.to_bits() != mean.to_bits() {
            datums.push(Datum::policy(prompt, tokens, logprobs, score - mean)?);
        }
    }
    Ok(datums)
}

/// What shall be learnt: words with an `e`, as the share of all words.
fn judge(tokenizer: &Tokenizer, group: &SampleResponse) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut scores = Vec::new();
    for sequence in &group.sequences {
        let text = tokenizer.decode_plain(&sequence.tokens)?;
        let words: Vec<f32> =
            text.split_whitespace().map(|word| f32::from(u8::from(word.contains('e')))).collect();
        scores.push(average(&words));
    }
    Ok(scores)
}

#[expect(clippy::cast_precision_loss, reason = "there are few values")]
fn average(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len().max(1) as f32
}
