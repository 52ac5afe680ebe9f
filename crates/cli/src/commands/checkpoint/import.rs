//! `tinsmith checkpoint import`: a PEFT directory becomes a checkpoint that every client can use.
//!
//! It opens the store itself, so that no server may run on the data directory meanwhile.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use tinsmith_backend::ReferenceBackend;
use tinsmith_engine::{DecoderConfig, Files, LoraSpec, ModelDir, peft};
use tinsmith_store::{
    CheckpointKind, LoraRecord, Manifest, NewImport, NewRun, NewSession, Store, SystemClock,
};
use tinsmith_types::{
    ids::{ModelId, SeqId, TenantId},
    path::{self, CheckpointPath},
};

use crate::{
    config::{self, Flags, Settings, Values},
    memory::Room,
    models::{self, Offer},
    terminal::say,
};

/// The files of an adapter, and the one that older versions of PEFT wrote, which a refusal names.
const FILES: [&str; 3] = [peft::CONFIG, peft::WEIGHTS, "adapter_model.bin"];
/// What stands for the kernel set: none of ours computed it.
const KERNEL_SET: &str = "imported";
/// Longest name of a checkpoint, in bytes.
const NAME_BYTES_MAX: usize = 255;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The adapter: a directory with `adapter_config.json` and `adapter_model.safetensors`.
    dir: PathBuf,
    /// The base model: a name under which it is served, or NAME=DIR.
    #[arg(long, value_name = "NAME")]
    base: String,
    /// The checkpoint's name; without it, the directory's.
    #[arg(long)]
    name: Option<String>,
    /// Where everything durable lives; no server may be running on it.
    #[arg(long)]
    data_dir: Option<String>,
    /// Take an adapter that names another base model, as long as its shapes fit.
    #[arg(long)]
    any_base: bool,
    /// How the paths are printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Settings file; without it `$TINSMITH_CONFIG`, else `./tinsmith.toml`.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// An adapter in our layout, checked.
struct Imported {
    base_model: String,
    base_digest: String,
    lora: LoraRecord,
    files: Files,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let settings = arguments.settings()?;
    let name = checkpoint_name(arguments)?;
    let imported = read(arguments, &settings)
        .with_context(|| format!("import {}", arguments.dir.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let run = runtime.block_on(publish(&settings, &imported, &name))?;
    report(arguments, &imported, &run, &name);
    Ok(())
}

impl Arguments {
    fn settings(&self) -> Result<Settings> {
        let models = self.base.contains('=').then(|| self.base.clone());
        let flags: Flags = vec![("models", models), ("data_dir", self.data_dir.clone())];
        Settings::new(&Values::load(&flags, self.config.as_deref())?)
    }
}

/// One segment of a `tinker://` path.
fn checkpoint_name(arguments: &Arguments) -> Result<String> {
    let dir = arguments.dir.canonicalize();
    let dir = dir.with_context(|| format!("open {}", arguments.dir.display()))?;
    let of_dir = dir.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = arguments.name.clone().or(of_dir).context("name the checkpoint: give --name")?;
    let is_plain = name.chars().all(|letter| letter.is_alphanumeric() || "._-".contains(letter));
    ensure!(
        is_plain && !name.is_empty() && !name.starts_with('.') && name.len() <= NAME_BYTES_MAX,
        "name the checkpoint {name:?}: give --name with letters, digits, `_`, `-` and `.` within it"
    );
    Ok(name)
}

fn read(arguments: &Arguments, settings: &Settings) -> Result<Imported> {
    let mut files = Files::new();
    for name in FILES {
        let path = arguments.dir.join(name);
        match fs::read(&path) {
            Ok(content) => drop(files.insert(name.to_owned(), content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", path.display()));
            }
        }
    }
    let (name, offer) = base(arguments, settings)?;
    let theirs = peft::base_model_name(&files)?;
    if let Some(theirs) = theirs.filter(|theirs| !arguments.any_base && !is_same(theirs, &offer)) {
        bail!(
            "use it on {name}: its {} says that it was trained on {theirs:?}; if that is the same model, \
             give --any-base",
            peft::CONFIG
        );
    }
    let dir = ModelDir::open(&offer.dir).with_context(|| format!("open the base model {name}"))?;
    let (spec, files) = convert(dir.config(), &files, &name)?;
    let rank = u32::try_from(spec.rank).context("use its rank")?;
    ensure!(
        rank <= settings.lora_rank_max,
        "use its rank: {rank} is above lora_rank_max = {}",
        settings.lora_rank_max
    );
    let LoraSpec { rank: _, seed, train_attn, train_mlp, train_unembed } = spec;
    let lora = LoraRecord { rank, seed, train_attn, train_mlp, train_unembed };
    Ok(Imported { base_model: name, base_digest: dir.digest(), lora, files })
}

/// The model that `--base` names, among those that would be served.
fn base(arguments: &Arguments, settings: &Settings) -> Result<(String, Offer)> {
    let wanted = arguments.base.split_once('=').map_or(&*arguments.base, |(name, _)| name);
    let offers = models::offers(settings)?;
    let mut names: Vec<String> = Vec::new();
    for offer in offers {
        if offer.names.iter().any(|name| name == wanted) {
            return Ok((wanted.to_owned(), offer));
        }
        names.extend(offer.names);
    }
    bail!(
        "find the base model {wanted:?}: the settings name {}; give --base one of them, or NAME=DIR as for \
         `tinsmith serve`",
        names.join(", ")
    )
}

/// Whether an adapter's name for its base model means this one: a name, the hub id or the directory, or the
/// last part of one of them.
fn is_same(theirs: &str, offer: &Offer) -> bool {
    let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().map(str::to_lowercase);
    let dir = offer.dir.to_string_lossy();
    let ours = offer.names.iter().map(String::as_str).chain([&*offer.tokenizer, &*dir]);
    ours.into_iter().any(|ours| last(ours) == last(theirs))
}

/// Reads the adapter with all its checks, and writes it as the server does.
fn convert(
    config: &DecoderConfig,
    files: &Files,
    base_model_name: &str,
) -> Result<(LoraSpec, Files)> {
    let mut backend = ReferenceBackend;
    let adapter = peft::read_adapter(&mut backend, config, files)?;
    let mut written = Files::new();
    peft::write_adapter(&mut backend, config, &adapter, base_model_name, &mut written);
    Ok((*adapter.spec(), written))
}

async fn publish(settings: &Settings, imported: &Imported, name: &str) -> Result<ModelId> {
    let limits = config::store(settings, Room::of(settings).requests());
    let opened = Store::open(limits, SystemClock::new());
    let place = settings.data_dir.display();
    let store = opened.with_context(|| {
        format!("open the data directory {place}: a server that runs on it has to be stopped first")
    })?;
    let tenant = TenantId::from("local");
    let session = NewSession {
        tags: vec![KERNEL_SET.to_owned()],
        user_metadata: serde_json::json!({}),
        sdk_version: format!("tinsmith-{}", env!("CARGO_PKG_VERSION")),
        project_id: None,
        display_name: None,
    };
    let session = store.create_session(&tenant, session, None).await.context("make a session")?;
    let optimizer_config = serde_json::json!({ "type": "adamw" });
    let manifest = Manifest {
        format: 1,
        base_model: imported.base_model.clone(),
        base_digest: imported.base_digest.clone(),
        lora: imported.lora,
        alpha: 32,
        kernel_set: KERNEL_SET.to_owned(),
        model_id: ModelId::of(&session.id, 0),
        applied_seq: SeqId(0),
        optimizer: false,
        optimizer_config: optimizer_config.clone(),
        files: BTreeMap::new(),
    };
    let files = imported.files.iter();
    let files = files.map(|(name, content)| (name.clone(), Bytes::from(content.clone()))).collect();
    let (blob, size_bytes) = store.stage(manifest, files).await.context("write the files")?;
    let run = NewRun {
        session_id: session.id,
        base_model: imported.base_model.clone(),
        base_digest: imported.base_digest.clone(),
        lora: imported.lora,
        optimizer_config,
        user_metadata: serde_json::json!({}),
        kernel_set: KERNEL_SET.to_owned(),
    };
    let kinds = vec![CheckpointKind::Weights, CheckpointKind::SamplerWeights];
    let import = NewImport { run, blob, size_bytes, kinds, name: name.to_owned() };
    let run = store.import(&tenant, import).await.context("name the checkpoint")?;
    store.close();
    Ok(run.id)
}

fn report(arguments: &Arguments, imported: &Imported, run: &ModelId, name: &str) {
    let path = |kind| CheckpointPath { run: run.clone(), kind, name: name.to_owned() }.to_string();
    let weights = path(path::CheckpointKind::Weights);
    let sampler_weights = path(path::CheckpointKind::SamplerWeights);
    let lora = &imported.lora;
    let lines = match arguments.format {
        Format::Json => {
            let json = serde_json::json!({
                "base_model": imported.base_model,
                "weights": weights,
                "sampler_weights": sampler_weights,
                "rank": lora.rank,
                "train_attn": lora.train_attn,
                "train_mlp": lora.train_mlp,
                "train_unembed": lora.train_unembed,
            });
            vec![format!("{json:#}")]
        }
        Format::Table => vec![
            format!("base model       {}", imported.base_model),
            format!("rank             {}", lora.rank),
            format!("trains           {}", parts(lora)),
            format!("to train from    {weights}"),
            format!("to sample from   {sampler_weights}"),
        ],
    };
    for line in lines {
        say(&line);
    }
}

fn parts(lora: &LoraRecord) -> String {
    let parts = [
        (lora.train_attn, "attention"),
        (lora.train_mlp, "MLP"),
        (lora.train_unembed, "unembedding"),
    ];
    let parts: Vec<_> = parts.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
    parts.join(", ")
}
