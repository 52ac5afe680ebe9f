//! The base models that are served: directories and hub ids with their names, opened and packed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use tinsmith_backend::Backend as _;
use tinsmith_engine::{Decoder, Engine, ModelDir};
use tinsmith_server::{Catalog, ModelEntry};
use tinsmith_tokenizer::Tokenizer;

use crate::{
    config::Settings,
    device::{self, Device},
    hub,
    memory::{self, Planned, Room, Wish},
};

/// The first model is also called this.
const FIRST: &str = "base";

/// One directory, with every name that it is offered under.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) names: Vec<String>,
    pub(crate) dir: PathBuf,
    /// What clients load the tokenizer from: the directory, or the hub id.
    pub(crate) tokenizer: String,
}

/// What the worker runs and the server offers.
pub(crate) struct Loaded {
    pub(crate) models: Vec<tinsmith_worker::Model<Device>>,
    pub(crate) catalog: Catalog,
}

/// The models that the settings name, or the one that ships; the first is also `base`. Hub ids that are not
/// in the hub's cache are downloaded, which may take long: call this before signals are caught.
///
/// # Errors
///
/// A name given twice, no such directory, a download that fails, or the shipped model is not there.
pub(crate) fn offers(settings: &Settings) -> Result<Vec<Offer>> {
    let mut offers: Vec<Offer> = Vec::new();
    for model in &settings.models {
        let (name, place) = match model.split_once('=') {
            Some((name, place)) => (name.to_owned(), place),
            None => (default_name(model), model.as_str()),
        };
        ensure!(
            !name.is_empty() && !place.is_empty(),
            "read the model {model:?}: give DIR or NAME=DIR"
        );
        ensure!(
            !offers.iter().any(|offer| offer.names.contains(&name)),
            "offer two models as {name:?}: give one of them another NAME=DIR"
        );
        let found = if is_hub_id(place) { hub::fetch(place, &settings.hub)? } else { place.into() };
        let dir = found.canonicalize().with_context(|| {
            format!(
                "open the model directory {place}: give DIR or NAME=DIR of a model in Hugging Face format, \
                 or a hub id, ORG/NAME"
            )
        })?;
        match offers.iter_mut().find(|offer| offer.dir == dir) {
            Some(offer) => offer.names.push(name),
            None => {
                let tokenizer =
                    if is_hub_id(place) { place.to_owned() } else { dir.display().to_string() };
                offers.push(Offer { names: vec![name], dir, tokenizer });
            }
        }
    }
    if offers.is_empty() {
        let dir = shipped()?;
        let tokenizer = dir.display().to_string();
        offers.push(Offer { names: vec!["nano".to_owned()], dir, tokenizer });
    }
    if !offers.iter().any(|offer| offer.names.iter().any(|name| name == FIRST)) {
        offers[0].names.push(FIRST.to_owned());
    }
    Ok(offers)
}

/// The model in the repository, found from the working directory, the binary, or the build.
pub(crate) fn shipped() -> Result<PathBuf> {
    let relative = Path::new("models/nano");
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let binary = std::env::current_exe().ok();
    let above = binary.iter().flat_map(|path| path.ancestors().map(Path::to_owned));
    let places = [PathBuf::from("."), built].into_iter().chain(above);
    for place in places {
        let dir = place.join(relative);
        if dir.join("config.json").is_file() {
            return dir.canonicalize().with_context(|| format!("open {}", dir.display()));
        }
    }
    bail!("find the model that ships (models/nano): run from the repository, or name a MODEL")
}

/// A model whose files have been looked at, and whose memory is planned; nothing is loaded.
pub(crate) struct Opened {
    pub(crate) offer: Offer,
    pub(crate) dir: ModelDir,
    pub(crate) planned: Planned,
    device: Device,
}

/// Opens every model, and shares out the memory among them.
///
/// # Errors
///
/// What is wrong with which file, or what does not fit, and how to mend it.
pub(crate) fn open(settings: &Settings, offers: &[Offer], room: &Room) -> Result<Vec<Opened>> {
    let mut models = Vec::new();
    for offer in offers {
        let dir = ModelDir::open(&offer.dir)
            .with_context(|| format!("serve {} from {}", offer.names[0], offer.dir.display()))?;
        let device = device::open(settings, dir.stored_dtype())
            .with_context(|| format!("serve {}", offer.names[0]))?;
        models.push((offer, dir, device));
    }
    let wishes: Vec<Wish<'_>> = models
        .iter()
        .map(|(offer, dir, device)| Wish { name: &offer.names[0], dir, device })
        .collect();
    let plans = memory::share(settings, room, &wishes)?;
    let opened = models.into_iter().zip(plans).map(|((offer, dir, device), planned)| Opened {
        offer: offer.clone(),
        dir,
        planned,
        device,
    });
    Ok(opened.collect())
}

/// Packs every model on one device's threads.
///
/// # Errors
///
/// What is wrong with which file, and how to mend it.
pub(crate) fn load(settings: &Settings, opened: Vec<Opened>) -> Result<Loaded> {
    let mut models = Vec::new();
    let mut entries = Vec::new();
    for Opened { offer, dir, planned, mut device } in opened {
        let tokenizer = Tokenizer::open(&offer.dir)
            .with_context(|| format!("serve {} from {}", offer.names[0], offer.dir.display()))?;
        let end_tokens = end_tokens(&dir, &tokenizer);
        let digest = dir.digest();
        let kernel_set = device.kernel_set().to_owned();
        let limits = planned.config;
        let decoder = Decoder::load(&mut device, &dir)
            .with_context(|| format!("load {}", offer.dir.display()))?;
        let tokenizer = Arc::new(tokenizer);
        let own = Some(Arc::clone(&tokenizer));
        let engine = Engine::new(device, decoder, end_tokens, own, limits)
            .with_context(|| format!("start the engine of {}", offer.names[0]))?;
        for name in &offer.names {
            let tokenizer_id = settings.tokenizers.get(name).cloned();
            entries.push(ModelEntry {
                name: name.clone(),
                base_digest: digest.clone(),
                architecture: dir.config().family.to_owned(),
                tokenizer_id: tokenizer_id.unwrap_or_else(|| offer.tokenizer.clone()),
                vocab_size: u32::try_from(dir.config().vocab_size).context("use the vocabulary")?,
                context: limits.max_model_len,
                training_context: limits.train_context_max,
                kernel_set: kernel_set.clone(),
                trainable: true,
                sampleable: true,
                tokenizer: Some(Arc::clone(&tokenizer)),
            });
        }
        models.push(tinsmith_worker::Model { digest, engine });
    }
    Ok(Loaded { models, catalog: Catalog { models: entries } })
}

/// The tokens that end a text: those of the model's configuration, else the tokenizer's own.
fn end_tokens(dir: &ModelDir, tokenizer: &Tokenizer) -> Vec<u32> {
    if dir.end_tokens().is_empty() {
        return tokenizer.end_token().into_iter().collect();
    }
    dir.end_tokens().to_vec()
}

/// A directory of that path comes first.
fn is_hub_id(place: &str) -> bool {
    !Path::new(place).is_dir() && hub::is_id(place)
}

fn default_name(place: &str) -> String {
    if is_hub_id(place) {
        return place.to_owned();
    }
    let dir = Path::new(place);
    let canonical = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    canonical
        .file_name()
        .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}
