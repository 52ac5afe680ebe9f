//! `tinsmith bench work`: small fixed work on the model that ships, the same every time, for an instruction counter.

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use tinsmith::{Config, LoraOptions, ServiceClient};

use super::{Computing, NANO, engine::Subject, server};
use crate::{config::Settings, models, run};

/// Tokens of the datums of a training step.
const DATUMS: [usize; 2] = [32, 32];
/// Sequences that decode, and the tokens of their prompts.
const SEQUENCES: (usize, usize) = (8, 16);
const DECODE_STEPS: usize = 32;
const POLLS: usize = 100;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// What is done.
    #[arg(value_enum)]
    work: Work,
    /// So many times.
    #[arg(long, default_value_t = 1)]
    times: usize,
    #[command(flatten)]
    computing: Computing,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Work {
    /// A training step.
    Train,
    /// 32 decode steps.
    Decode,
    /// 100 requests that are submitted and polled for, over HTTP.
    Polls,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let nano = models::shipped()?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let mut settings = super::settings(&arguments.computing, (NANO, &nano), folder.path())?;
    // A decode step is to draw one token of each sequence.
    settings.speculative_rows = 0;
    let open = || Subject::open(&settings, NANO, &nano, |device| device);
    match arguments.work {
        Work::Train => {
            let mut engine = open()?;
            (0..arguments.times).try_for_each(|_| {
                let step = engine.training_step(&DATUMS);
                engine.complete(step)
            })
        }
        Work::Decode => {
            let mut engine = open()?;
            engine.prefill_all(SEQUENCES, (arguments.times + 1) * DECODE_STEPS)?;
            engine.steps(arguments.times * DECODE_STEPS)
        }
        Work::Polls => polls(&settings, arguments.times * POLLS),
    }
}

fn polls(settings: &Settings, count: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let running = run::start(settings, &models::offers(settings)?).await?;
        let url = running.url();
        let service = ServiceClient::connect(Config::new(&url)).await.context("open a session")?;
        let options = LoraOptions::new(NANO).rank(8).seed(1);
        let training = service.create_lora_training_client(options).await;
        let training = training.context("make a training run")?;
        server::submits(&url, &training, count).await?;
        running.stop().await
    })
}
