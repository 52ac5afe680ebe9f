//! `tinsmith quickstart`: trains the model that ships through the SDK, and shows what that changed.
//!
//! The task stands beside the model, in `quickstart.json`.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use tinsmith::{
    AdamParams, ApiFuture, Config, Datum, ForwardBackwardOutput, LoraOptions, SamplingClient,
    SamplingParams, ServiceClient, TrainingClient, wire::OptimStepResponse,
};
use tinsmith_tokenizer::{Chat, Message, Tokenizer};
use tokio::time::Instant;

use crate::{
    config::{Flags, Settings, Values},
    logs, models,
    random::Random,
    run,
    terminal::{is_terminal, say},
};

const MODEL: &str = "nano";
/// Ends every answer.
const END: &str = "<|im_end|>";
/// Longest answer that is sampled, in tokens.
const ANSWER_TOKENS_MAX: u32 = 32;
/// Held-out questions that are shown with their answers.
const SHOWN: usize = 4;
/// Steps from one line to the next where nobody watches a progress bar.
const STEPS_PER_LINE: usize = 5;
/// Shares of held-out prompts that are answered rightly, for the quickstart to have worked.
const BEFORE_MAX: f64 = 0.1;
const AFTER_MIN: f64 = 0.9;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Optimizer steps; without it, as many as the task says.
    #[arg(long)]
    steps: Option<usize>,
    /// Decides the adapter's first values and the order of the examples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What weights are kept in: auto, f32 or bf16.
    #[arg(long)]
    dtype: Option<String>,
    /// auto, or a kernel set, NAME or NAME:PATH: f32, w16-avx2, bf16-avx512, bf16-amx, f32:portable, …
    #[arg(long)]
    kernels: Option<String>,
    /// What is logged: error, warn, info, debug.
    #[arg(long, default_value = "warn")]
    log: String,
}

/// What `quickstart.json` holds.
#[derive(Debug, Deserialize)]
struct Task {
    description: String,
    settings: TaskSettings,
    train: Vec<Row>,
    heldout: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct TaskSettings {
    rank: u32,
    learning_rate: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    batch_size: usize,
    steps: usize,
}

#[derive(Debug, Deserialize)]
struct Row {
    prompt: String,
    answer: String,
}

/// The task, ready for the model.
struct Lesson {
    task: Task,
    tokenizer: Tokenizer,
    steps: usize,
    seed: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let model = models::shipped()?;
    let lesson = Lesson::open(&model, arguments)?;
    let folder = tempfile::Builder::new()
        .prefix("tinsmith-quickstart-")
        .tempdir()
        .context("make a temporary directory")?;
    let settings = settings(&model, folder.path(), arguments)?;
    logs::start(&settings.log, settings.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let checkpoint = runtime.block_on(with_server(&settings, &lesson))?;
    // The checkpoint is there to be gone on from.
    for line in next_steps(&folder.keep(), &checkpoint) {
        say(&line);
    }
    Ok(())
}

fn settings(model: &Path, data_dir: &Path, arguments: &Arguments) -> Result<Settings> {
    let flags: Flags = vec![
        ("models", Some(format!("{MODEL}={}", model.display()))),
        ("host", Some("127.0.0.1".to_owned())),
        ("port", Some("0".to_owned())),
        ("data_dir", Some(data_dir.display().to_string())),
        ("log", Some(arguments.log.clone())),
        ("dtype", arguments.dtype.clone()),
        ("kernels", arguments.kernels.clone()),
    ];
    Settings::new(&Values::load(&flags, None)?)
}

async fn with_server(settings: &Settings, lesson: &Lesson) -> Result<String> {
    let start = Instant::now();
    let running = run::start(settings, &models::offers(settings)?).await?;
    say(&format!("a server with the model {MODEL} listens on {}", running.url()));
    let service =
        ServiceClient::connect(Config::new(running.url())).await.context("open a session")?;
    let taught = teach(&service, lesson).await;
    let closed = service.close().await;
    let stopped = running.stop().await;
    let checkpoint = taught?;
    closed.context("close the session")?;
    stopped?;
    say(&format!("all of it took {:.1} s", start.elapsed().as_secs_f64()));
    Ok(checkpoint)
}

/// Answers before, training, answers after, and a checkpoint: its path.
async fn teach(service: &ServiceClient, lesson: &Lesson) -> Result<String> {
    let base = service.create_sampling_client(MODEL).await.context("make a sampler")?;
    let before = lesson.answers(&base).await?;
    let options = LoraOptions::new(MODEL).rank(lesson.task.settings.rank).seed(lesson.seed);
    let training =
        service.create_lora_training_client(options).await.context("make a training run")?;
    lesson.train(&training).await?;
    let tuned = training.save_weights_and_get_sampling_client().await.context("make a sampler")?;
    let after = lesson.answers(&tuned).await?;
    lesson.compare(&before, &after)?;
    let saved = training.save_state("quickstart").await.context("save a checkpoint")?;
    Ok(saved.path)
}

impl Lesson {
    fn open(model: &Path, arguments: &Arguments) -> Result<Self> {
        let path = model.join("quickstart.json");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let task: Task =
            serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        ensure!(
            !task.train.is_empty() && !task.heldout.is_empty() && task.settings.batch_size > 0,
            "learn from {}: it has no rows, or empty batches",
            path.display()
        );
        let tokenizer = Tokenizer::open(model).context("open the tokenizer")?;
        let steps = arguments.steps.unwrap_or(task.settings.steps);
        Ok(Self { task, tokenizer, steps, seed: arguments.seed })
    }

    /// The greedy answer to every held-out prompt.
    async fn answers(&self, sampler: &SamplingClient) -> Result<Vec<String>> {
        let mut samples = Vec::new();
        for row in &self.task.heldout {
            let params = SamplingParams {
                max_tokens: Some(ANSWER_TOKENS_MAX),
                temperature: 0.0,
                ..SamplingParams::default()
            };
            samples.push(sampler.sample(&self.prompt(row)?, 1, params));
        }
        let mut answers = Vec::new();
        for sample in samples {
            let sample = sample.await.context("sample an answer")?;
            let sequence = sample.sequences.first().context("sample an answer: none came")?;
            answers.push(self.tokenizer.decode_plain(&sequence.tokens)?);
        }
        Ok(answers)
    }

    /// Sends each step before the one before it is done, so that the engine never waits.
    async fn train(&self, training: &TrainingClient) -> Result<()> {
        say(&format!(
            "teaching it to {}: {} steps of {} examples, LoRA of rank {}",
            self.task.description,
            self.steps,
            self.task.settings.batch_size,
            self.task.settings.rank
        ));
        let mut order = Order::new(self.task.train.len(), self.seed);
        let mut progress = Progress::new(self.steps);
        let mut sent: Option<Sent> = None;
        for _ in 0..self.steps {
            let step = self.send(training, &order.take(self.task.settings.batch_size))?;
            if let Some(before) = sent.replace(step) {
                progress.step(before.finish().await?);
            }
        }
        if let Some(last) = sent {
            progress.step(last.finish().await?);
        }
        progress.finish();
        Ok(())
    }

    fn send(&self, training: &TrainingClient, rows: &[usize]) -> Result<Sent> {
        let end = self.tokenizer.token_id(END);
        let end = end.with_context(|| format!("end an answer: the tokenizer has no {END}"))?;
        let mut datums = Vec::new();
        let mut answer_tokens = 0;
        for row in rows.iter().map(|row| &self.task.train[*row]) {
            let mut answer = self.tokenizer.encode(&row.answer, false)?;
            answer.push(end);
            answer_tokens += answer.len();
            datums.push(Datum::completion(&self.prompt(row)?, &answer)?);
        }
        let settings = &self.task.settings;
        let adam = AdamParams {
            learning_rate: settings.learning_rate,
            beta1: settings.beta1,
            beta2: settings.beta2,
            eps: settings.eps,
            weight_decay: settings.weight_decay,
            ..AdamParams::default()
        };
        Ok(Sent {
            answer_tokens,
            forward_backward: training.forward_backward(datums, "cross_entropy"),
            optim_step: training.optim_step(adam),
        })
    }

    fn prompt(&self, row: &Row) -> Result<Vec<u32>> {
        let chat = Chat::new(&[Message::new("user", row.prompt.as_str())], true);
        self.tokenizer.encode_chat(&chat).context("write the chat")
    }

    fn compare(&self, before: &[String], after: &[String]) -> Result<()> {
        let heldout = &self.task.heldout;
        say("questions that it was not trained on:");
        for ((row, before), after) in heldout.iter().zip(before).zip(after).take(SHOWN) {
            say(&format!("  {}", row.prompt));
            say(&format!("    before: {before}"));
            say(&format!("    after:  {after}"));
        }
        let (before, after) = (score(heldout, before), score(heldout, after));
        say(&format!(
            "right answers of {}: {:.0} % before, {:.0} % after",
            heldout.len(),
            before * 100.0,
            after * 100.0
        ));
        if before > BEFORE_MAX || after < AFTER_MIN {
            bail!(
                "teach the task: at most {:.0} % before and at least {:.0} % after were to be right; \
                 give more --steps, or another --seed",
                BEFORE_MAX * 100.0,
                AFTER_MIN * 100.0
            );
        }
        Ok(())
    }
}

/// The share of rows whose answer is given exactly.
#[expect(clippy::cast_precision_loss, reason = "counts of rows in a file")]
fn score(rows: &[Row], answers: &[String]) -> f64 {
    let right = rows.iter().zip(answers).filter(|(row, answer)| row.answer == **answer).count();
    right as f64 / rows.len() as f64
}

/// A step that the server is working on.
struct Sent {
    answer_tokens: usize,
    forward_backward: ApiFuture<ForwardBackwardOutput>,
    optim_step: ApiFuture<OptimStepResponse>,
}

impl Sent {
    /// The mean loss of the step's answer tokens.
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens in a batch")]
    async fn finish(self) -> Result<f64> {
        let result = self.forward_backward.await.context("compute the gradient")?;
        self.optim_step.await.context("apply the gradient")?;
        let loss = result.metrics.get("loss:sum").context("read the loss: there is none")?;
        Ok(loss / self.answer_tokens as f64)
    }
}

/// Rows in random order, all of them before any comes again.
struct Order {
    rows: Vec<usize>,
    taken: usize,
    random: Random,
}

impl Order {
    /// `count` ≥ 1.
    fn new(count: usize, seed: u64) -> Self {
        Self { rows: (0..count).collect(), taken: count, random: Random::new(seed) }
    }

    fn take(&mut self, count: usize) -> Vec<usize> {
        let mut batch = Vec::with_capacity(count);
        while batch.len() < count {
            if self.taken == self.rows.len() {
                self.random.shuffle(&mut self.rows);
                self.taken = 0;
            }
            batch.push(self.rows[self.taken]);
            self.taken += 1;
        }
        batch
    }
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    steps: usize,
    done: usize,
}

impl Progress {
    fn new(steps: usize) -> Self {
        let bar = is_terminal().then(|| {
            let bar = ProgressBar::new(steps as u64);
            if let Ok(style) = ProgressStyle::with_template("  {bar:40} {pos}/{len}  loss {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, steps, done: 0 }
    }

    fn step(&mut self, loss: f64) {
        self.done += 1;
        let shown =
            self.done == 1 || self.done == self.steps || self.done.is_multiple_of(STEPS_PER_LINE);
        match &self.bar {
            Some(bar) => {
                bar.set_message(format!("{loss:.3}"));
                bar.inc(1);
            }
            None if shown => say(&format!("  step {:3}/{}  loss {loss:.3}", self.done, self.steps)),
            None => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn next_steps(data_dir: &Path, checkpoint: &str) -> Vec<String> {
    let binary = std::env::current_exe()
        .map_or_else(|_| "tinsmith".to_owned(), |path| path.display().to_string());
    vec![
        format!("the adapter with its optimizer is saved: {checkpoint}"),
        "to go on from it, serve the same data:".to_owned(),
        format!("  {binary} serve --data-dir {}", data_dir.display()),
        "and in another terminal, with the official Python SDK (pip install 'tinker[torch]'):"
            .to_owned(),
        "  export TINKER_BASE_URL=http://127.0.0.1:8000 TINKER_API_KEY=tml-local".to_owned(),
        "  python".to_owned(),
        "  >>> import tinker".to_owned(),
        format!(
            "  >>> training = tinker.ServiceClient().create_training_client_from_state_with_optimizer('{checkpoint}')"
        ),
        "  >>> training.get_info()".to_owned(),
    ]
}
