//! The four primitives of the API: `forward_backward`, `optim_step`, `sample` and `save_state`.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example four_primitives
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::error::Error;

use tinsmith::{
    AdamParams, Config, Conversation, LoraOptions, SamplingParams, ServiceClient, TrainOn,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let options = LoraOptions::new("base").rank(8).seed(1);
    let training = service.create_lora_training_client(options).await?;
    let tokenizer = training.get_tokenizer().await?;

    // What is asked, and what shall be answered. The datum has the shift done, and weighs the answer alone.
    let question = Conversation::new().user("What is the capital of France?");
    let lesson = question.clone().assistant("Paris it be, matey!");
    let datum = lesson.datum(&tokenizer, TrainOn::LastAssistantMessage)?;

    for step in 1..=8 {
        // Both are submitted before either is waited for: the server runs them in this order.
        let passed = training.forward_backward(vec![datum.clone()], "cross_entropy");
        let params = AdamParams { learning_rate: 5e-3, ..AdamParams::default() };
        let stepped = training.optim_step(params);
        let loss = passed.await?.loss().unwrap_or(f64::NAN);
        stepped.await?;
        if step == 1 || step == 8 {
            println!("forward_backward: the loss of step {step} is {loss:.3}");
        }
    }

    let sampler = training.save_weights_and_get_sampling_client().await?;
    let params = SamplingParams {
        max_tokens: Some(24),
        temperature: 0.0,
        stop: Some(Conversation::stop(&tokenizer)?),
        ..SamplingParams::default()
    };
    let answer = sampler.sample(question.prompt(&tokenizer)?, 1, params).await?;
    println!("sample: {}", tokenizer.decode_plain(&answer.sequences[0].tokens)?);

    let saved = training.save_state("melted").await?;
    println!("save_state: {}", saved.path);
    service.close().await?;
    Ok(())
}
