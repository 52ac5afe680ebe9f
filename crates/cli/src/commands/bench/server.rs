//! What a client waits for, over HTTP and with every request on disk before it is acknowledged.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use tinsmith::{
    AdamParams, Config, Datum, LoraOptions, SamplingParams, ServiceClient, TrainingClient,
};

use super::{
    Counts, now,
    report::{Figure, percentile},
};
use crate::{
    config::{Flags, Settings},
    models, run,
};

/// Latencies of a server in this process. `settings` serve the model under `name`.
pub(super) async fn latencies(
    settings: &Settings,
    name: &str,
    counts: &Counts,
) -> Result<Vec<Figure>> {
    let running = run::start(settings, &models::offers(settings)?).await?;
    let measured = measure(&running.url(), name, counts).await;
    running.stop().await?;
    measured
}

async fn measure(url: &str, name: &str, counts: &Counts) -> Result<Vec<Figure>> {
    let service = ServiceClient::connect(Config::new(url)).await.context("open a session")?;
    let run = async || {
        let options = LoraOptions::new(name).rank(32).seed(1);
        service.create_lora_training_client(options).await.context("make a training run")
    };
    let submits = submits(url, &run().await?, counts.optim_steps).await?;
    let results = results(&run().await?, counts.optim_steps).await?;
    let first_tokens = first_tokens(&run().await?, counts.snapshots).await?;
    service.close().await.context("close the session")?;
    let figure = |what: &str, values: &[f64], percent| {
        Figure::new(name, format!("{what}, p{percent}"), percentile(values, percent), "ms")
    };
    let [submit, result] = ["optim_step: submit", "optim_step: submit to result"];
    Ok(vec![
        figure(submit, &submits, 50),
        figure(submit, &submits, 95),
        figure(result, &results, 50),
        figure(result, &results, 95),
        figure("unnamed save to first token", &first_tokens, 50),
    ])
}

/// Milliseconds until a request is acknowledged: it is on disk then. Without the SDK, which does not show
/// this moment.
pub(super) async fn submits(
    url: &str,
    training: &TrainingClient,
    count: usize,
) -> Result<Vec<f64>> {
    let http = reqwest::Client::new();
    let post = async |name: &str, body: &Value| -> Result<Value> {
        let sent = http.post(format!("{url}/api/v1/{name}")).json(body).send().await;
        let response = sent.with_context(|| format!("post {name}"))?;
        Ok(response.error_for_status().with_context(|| format!("post {name}"))?.json().await?)
    };
    let mut times = Vec::new();
    for seq_id in 1..=count {
        let request = json!({
            "model_id": training.model_id(),
            "seq_id": seq_id,
            "adam_params": AdamParams::default(),
        });
        let start = now();
        let submitted = post("optim_step", &request).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let poll = json!({ "request_id": submitted["request_id"] });
        post("retrieve_future", &poll).await?;
    }
    Ok(times)
}

/// Milliseconds from a submission to its result.
async fn results(training: &TrainingClient, count: usize) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..count {
        let start = now();
        training.optim_step(AdamParams::default()).await.context("make an optimizer step")?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// Milliseconds from an unnamed save of changed weights to the first token that is sampled from them.
async fn first_tokens(training: &TrainingClient, count: usize) -> Result<Vec<f64>> {
    let prompt: Vec<u32> = (3..19).collect();
    let datum = Datum::next_token(&prompt[..15], &prompt[1..], &[1.0; 15])?;
    let mut times = Vec::new();
    for _ in 0..count {
        let gradient = training.forward_backward(vec![datum.clone()], "cross_entropy");
        training.optim_step(AdamParams::default()).await.context("make an optimizer step")?;
        gradient.await.context("compute a gradient")?;
        let start = now();
        let sampler =
            training.save_weights_and_get_sampling_client().await.context("make a sampler")?;
        let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::default() };
        sampler.sample(&prompt, 1, params).await.context("sample a token")?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// A `tinsmith serve` in a process of its own, which does not outlive its handle.
pub(super) struct Server {
    child: Child,
    _data: TempDir,
}

impl Server {
    /// Starts one that serves a model under `name`, with these flags, and waits until it answers; where it is.
    pub(super) async fn start(name: &str, model: &Path, flags: &Flags) -> Result<(Self, String)> {
        let data = tempfile::tempdir().context("make a temporary directory")?;
        let binary = std::env::current_exe().context("find this binary")?;
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .arg(format!("{name}={}", model.display()))
            .args(["--host", "127.0.0.1", "--port", "0", "--data-dir"])
            .arg(data.path());
        for (name, value) in flags {
            command.args(value.iter().map(|value| format!("--{}={value}", name.replace('_', "-"))));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start a server")?;
        let mut server = Self { child, _data: data };
        let stdout = server.child.stdout.take().context("read what the server prints")?;
        for line in BufReader::new(stdout).lines() {
            let line = line.context("read what the server prints")?;
            let Some(url) = line.split(' ').find(|word| word.starts_with("http://")) else {
                continue;
            };
            let answer = reqwest::get(format!("{url}/api/v1/healthz")).await;
            answer.and_then(reqwest::Response::error_for_status).context("ask for its health")?;
            return Ok((server, url.to_owned()));
        }
        bail!("start a server: it ended; `tinsmith serve` says why")
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Milliseconds from the start of `tinsmith serve` until it answers.
pub(super) async fn start_up(name: &str, model: &Path, counts: &Counts) -> Result<Figure> {
    let mut times = Vec::new();
    for _ in 0..counts.starts {
        let start = now();
        let _server = Server::start(name, model, &Flags::new()).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Figure::new(name, "start-up until it answers, p50", percentile(&times, 50), "ms"))
}
