//! `tinsmith bench latency`: how long a sample's first token takes while the server trains, over HTTP.

use std::{collections::VecDeque, convert::Infallible, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use tinsmith::{
    AdamParams, Config, Datum, LoraOptions, SamplingClient, SamplingParams, ServiceClient,
    TrainingClient,
};
use tinsmith_backend::Dtype;

use super::{
    Computing, Format, Model, cpu, now,
    report::{Figure, Report, percentile},
    server::Server,
    settings,
};
use crate::{device, models, random::Random, terminal::problem};

const RANK: u32 = 32;
const PROMPT_TOKENS: usize = 64;
const DATUMS: usize = 8;
const DATUM_TOKENS: usize = 256;
/// Training requests that are on their way at a time, so that the engine always has one.
const STEPS_AHEAD: usize = 3;
/// Between one sample and the next.
const PAUSE: Duration = Duration::from_millis(60);
/// Until training is in full swing.
const WARM_UP: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    computing: Computing,
    /// The model that is served.
    #[arg(long, value_enum, default_value = "small")]
    model: Model,
    /// Samples in each of the situations.
    #[arg(long, default_value_t = 40)]
    samples: usize,
    /// Tokens of the long datum; 0: none.
    #[arg(long, default_value_t = 32_768)]
    long: usize,
    /// How the figures are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let dir = arguments.model.dir(&nano, folder.path())?;
    let settings = settings(&arguments.computing, (arguments.model.name(), &dir), folder.path())?;
    // Both models are stored in bf16.
    let kernels = device::open(&settings, Dtype::Bf16)?.describe().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let figures = runtime.block_on(serve(arguments, &dir))?;
    Report { cpu: cpu(), kernels, figures }.print(arguments.format)
}

async fn serve(arguments: &Arguments, dir: &Path) -> Result<Vec<Figure>> {
    let name = arguments.model.name();
    let (server, url) = Server::start(name, dir, &arguments.computing.flags()).await?;
    let service = ServiceClient::connect(Config::new(&url)).await.context("open a session")?;
    let sampler = service.create_sampling_client(name).await.context("make a sampler")?;
    let mut probe = Probe { name, sampler, samples: arguments.samples, random: Random::new(1) };
    let options = LoraOptions::new(name).rank(RANK).seed(1);
    let training =
        service.create_lora_training_client(options).await.context("make a training run")?;

    problem("sampling beside nothing");
    let mut figures = probe.first_tokens("nothing", async || true).await?;
    problem("sampling beside training steps");
    figures.extend(beside_steps(&training, &mut probe).await?);
    if arguments.long > 0 {
        problem("sampling beside a long datum");
        figures.extend(beside_long(&training, &mut probe, arguments.long).await?);
    }
    // The long datum may take minutes more: nobody waits for it.
    drop(server);
    Ok(figures)
}

/// Samples from a server, and looks at the clock.
struct Probe {
    name: &'static str,
    sampler: SamplingClient,
    samples: usize,
    random: Random,
}

impl Probe {
    /// Milliseconds from a request to its only token, one request after another, as long as `busy`.
    async fn first_tokens(
        &mut self,
        beside: &str,
        busy: impl AsyncFn() -> bool,
    ) -> Result<Vec<Figure>> {
        let mut times = Vec::new();
        while times.len() < self.samples {
            tokio::time::sleep(PAUSE).await;
            // No prompt twice: what was computed of it would be found.
            let prompt = tokens(&mut self.random, PROMPT_TOKENS);
            let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::default() };
            let start = now();
            self.sampler.sample(&prompt, 1, params).await.context("sample a token")?;
            if !busy().await {
                break;
            }
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        anyhow::ensure!(!times.is_empty(), "sample beside {beside}: it ended too soon");
        let what = |percent| format!("time to first token beside {beside}, p{percent}");
        let figure =
            |percent| Figure::new(self.name, what(percent), percentile(&times, percent), "ms");
        Ok(vec![figure(50), figure(95)])
    }
}

/// Beside steps of a few datums, one after another.
async fn beside_steps(training: &TrainingClient, probe: &mut Probe) -> Result<Vec<Figure>> {
    let steps = tokio::spawn(train(training.clone()));
    tokio::time::sleep(WARM_UP).await;
    let beside = format!("{DATUMS} x {DATUM_TOKENS}-token steps");
    let figures = probe.first_tokens(&beside, async || !steps.is_finished()).await;
    if steps.is_finished() {
        match steps.await.context("train")?? {}
    }
    steps.abort();
    figures
}

/// Makes steps until it is told to end, or one fails.
async fn train(training: TrainingClient) -> Result<Infallible> {
    let mut random = Random::new(2);
    let mut ahead = VecDeque::new();
    loop {
        let datums: Result<Vec<Datum>> =
            (0..DATUMS).map(|_| datum(&mut random, DATUM_TOKENS)).collect();
        let gradient = training.forward_backward(datums?, "cross_entropy");
        ahead.push_back((gradient, training.optim_step(AdamParams::default())));
        if ahead.len() >= STEPS_AHEAD
            && let Some((gradient, step)) = ahead.pop_front()
        {
            gradient.await.context("compute a gradient")?;
            step.await.context("make an optimizer step")?;
        }
    }
}

/// Beside one datum, until it is done.
async fn beside_long(
    training: &TrainingClient,
    probe: &mut Probe,
    tokens: usize,
) -> Result<Vec<Figure>> {
    let datum = datum(&mut Random::new(3), tokens)?;
    let gradient = training.forward_backward(vec![datum], "cross_entropy");
    let long = tokio::spawn(async move { gradient.await.context("compute a long gradient") });
    tokio::time::sleep(WARM_UP).await;
    let beside = format!("a datum of {tokens} tokens");
    let figures = probe.first_tokens(&beside, async || !long.is_finished()).await;
    if long.is_finished() {
        long.await.context("compute a long gradient")??;
    }
    figures
}

fn datum(random: &mut Random, length: usize) -> Result<Datum> {
    let tokens = tokens(random, length + 1);
    Ok(Datum::next_token(&tokens[..length], &tokens[1..], &vec![1.0; length])?)
}

/// Of any of the models.
fn tokens(random: &mut Random, count: usize) -> Vec<u32> {
    (0..count).map(|_| 3 + random.below(1021)).collect()
}
