//! Distillation: a student learns, token by token, the distribution of a teacher, of which it sees the likeliest tokens.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example distillation
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::error::Error;

use tinsmith::{
    AdamParams, Config, Conversation, Datum, LoraOptions, ModelInput, SampleOptions,
    SamplingClient, SamplingParams, ServiceClient, TrainOn, TrainingClient,
};

const LESSONS: [(&str, &str); 4] = [
    ("Where is Oslo?", "Norway it be, matey!"),
    ("What is the opposite of push?", "pull it be, matey!"),
    ("Count on from 17.", "18 it be, matey!"),
    ("Which colour does a banana have?", "yellow it be, matey!"),
];
const CANDIDATES: u32 = 8;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let run =
        |seed| service.create_lora_training_client(LoraOptions::new("base").rank(8).seed(seed));
    // Calls start when they are made: both runs are made at the same time.
    let (teacher, student) = (run(1), run(2));
    let (teacher, student) = (teacher.await?, student.await?);
    let tokenizer = teacher.get_tokenizer().await?;

    let mut chats = Vec::new();
    for (question, answer) in LESSONS {
        chats.push((Conversation::new().user(question), answer));
    }
    let lessons = chats.iter().map(|(question, answer)| {
        let whole = question.clone().assistant(*answer);
        whole.datum(&tokenizer, TrainOn::LastAssistantMessage)
    });
    let lessons = lessons.collect::<Result<Vec<_>, _>>()?;
    let losses = train(&teacher, &lessons, 12).await?;
    println!("the teacher learns by heart: {:.2} to {:.2}", losses[0], losses[11]);

    let teacher = teacher.save_weights_and_get_sampling_client().await?;
    let mut soft = Vec::new();
    for (question, _) in &chats {
        let prompt = question.prompt(&tokenizer)?.to_ints()?;
        let stop = Conversation::stop(&tokenizer)?;
        let params = SamplingParams {
            max_tokens: Some(16),
            temperature: 0.0,
            stop: Some(stop),
            ..SamplingParams::default()
        };
        let said = teacher.sample(&prompt, 1, params).await?;
        let answer = &said.sequences[0].tokens;
        soft.push(Datum::distillation(
            &prompt,
            answer,
            &opinions(&teacher, &prompt, answer).await?,
        )?);
    }
    let losses = train(&student, &soft, 16).await?;
    println!("the student's distance shrinks: {:.2} to {:.2}", losses[0], losses[15]);

    let student = student.save_weights_and_get_sampling_client().await?;
    let params =
        SamplingParams { max_tokens: Some(16), temperature: 0.0, ..SamplingParams::default() };
    let said = student.sample(chats[0].0.prompt(&tokenizer)?, 1, params).await?;
    println!("the student says: {}", tokenizer.decode_plain(&said.sequences[0].tokens)?);
    service.close().await?;
    Ok(())
}

/// What a model finds likely at each token of an answer, with probabilities that sum to at most 1.
async fn opinions(
    model: &SamplingClient,
    prompt: &[u32],
    answer: &[u32],
) -> Result<Vec<Vec<(u32, f32)>>, Box<dyn Error>> {
    let whole = ModelInput::from_ints([prompt, answer].concat());
    let one = SamplingParams { max_tokens: Some(1), ..SamplingParams::default() };
    let mut options = SampleOptions::new(1, one).prompt_logprobs(true);
    options.topk_prompt_logprobs = CANDIDATES;
    let scored = model.sample_with(whole, options).await?;
    let rows = scored.topk_prompt_logprobs.ok_or("the server sent no candidates")?;
    let mut opinions = Vec::new();
    for row in rows.into_iter().skip(prompt.len()) {
        let row = row.unwrap_or_default().into_iter();
        let known =
            row.filter_map(|(token, logprob)| Some((u32::try_from(token).ok()?, logprob.exp())));
        opinions.push(known.collect());
    }
    Ok(opinions)
}

/// The losses of some steps on the same datums.
async fn train(
    run: &TrainingClient,
    datums: &[Datum],
    steps: usize,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut passed = Vec::new();
    for _ in 0..steps {
        passed.push(run.forward_backward(datums.to_vec(), "cross_entropy"));
        let params = AdamParams { learning_rate: 5e-3, ..AdamParams::default() };
        // The step's own failure would show in the next pass.
        drop(run.optim_step(params));
    }
    let mut losses = Vec::new();
    for output in passed {
        losses.push(output.await?.loss().unwrap_or(f64::NAN));
    }
    Ok(losses)
}
