//! One loss of your own, run both ways: here, between two passes, and on the server, in one.
//!
//!     tinsmith serve &
//!     cargo run --release -p tinsmith --example custom_loss
//!
//! `TINKER_BASE_URL` names another server than `http://localhost:8000`, `TINKER_API_KEY` the key that it asks for.

#![expect(clippy::print_stdout, reason = "it is a program that prints")]

use tinsmith::{
    AdamParams, ApiFuture, Config, Datum, ForwardBackwardOutput, LoraOptions, Result,
    ServiceClient, TrainingClient,
    custom::{
        Expression, LossValue, Var, check_gradients,
        regularizers::{KlDivergence, Reference, Regularized},
    },
};

const STEPS: usize = 12;

/// A preference loss: the first half of a batch is liked, the other half is not. It looks at the whole batch at once,
/// which only a loss on the client can.
fn preference(_: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
    let (liked, other) = logprobs.split_at(logprobs.len() / 2);
    let mut losses = Vec::new();
    for (liked, other) in liked.iter().zip(other) {
        let margin = liked.mean() - other.mean();
        losses.push(-(margin * 2.0).log_sigmoid());
    }
    let loss = Var::stack(&losses)?.sum();
    Ok(LossValue::new(loss.clone()).metric("preference:sum", &loss))
}

/// The clipped objective of PPO with an entropy bonus. It runs datum by datum, so that the server can run it too.
fn clipped() -> Result<Expression> {
    let inputs = [("logprobs", 1), ("sampled", 1), ("advantages", 1)];
    Expression::trace("clipped", inputs, |inputs| {
        let (logprobs, advantages) = (inputs.logprobs(), inputs.get("advantages"));
        let ratio = (&logprobs - inputs.get("sampled")).exp();
        let bounded = ratio.clamp(0.8, 1.2);
        let surrogate = (&ratio * &advantages).minimum(&(&bounded * &advantages));
        let entropy = -(logprobs.exp() * &logprobs).sum();
        let is_clipped = ratio.not_equal(&bounded).mean();
        Ok(LossValue::new(-surrogate.sum() - entropy * 0.01)
            .metric("custom/clipped:mean", &is_clipped))
    })
}

/// Four texts as token ids; the first two are liked.
fn datums() -> Vec<Datum> {
    let texts: [[u32; 6]; 4] = [
        [40, 41, 42, 43, 44, 45],
        [60, 61, 62, 63, 64, 65],
        [45, 44, 43, 42, 41, 40],
        [65, 64, 63, 62, 61, 60],
    ];
    let datum = |(place, text): (usize, [u32; 6])| {
        let advantage = if place < 2 { 1.0 } else { -1.0 };
        Datum::new(&text[..5])
            .with_input("target_tokens", &text[1..])
            .with_input("advantages", &[advantage; 5][..])
    };
    texts.into_iter().enumerate().map(datum).collect()
}

/// The datums with the logprobs that the model gives them now, as what a sampler would have said.
async fn sampled(training: &TrainingClient) -> Result<Vec<Datum>> {
    let before = training.forward(datums(), "cross_entropy").await?.all_logprobs()?;
    let known = datums().into_iter().zip(before);
    Ok(known.map(|(datum, logprobs)| datum.with_input("sampled", logprobs)).collect())
}

async fn train<F>(training: &TrainingClient, mut pass: F) -> Result<Vec<f64>>
where
    F: FnMut(&TrainingClient) -> ApiFuture<ForwardBackwardOutput>,
{
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        // The step is called before the loss is known: the server takes both in order.
        let output = pass(training);
        let step = training.optim_step(AdamParams { learning_rate: 5e-3, ..AdamParams::default() });
        losses.push(output.await?.loss().unwrap_or(f64::NAN));
        step.await?;
    }
    Ok(losses)
}

fn falls(losses: &[f64]) -> bool {
    losses.last() < losses.first()
}

#[tokio::main]
async fn main() -> Result<()> {
    let service = ServiceClient::connect(Config::from_env()?).await?;
    let run = || service.create_lora_training_client(LoraOptions::new("base").rank(8).seed(1));

    // Before anything is trained: is the gradient that of the values? Any logprobs will do.
    let made_up: Vec<Vec<f64>> = (1..5).map(|datum| vec![-0.5 * f64::from(datum); 5]).collect();
    let check = check_gradients(&preference, &datums(), &made_up)?;
    println!("{} numbers of the gradient are right: {}", check.compared, check.is_within(1e-6));

    let training = run().await?;
    let losses =
        train(&training, |training| training.forward_backward_custom(datums(), preference)).await?;
    println!("the preference loss falls: {}", falls(&losses));

    let expression = clipped()?;
    let handle = service.create_custom_loss(expression.clone()).await?;
    println!("the server runs {:?} itself: {}", handle.name(), handle.loss_id().is_some());
    let (here, there) = (run().await?, run().await?);
    let (data, same_data) = (sampled(&here).await?, sampled(&there).await?);
    let losses_here =
        train(&here, |t| t.forward_backward_custom(data.clone(), expression.clone())).await?;
    let losses_there =
        train(&there, |t| t.forward_backward_custom(same_data.clone(), handle.clone())).await?;
    let near = |(x, y): (&f64, &f64)| (x - y).abs() < 0.05 * x.abs().max(1.0);
    println!("the clipped loss falls: {}", falls(&losses_here));
    println!("both ways agree at every step: {}", losses_here.iter().zip(&losses_there).all(near));

    // The same with a leash to where training began, and an account of what it cost.
    let leash = KlDivergence::new(Reference::Input("sampled".to_owned()));
    let leashed = Regularized::new(expression).with(0.5, leash).with_gradient_norms();
    let made = here.forward_backward_regularized(data, leashed).await?;
    let total = made.loss.base_loss.value + made.loss.regularizers["kl_divergence"].contribution;
    println!("loss and leash add up: {}", (total - made.loss.loss_total).abs() < 1e-9);
    service.close().await
}
