//! Supervised fine-tuning on a file of chats: batches, epochs, a learning rate that falls, and what is held out.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example sft_chat
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.
//! The file, `examples/data/pirate.jsonl`, has one object a line: `{"messages": [{"role", "content"}, …]}`.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::error::Error;

use tinsmith::{
    AdamParams, Config, Conversation, Dataset, LoraOptions, SamplingParams, Schedule,
    ServiceClient, Shape, TrainOn,
    dataset::{Batching, DatumOptions},
};

const FILE: &str = "examples/data/pirate.jsonl";
const BATCH: usize = 16;
const EPOCHS: usize = 4;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let options = LoraOptions::new("base").rank(16).seed(1);
    let training = service.create_lora_training_client(options).await?;
    let tokenizer = training.get_tokenizer().await?;

    let (learnt, held_out) = Dataset::open(FILE)?.split(0.125, 1)?;
    // Only what the assistant says is learnt; a chat longer than the context would be refused with its line.
    let how = DatumOptions { train_on: TrainOn::AllAssistantMessages, ..DatumOptions::default() };
    let learnt = learnt.try_map(|row| row.datum(&tokenizer, &how))?;
    let held_out = held_out.try_map(|row| row.datum(&tokenizer, &how))?;
    println!("{} chats to learn from, {} held out", learnt.len(), held_out.len());

    let batches = learnt.batches(Batching::new(BATCH)?.seed(7).epochs(EPOCHS));
    let steps = u64::try_from(batches.steps())?;
    let rate = Schedule::new(Shape::Cosine, 4e-3, steps)?.warmup(2)?;
    let evaluate = || training.forward(held_out.rows().to_vec(), "cross_entropy");
    let tokens: usize = held_out.rows().iter().map(tinsmith::Datum::trained_tokens).sum();
    #[expect(clippy::cast_precision_loss, reason = "there are few tokens")]
    let per_token = move |loss: f64| loss / tokens as f64;

    let before = evaluate();
    let mut running = Vec::new();
    for (step, batch) in (0..steps).zip(batches) {
        let datums = batch.into_iter().cloned().collect();
        let params = AdamParams { learning_rate: rate.at(step), ..AdamParams::default() };
        // Nothing is waited for here: the server has the next step when it is done with this one.
        running.push((
            training.forward_backward(datums, "cross_entropy"),
            training.optim_step(params),
        ));
    }
    let after = evaluate();
    for (passed, stepped) in running {
        passed.await?;
        stepped.await?;
    }
    let loss = before.await?.loss().map_or(f64::NAN, per_token);
    println!("held-out loss a token before: {loss:.3}");
    let loss = after.await?.loss().map_or(f64::NAN, per_token);
    println!("held-out loss a token after {steps} steps: {loss:.3}");

    let sampler = training.save_weights_and_get_sampling_client().await?;
    let params = SamplingParams {
        max_tokens: Some(32),
        temperature: 0.0,
        stop: Some(Conversation::stop(&tokenizer)?),
        ..SamplingParams::default()
    };
    let question = Conversation::new().user("Where is Oslo?");
    let answer = sampler.sample(question.prompt(&tokenizer)?, 1, params).await?;
    println!("Where is Oslo? {}", tokenizer.decode_plain(&answer.sequences[0].tokens)?);
    service.close().await?;
    Ok(())
}
