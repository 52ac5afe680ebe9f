//! `tinsmith serve`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::{Flags, Settings, Values},
    logs, memory,
    models::{self, Offer},
    run,
    terminal::say,
};

/// Flags of `serve`; each but `--config` is a setting of the same name.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// A directory in Hugging Face format, NAME=DIR, or a hub id, ORG/NAME; none: the model that ships.
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// Address to listen on (127.0.0.1).
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on (8000); 0 takes a free one.
    #[arg(long)]
    port: Option<String>,
    /// Where everything durable lives.
    #[arg(long)]
    data_dir: Option<String>,
    /// What weights are kept in: auto, f32 or bf16.
    #[arg(long)]
    dtype: Option<String>,
    /// auto, or a kernel set, NAME or NAME:PATH: f32, w16-avx2, bf16-avx512, bf16-amx, f32:portable, …
    #[arg(long)]
    kernels: Option<String>,
    /// Memory to use at most, as bytes or like 12GiB; auto: 7/8 of the machine's, or of its container's.
    #[arg(long)]
    memory: Option<String>,
    /// Threads that compute; 0: one for each physical core.
    #[arg(long)]
    threads: Option<String>,
    /// NAME=DIR: what clients load as the tokenizer of a model.
    #[arg(long)]
    tokenizer: Vec<String>,
    /// Settings file; without it `$TINSMITH_CONFIG`, else `./tinsmith.toml`.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Listen on other addresses than localhost without keys.
    #[arg(long)]
    insecure_no_auth: bool,
}

impl Arguments {
    fn settings(&self) -> Result<Settings> {
        // An empty list means the model that ships; an unset variable in a script shall not.
        ensure!(
            self.models.iter().all(|model| !model.trim().is_empty()),
            "read the model \"\": give DIR or NAME=DIR, or no MODEL at all"
        );
        let list = |items: &[String]| (!items.is_empty()).then(|| items.join(","));
        let flags: Flags = vec![
            ("models", list(&self.models)),
            ("host", self.host.clone()),
            ("port", self.port.clone()),
            ("data_dir", self.data_dir.clone()),
            ("dtype", self.dtype.clone()),
            ("kernels", self.kernels.clone()),
            ("memory", self.memory.clone()),
            ("threads", self.threads.clone()),
            ("tokenizer", list(&self.tokenizer)),
            ("insecure_no_auth", self.insecure_no_auth.then(|| true.to_string())),
        ];
        Settings::new(&Values::load(&flags, self.config.as_deref())?)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let settings = arguments.settings()?;
    logs::start(&settings.log, settings.log_format)?;
    let offers = models::offers(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("tinsmith-http")
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(&settings, &offers))
}

async fn serve(settings: &Settings, offers: &[Offer]) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    let running = run::start(settings, offers).await?;
    for line in greeting(settings, &running) {
        say(&line);
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = running.failed() => bail!("keep the engine running: see the log above; start again to go on from the journal"),
    }
    tracing::info!("stopping");
    running.stop().await
}

fn greeting(settings: &Settings, running: &run::Running) -> Vec<String> {
    let url = running.url();
    let key = if running.address.ip().is_loopback() {
        "no key needed: only this machine can connect"
    } else {
        "no key needed: anybody who reaches this address can train and sample"
    };
    let model = &running.names[0];
    let mut lines = memory::lines(&running.room, &running.plans);
    lines.extend([
        format!("tinsmith {} serves {}", env!("CARGO_PKG_VERSION"), running.names.join(", ")),
        format!("{url} ({key}; data in {})", settings.data_dir.display()),
        "to use it from the official Python SDK:".to_owned(),
        "  pip install 'tinker[torch]'".to_owned(),
        format!("  export TINKER_BASE_URL={url} TINKER_API_KEY=tml-local"),
        format!(
            "  python -c \"import tinker; print(tinker.ServiceClient().create_sampling_client(base_model='{model}'))\""
        ),
    ]);
    lines
}
