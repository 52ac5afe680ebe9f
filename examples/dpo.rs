//! Direct preference optimization: the model learns to prefer one answer to another, and a reference keeps it near to
//! where it began.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example dpo
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::error::Error;

use tinsmith::{
    AdamParams, Config, Conversation, Datum, LoraOptions, PreferencePair, Result, ServiceClient,
    custom::{LossValue, Var},
};

/// How far the model may go from the reference.
const BETA: f64 = 0.3;
const STEPS: usize = 12;
const QUESTIONS: [(&str, &str, &str); 4] = [
    ("Where is Oslo?", "Norway it be, matey!", "Norway"),
    ("Count on from 17.", "18 it be, matey!", "18"),
    ("What is the opposite of push?", "pull it be, matey!", "pull"),
    ("Which colour does a banana have?", "yellow it be, matey!", "yellow"),
];

/// −Σ log σ(β (chosen − rejected)), where an answer's score is its log-probability beyond that of the reference
/// (Rafailov et al. 2023, arXiv 2305.18290).
fn preference(data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
    let mut scores = Vec::new();
    for (datum, logprobs) in data.iter().zip(logprobs) {
        let reference = logprobs.input(datum, "reference")?;
        scores.push(((logprobs - &reference) * &logprobs.input(datum, "weights")?).sum());
    }
    let (mut losses, mut preferred) = (Vec::new(), Vec::new());
    for (chosen, rejected) in PreferencePair::paired(scores)? {
        let margin = (chosen - rejected) * BETA;
        preferred.push(margin.greater(0.0));
        losses.push(-margin.log_sigmoid());
    }
    let preferred = Var::stack(&preferred)?.sum();
    Ok(LossValue::new(Var::stack(&losses)?.sum()).metric("preferred:sum", &preferred))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let options = LoraOptions::new("base").rank(8).seed(1);
    let training = service.create_lora_training_client(options).await?;
    let tokenizer = training.get_tokenizer().await?;

    let mut pairs = Vec::new();
    for (question, chosen, rejected) in QUESTIONS {
        pairs.push(Conversation::new().user(question).preference(&tokenizer, chosen, rejected)?);
    }
    let data = PreferencePair::interleaved(&pairs);
    // The reference is the model as it is before it is trained.
    let before = training.forward(data.clone(), "cross_entropy").await?.all_logprobs()?;
    let data: Vec<Datum> = data
        .into_iter()
        .zip(before)
        .map(|(datum, reference)| datum.with_input("reference", reference))
        .collect();

    for step in 1..=STEPS {
        let passed = training.forward_backward_custom(data.clone(), preference);
        let params = AdamParams { learning_rate: 2e-3, ..AdamParams::default() };
        let stepped = training.optim_step(params);
        let output = passed.await?;
        stepped.await?;
        if step == 1 || step == STEPS {
            let loss = output.loss().unwrap_or(f64::NAN);
            let preferred = output.metrics.get("preferred:sum").copied().unwrap_or(f64::NAN);
            println!("step {step}: loss {loss:.3}, {preferred} of {} preferred", pairs.len());
        }
    }
    service.close().await?;
    Ok(())
}
