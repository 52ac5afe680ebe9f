//! `tinsmith train`: supervised fine-tuning on a JSONL file, against any server.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;
use tinsmith::{
    AdamParams, ApiFuture, Dataset, Datum, ForwardBackwardOutput, Keep, LoraOptions, Row,
    SaveOptions, Schedule, ServiceClient, Shape, TinkerPath, Tokenizer, TrainOn, TrainingClient,
    dataset::{Batching, DatumOptions, TooLong},
    wire::OptimStepResponse,
};

use crate::{
    remote::Remote,
    table::{Output, Table},
    terminal::problem,
    tokenizers,
};

mod curve;
mod progress;
mod resume;

use progress::Progress;
use resume::Mark;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The data: one JSON object a line, with `messages`, with `prompt` and `completion`, or with `text`.
    file: PathBuf,
    /// The base model; without it, the first that the server can train.
    #[arg(long)]
    base_model: Option<String>,
    /// Columns of the adapter's A and rows of its B.
    #[arg(long, default_value_t = 32)]
    rank: u32,
    /// Times that each row is learnt from.
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// Rows of one step.
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// The highest learning rate.
    #[arg(long, default_value_t = 1e-4)]
    learning_rate: f64,
    /// How the learning rate goes: constant, linear, cosine, polynomial, wsd, `inverse_sqrt`, exponential.
    #[arg(long, default_value = "constant")]
    schedule: Shape,
    /// Steps in which the learning rate rises to its highest.
    #[arg(long, default_value_t = 0)]
    warmup: u64,
    /// Rows that are not learnt from: their loss is shown after every epoch, or as --every says.
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Steps from one checkpoint, and one look at --eval, to the next; without it, an epoch.
    #[arg(long, value_name = "STEPS")]
    every: Option<usize>,
    /// How checkpoints are named, before their step; without it, as the file.
    #[arg(long)]
    name: Option<String>,
    /// Go on from a checkpoint that this command made of the same file; without a path, from the newest.
    #[arg(long, value_name = "PATH", num_args = 0..=1)]
    resume: Option<Option<TinkerPath>>,
    /// Decides the adapter's first values and the order of the rows.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What is learnt of conversations.
    #[arg(long, default_value_t = TrainOn::default())]
    train_on: TrainOn,
    /// Most tokens of a row.
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// What is done with longer rows.
    #[arg(long, value_enum, default_value = "refuse")]
    too_long: Longer,
    /// The directory or hub id of the tokenizer; without it, as the server says.
    #[arg(long, value_name = "DIR|ID")]
    tokenizer: Option<String>,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Longer {
    Refuse,
    Skip,
    Truncate,
}

/// A run that is under way.
struct Training<'a> {
    arguments: &'a Arguments,
    client: TrainingClient,
    rows: Dataset<Datum>,
    held_out: Option<Dataset<Datum>>,
    schedule: Schedule,
    mark: Mark,
    name: String,
    losses: Vec<f64>,
    eval_losses: Vec<(usize, f64)>,
    checkpoint: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // What is wrong with the files is said before anything is started.
    let rows = Dataset::open(&arguments.file).context("read the data")?;
    let held_out = arguments.eval.as_ref().map(Dataset::open).transpose();
    let held_out = held_out.context("read the data of --eval")?;
    let remote = &arguments.remote;
    let service = remote.session()?;
    let trained = arguments.train(&service, &rows, held_out.as_ref());
    let closed = remote.wait("close the session", service.close());
    trained.and(closed)
}

impl Arguments {
    fn train(
        &self,
        service: &ServiceClient,
        rows: &Dataset<Row>,
        held_out: Option<&Dataset<Row>>,
    ) -> Result<()> {
        let mark = Mark::of(self, rows.len());
        let (client, step) = match &self.resume {
            None => (self.create(service)?, 0),
            Some(path) => resume::resume(self, service, path.as_ref(), &mark)?,
        };
        let said = client.tokenizer_id();
        let said = Some(said.as_str());
        let tokenizer = tokenizers::open(self.tokenizer.as_deref(), client.base_model(), said)?;
        let rows = self.datums(rows, &tokenizer)?;
        let held_out = held_out.map(|rows| self.datums(rows, &tokenizer)).transpose();
        let batches = rows.batches(self.batching(0)?);
        let (steps, an_epoch) = (batches.steps(), batches.steps_per_epoch());
        ensure!(step < steps, "go on: all {steps} steps are done; give more --epochs");
        let schedule = Schedule::new(self.schedule, self.learning_rate, steps as u64)?;
        let mut training = Training {
            arguments: self,
            client,
            held_out: held_out.context("read the data of --eval")?,
            rows,
            schedule: schedule.warmup(self.warmup)?,
            mark,
            name: self.checkpoint_name(),
            losses: Vec::new(),
            eval_losses: Vec::new(),
            checkpoint: None,
        };
        training.run(step, steps, self.every.unwrap_or(an_epoch).max(1))?;
        training.report()
    }

    fn create(&self, service: &ServiceClient) -> Result<TrainingClient> {
        let remote = &self.remote;
        let model = match &self.base_model {
            Some(model) => model.clone(),
            None => {
                let models = remote.wait("list the models", service.get_server_capabilities())?;
                let mut models = models.supported_models.into_iter();
                let first = models.find(|model| model.trainable != Some(false));
                let first = first.and_then(|model| model.model_name);
                first.context("find a model that can be trained: give --base-model")?
            }
        };
        let options = LoraOptions::new(model).rank(self.rank).seed(self.seed);
        remote.wait("make a training run", service.create_lora_training_client(options))
    }

    fn datums(&self, rows: &Dataset<Row>, tokenizer: &Tokenizer) -> Result<Dataset<Datum>> {
        let options = DatumOptions {
            train_on: self.train_on,
            tokens_max: self.max_length,
            too_long: match self.too_long {
                Longer::Refuse => TooLong::Refuse,
                Longer::Skip => TooLong::Skip,
                Longer::Truncate => TooLong::Truncate(Keep::Beginning),
            },
        };
        let datums = rows.try_map(|row| row.datum(tokenizer, &options));
        let datums = datums.context("make tokens of the data")?;
        ensure!(!datums.is_empty(), "learn from the data: every row is too long");
        if datums.len() < rows.len() {
            problem(&format!("{} of {} rows are left out", rows.len() - datums.len(), rows.len()));
        }
        Ok(datums)
    }

    /// What checkpoints are called before their step: one word.
    fn checkpoint_name(&self) -> String {
        let stem = || self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = self.name.clone().or_else(stem).unwrap_or_default();
        let letter = |letter: char| {
            if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' }
        };
        name.chars().map(letter).collect()
    }

    fn batching(&self, from_step: usize) -> Result<Batching> {
        let batching = Batching::new(self.batch_size)?.seed(self.seed).epochs(self.epochs);
        Ok(batching.starting_at(from_step))
    }
}

/// A step that the server is working on.
struct Sent {
    forward_backward: ApiFuture<ForwardBackwardOutput>,
    optim_step: ApiFuture<OptimStepResponse>,
    tokens: usize,
}

impl Training<'_> {
    /// Sends each step before the one before it is done, so that the server never waits.
    fn run(&mut self, from: usize, steps: usize, every: usize) -> Result<()> {
        let rows = self.rows.clone();
        let mut progress = Progress::new(self.arguments.output, from, steps);
        let mut sent: Option<Sent> = None;
        for (step, batch) in (from..).zip(rows.batches(self.arguments.batching(from)?)) {
            let next = self.send(step, &batch);
            if let Some(before) = sent.replace(next) {
                progress.step(self.finish(before)?);
            }
            if (step + 1) % every == 0 || step + 1 == steps {
                if let Some(last) = sent.take() {
                    progress.step(self.finish(last)?);
                }
                self.stop_over(step + 1, &progress)?;
            }
        }
        progress.finish();
        Ok(())
    }

    fn send(&self, step: usize, batch: &[&Datum]) -> Sent {
        let learning_rate = self.schedule.at(step as u64);
        Sent {
            tokens: batch.iter().map(|datum| datum.trained_tokens()).sum(),
            forward_backward: self.client.forward_backward(owned(batch), "cross_entropy"),
            optim_step: self
                .client
                .optim_step(AdamParams { learning_rate, ..AdamParams::default() }),
        }
    }

    /// The step's mean loss of a token.
    fn finish(&mut self, sent: Sent) -> Result<f64> {
        let remote = &self.arguments.remote;
        let output = remote.wait("compute the gradient", sent.forward_backward)?;
        remote.wait("apply the gradient", sent.optim_step)?;
        let loss = mean(&output, sent.tokens)?;
        self.losses.push(loss);
        Ok(loss)
    }

    /// The loss of what is held out, and a checkpoint.
    fn stop_over(&mut self, step: usize, progress: &Progress) -> Result<()> {
        let remote = &self.arguments.remote;
        if let Some(rows) = &self.held_out {
            let rows: Vec<&Datum> = rows.rows().iter().collect();
            let tokens = rows.iter().map(|datum| datum.trained_tokens()).sum();
            let call = self.client.forward(owned(&rows), "cross_entropy");
            let loss = mean(&remote.wait("compute the loss of --eval", call)?, tokens)?;
            self.eval_losses.push((step, loss));
            progress.note(&format!("  step {step}  loss of --eval {loss:.4}"));
        }
        let name = format!("{}-{step:06}", self.name);
        let options = SaveOptions::new(name).user_metadata(self.mark.at(step));
        let saved = remote.wait("save a checkpoint", self.client.save_state(options))?;
        progress.note(&format!("  step {step}  saved {}", saved.path));
        self.checkpoint = Some(saved.path);
        Ok(())
    }

    fn report(&self) -> Result<()> {
        let Self { arguments: Arguments { remote, output, .. }, client, .. } = self;
        let call = client.save_weights_for_sampler(self.name.as_str());
        let sampler = remote.wait("save weights to sample from", call)?.path;
        let last = self.losses.last();
        let mut table = Table::properties();
        for line in curve::lines(&self.losses) {
            table.row(vec![line]);
        }
        if output.is_json() {
            let eval: Vec<_> = self
                .eval_losses
                .iter()
                .map(|(step, loss)| json!({ "step": step, "loss": loss }))
                .collect();
            let json = json!({
                "training_run_id": client.model_id(),
                "checkpoint": self.checkpoint,
                "sampler": sampler,
                "losses": self.losses,
                "eval": eval,
            });
            return output.show(&json, &table);
        }
        output.show(&json!(null), &table)?;
        let mut table = Table::properties();
        table.property("training run", Some(client.model_id()));
        table.property("last loss", last.map(|loss| format!("{loss:.4}")));
        table.property("to train on from", self.checkpoint.as_ref());
        table.property("to sample from", sampler.as_ref());
        let command = sampler.map(|path| format!("tinsmith sample --chat --path {path}"));
        table.property("try it", command);
        output.show(&json!(null), &table)
    }
}

fn owned(batch: &[&Datum]) -> Vec<Datum> {
    batch.iter().map(|datum| (*datum).clone()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens in a batch")]
fn mean(output: &ForwardBackwardOutput, tokens: usize) -> Result<f64> {
    let loss = output.loss().context("read the loss: the server gives none")?;
    Ok(loss / tokens.max(1) as f64)
}
