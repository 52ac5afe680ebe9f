//! `tinsmith bench clients`: what is left of the engine's own rate when many clients sample over HTTP.
//!
//! This process makes the load, a `tinsmith serve` of its own answers it, and rounds of both take turns with rounds of
//! the engine alone.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Args;
use tinsmith::{Config, SampleOptions, SamplingClient, SamplingParams, ServiceClient, Stop};
use tinsmith_backend::Dtype;
use tokio::task::JoinSet;

use super::{
    Computing, Format, Model, cpu,
    engine::Subject,
    now,
    report::{Figure, Report, median, percentile},
    server::Server,
};
use crate::{device, host, models, random::Random, terminal::problem};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Clients, each with a session and connections of its own.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Tokens of a completion.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// Completions that each client asks for in a round, one after another.
    #[arg(long, default_value_t = 2)]
    completions: usize,
    /// Rounds that count, after one that does not.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Each client polls for every result by itself, instead of asking which have ended.
    #[arg(long)]
    polls: bool,
    /// The model to sample from.
    #[arg(long, value_enum, default_value = "small")]
    model: Model,
    #[command(flatten)]
    computing: Computing,
    /// How the figures are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// What one round of the server gave.
struct Round {
    /// Tokens a second, all clients together.
    rate: f64,
    /// Milliseconds of each completion, from its submission to its result.
    times: Vec<f64>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let (name, model) = (arguments.model.name(), arguments.model.dir(&nano, folder.path())?);
    let settings = super::settings(&arguments.computing, (name, &model), folder.path())?;
    let mut alone = Subject::open(&settings, name, &model, |device| device)?;
    let kernels = device::open(&settings, Dtype::Bf16)?.describe().to_string();
    let figures = measure(arguments, &mut alone, name, &model)?;
    Report { cpu: cpu(), kernels, figures }.print(arguments.format)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn measure(
    arguments: &Arguments,
    alone: &mut Subject,
    name: &str,
    model: &Path,
) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let (server, url) =
        runtime.block_on(Server::start(name, model, &arguments.computing.flags()))?;
    let clients = runtime.block_on(connect(&url, name, arguments))?;
    let mut random = Random::new(2);
    let (mut rates, mut own, mut shares, mut times) = (vec![], vec![], vec![], vec![]);
    // Microseconds of processors a token: the engine alone, the server, the clients.
    let mut spent = [const { vec![] }; 3];
    for number in 0..=arguments.rounds {
        problem(&format!("round {number} of {}", arguments.rounds));
        let load = (arguments.clients, arguments.completions);
        let start = processor_times(&server);
        let engine = alone.closed_loop(load, arguments.prompt, arguments.tokens)?;
        let middle = processor_times(&server);
        let draw = |_| prompt_of(&mut random, arguments.prompt, alone.vocabulary());
        let prompts = (0..arguments.clients * arguments.completions).map(draw).collect();
        let round = runtime.block_on(sample(&clients, prompts, arguments))?;
        let end = processor_times(&server);
        if number > 0 {
            own.push(engine);
            rates.push(round.rate);
            shares.push(round.rate / engine);
            times.extend(round.times);
            let spans = [middle.0 - start.0, end.1 - middle.1, end.0 - middle.0];
            let tokens = load.0 * load.1 * arguments.tokens;
            for (spent, span) in spent.iter_mut().zip(spans) {
                spent.push(span * 1e6 / tokens as f64);
            }
        }
    }
    drop(server);
    let what = format!("{} clients, {} tokens each", arguments.clients, arguments.tokens);
    let figure =
        |part: &str, value, unit| Figure::new(name, format!("{what}: {part}"), value, unit);
    Ok(vec![
        figure("engine alone", median(&own), "tokens/s"),
        figure("over HTTP", median(&rates), "tokens/s"),
        figure("share of the engine alone", median(&shares), ""),
        figure("completion, p50", percentile(&times, 50), "ms"),
        figure("completion, p95", percentile(&times, 95), "ms"),
        figure("processors of the engine", median(&spent[0]), "us/token"),
        figure("processors of the server", median(&spent[1]), "us/token"),
        figure("processors of the clients", median(&spent[2]), "us/token"),
    ])
}

/// Seconds that this process and the server have had on processors.
fn processor_times(server: &Server) -> (f64, f64) {
    let servers = host::processor_time_of(server.pid()).unwrap_or_default();
    (host::processor_time().as_secs_f64(), servers.as_secs_f64())
}

fn prompt_of(random: &mut Random, tokens: usize, vocabulary: u32) -> Vec<u32> {
    (0..tokens).map(|_| random.below(vocabulary)).collect()
}

async fn connect(url: &str, model: &str, arguments: &Arguments) -> Result<Vec<SamplingClient>> {
    let mut clients = Vec::new();
    for _ in 0..arguments.clients {
        let config = Config::builder().base_url(url).telemetry(false).build()?;
        let service = ServiceClient::connect(config).await.context("open a session")?;
        clients.push(service.create_sampling_client(model).await.context("make a sampler")?);
    }
    Ok(clients)
}

/// Every client asks for its completions one after another; all clients begin at once.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn sample(
    clients: &[SamplingClient],
    mut prompts: Vec<Vec<u32>>,
    arguments: &Arguments,
) -> Result<Round> {
    let params = SamplingParams {
        max_tokens: u32::try_from(arguments.tokens).ok(),
        stop: Some(Stop::Tokens(Vec::new())),
        ..SamplingParams::default()
    };
    let mut options = SampleOptions::new(1, params);
    if arguments.polls {
        // Who observes the queue asks for itself.
        options = options.observer(|_: &tinsmith::QueueStateChange| {});
    }
    let start = now();
    let mut tasks = JoinSet::new();
    for client in clients {
        let rest = prompts.len() - arguments.completions;
        tasks.spawn(complete(client.clone(), prompts.split_off(rest), options.clone()));
    }
    let (mut tokens, mut times) = (0, Vec::new());
    for one in tasks.join_all().await {
        let (count, took) = one?;
        tokens += count;
        times.extend(took);
    }
    Ok(Round { rate: tokens as f64 / start.elapsed().as_secs_f64(), times })
}

/// Tokens drawn, and the milliseconds of each completion.
async fn complete(
    client: SamplingClient,
    prompts: Vec<Vec<u32>>,
    options: SampleOptions,
) -> Result<(usize, Vec<f64>)> {
    let (mut tokens, mut times) = (0, Vec::new());
    for prompt in prompts {
        let start = now();
        let sampled = client.sample_with(&prompt, options.clone()).await.context("sample")?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        tokens += sampled.sequences.iter().map(|sequence| sequence.tokens.len()).sum::<usize>();
    }
    Ok((tokens, times))
}
