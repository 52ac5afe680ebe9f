//! Adapters and their training state as files; no other module knows their layout.
//!
//! An adapter is written exactly as PEFT (Hugging Face) writes it, so that PEFT, vLLM and others load it, and
//! what PEFT wrote is read. Training state has files of our own beside it, in the same format.

mod adapter_config;
mod archive;

use std::collections::{BTreeMap, BTreeSet};

use tinsmith_backend::Backend;

use crate::{
    Error, Result,
    config::DecoderConfig,
    lora::{Adapter, LoraSpec, Moments, PairSet, Site},
};
use adapter_config::AdapterConfig;
use archive::{Archive, Writer};

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What the adapter is: rank, alpha, modules.
pub const CONFIG: &str = "adapter_config.json";
/// A and B of every site, f32.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The optimizer's moments and the number of its steps.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The gradient that no step has used yet.
pub const GRADIENT: &str = "gradient.safetensors";

const FIRST: &str = "first.";
const SECOND: &str = "second.";
const STEP: &str = "step";

/// Adds the adapter's two files: `adapter_config.json` and `adapter_model.safetensors`.
pub fn write_adapter<B: Backend>(
    b: &mut B,
    config: &DecoderConfig,
    adapter: &Adapter<B>,
    base_model_name: &str,
    files: &mut Files,
) {
    let mut writer = Writer::default();
    let mut modules = BTreeSet::new();
    for site in Site::all(config) {
        let Some(lora) = adapter.site(site) else { continue };
        let module = site.module(config);
        let values = b.read_lora(lora);
        writer.add_pair("", &module, adapter.spec().rank, &values);
        modules.insert(module.rsplit('.').next().unwrap_or_default().to_owned());
    }
    let json = adapter_config::to_json(adapter.spec(), base_model_name, &modules);
    files.insert(CONFIG.to_owned(), json);
    files.insert(WEIGHTS.to_owned(), writer.finish("format", "pt"));
}

/// Reads an adapter, whoever wrote it: f32, f16 or bf16.
///
/// Our scaling is always 32 / rank. Where the files name another `lora_alpha`, B is multiplied by
/// `lora_alpha / 32`, so that the adapter computes what it did where it comes from: exactly where that is a
/// power of two, else with each number of B rounded once to f32. The seed is 0.
///
/// An adapter may leave out modules or layers that the flags of [`LoraSpec`] switch on together with others
/// (PEFT's usual choice is q and v alone). Those begin as in a new adapter: A random, B zero. So they compute
/// nothing until they are trained, and from then on they are trained like the rest.
///
/// # Errors
/// [`Error::Adapter`] names the file, key or tensor at fault: what PEFT can do and we cannot (`DoRA`,
/// biases, other modules, ranks by pattern, …), a targeted module without its tensors, tensors of one that is
/// not targeted, a wrong shape or dtype, a number that is not finite. Everything is checked before anything is
/// allocated on the device.
pub fn read_adapter<B: Backend>(
    b: &mut B,
    config: &DecoderConfig,
    files: &Files,
) -> Result<Adapter<B>> {
    let peft = AdapterConfig::parse(file(files, CONFIG)?)?;
    let archive = Archive::open(WEIGHTS, file(files, WEIGHTS)?)?;
    let (spec, present) = spec(config, &peft, &archive)?;
    spec.check()?;
    let factor = peft.alpha / crate::lora::ALPHA;
    let mut values = BTreeMap::new();
    for site in Site::all(config).filter(|site| spec.trains(*site)) {
        let module = site.module(config);
        if !present.contains(&module) {
            values.insert(module, crate::lora::initial(config, &spec, site));
            continue;
        }
        let (first, mut second) = archive.pair("", &module, site.shape(config), spec.rank)?;
        if factor != 1.0 {
            second.iter_mut().for_each(|value| *value *= factor);
        }
        if !second.iter().all(|value| value.is_finite()) {
            let problem = format!("{CONFIG}: lora_alpha {:e} is too large for f32", peft.alpha);
            return Err(Error::Adapter(problem));
        }
        values.insert(module, (first, second));
    }
    Adapter::from_host(b, config, spec, |site| {
        Ok(values.remove(&site.module(config)).expect("read for every site that the spec trains"))
    })
}

/// The base model's name as `adapter_config.json` gives it, if it does.
///
/// # Errors
/// [`Error::Adapter`] as [`read_adapter`], for that file.
pub fn base_model_name(files: &Files) -> Result<Option<String>> {
    Ok(AdapterConfig::parse(file(files, CONFIG)?)?.base_model_name)
}

/// The file with the optimizer's state.
pub fn write_optimizer<B: Backend>(
    b: &mut B,
    config: &DecoderConfig,
    adapter: &Adapter<B>,
    moments: &Moments<B>,
) -> Vec<u8> {
    let mut writer = Writer::default();
    let rank = adapter.spec().rank;
    write_pairs(b, config, FIRST, (rank, &moments.first), &mut writer);
    write_pairs(b, config, SECOND, (rank, &moments.second), &mut writer);
    writer.finish(STEP, &moments.step.to_string())
}

/// Reads what [`write_optimizer`] wrote for an adapter of the same shapes.
///
/// # Errors
/// [`Error::Adapter`] names the tensor that does not fit `adapter`.
pub fn read_optimizer<B: Backend>(
    b: &mut B,
    config: &DecoderConfig,
    adapter: &Adapter<B>,
    bytes: &[u8],
) -> Result<Moments<B>> {
    let archive = Archive::open(OPTIMIZER, bytes)?;
    let step = archive.note(STEP).and_then(|step| step.parse().ok());
    let Some(step) = step else {
        return Err(Error::Adapter(format!("{OPTIMIZER} does not say its number of steps")));
    };
    let first = read_pairs(b, config, FIRST, adapter, &archive)?;
    let second = read_pairs(b, config, SECOND, adapter, &archive)?;
    Ok(Moments { first, second, step })
}

/// The file with a pending gradient.
pub fn write_gradient<B: Backend>(
    b: &mut B,
    config: &DecoderConfig,
    adapter: &Adapter<B>,
    gradient: &PairSet<B>,
) -> Vec<u8> {
    let mut writer = Writer::default();
    write_pairs(b, config, "", (adapter.spec().rank, gradient), &mut writer);
    writer.finish("format", "pt")
}

/// Reads what [`write_gradient`] wrote for an adapter of the same shapes.
///
/// # Errors
/// [`Error::Adapter`] names the tensor that does not fit `adapter`.
pub fn read_gradient<B: Backend>(
    b: &mut B,
    config: &DecoderConfig,
    adapter: &Adapter<B>,
    bytes: &[u8],
) -> Result<PairSet<B>> {
    read_pairs(b, config, "", adapter, &Archive::open(GRADIENT, bytes)?)
}

/// The name of one matrix of a site, `A` or `B`; it also keys A's random numbers.
pub(crate) fn tensor_name(module: &str, which: &str) -> String {
    format!("{PREFIX}{module}.lora_{which}.weight")
}

const PREFIX: &str = "base_model.model.";

/// Finds out what the tensors are for, and which modules have some; refuses tensors that no adapter of ours
/// has, and those that the configuration does not speak of.
fn spec(
    config: &DecoderConfig,
    peft: &AdapterConfig,
    archive: &Archive<'_>,
) -> Result<(LoraSpec, BTreeSet<String>)> {
    let mut spec = LoraSpec {
        rank: peft.rank,
        seed: 0,
        train_attn: false,
        train_mlp: false,
        train_unembed: false,
    };
    let mut present = BTreeSet::new();
    let sites: BTreeMap<String, Site> =
        Site::all(config).map(|site| (site.module(config), site)).collect();
    for name in archive.names() {
        if base_weights(config).contains(&name) {
            archive.check_shape(&name, [config.vocab_size, config.hidden])?;
            continue;
        }
        let refuse = |problem: &str| {
            Err(Error::Adapter(format!("{WEIGHTS} has tensor `{name}`, {problem}")))
        };
        let module = name.strip_prefix(PREFIX).and_then(|name| {
            ["A", "B"].iter().find_map(|which| name.strip_suffix(&format!(".lora_{which}.weight")))
        });
        let Some((module, site)) = module.and_then(|module| sites.get_key_value(module)) else {
            return refuse(if name.contains(".lora_embedding_") {
                "but the embedding is not trained here: make the adapter without that target"
            } else {
                "which is no LoRA matrix of this base model"
            });
        };
        if peft.targets(config, *site) == Some(false) {
            return refuse(&format!("but {CONFIG} does not target that module"));
        }
        *spec.flag_of(*site) = true;
        present.insert(module.clone());
    }
    let targeted = sites.iter().find(|(module, site)| {
        !present.contains(*module) && peft.targets(config, **site) == Some(true)
    });
    if let Some((module, _)) = targeted {
        let missing = tensor_name(module, "A");
        let problem = format!(
            "{WEIGHTS}: tensor `{missing}` is missing, but {CONFIG} targets its module: the file is \
             incomplete, or made for another base model"
        );
        return Err(Error::Adapter(problem));
    }
    Ok((spec, present))
}

/// PEFT adds copies of the frozen (un)embedding to an adapter that trains the unembedding; not needed.
fn base_weights(config: &DecoderConfig) -> [String; 3] {
    let (embed, unembed) = (config.names.modules.embed, config.names.modules.unembed);
    [
        format!("{PREFIX}{embed}.weight"),
        format!("{PREFIX}{unembed}.weight"),
        format!("{PREFIX}{unembed}.base_layer.weight"),
    ]
}

fn write_pairs<B: Backend>(
    b: &mut B,
    config: &DecoderConfig,
    prefix: &str,
    (rank, pairs): (usize, &PairSet<B>),
    writer: &mut Writer,
) {
    for site in Site::all(config) {
        if let Some(pair) = pairs.site(site) {
            let values = b.read_pair(pair);
            writer.add_pair(prefix, &site.module(config), rank, &values);
        }
    }
}

fn read_pairs<B: Backend>(
    b: &mut B,
    config: &DecoderConfig,
    prefix: &str,
    adapter: &Adapter<B>,
    archive: &Archive<'_>,
) -> Result<PairSet<B>> {
    let rank = adapter.spec().rank;
    let mut values = Vec::new();
    for site in Site::all(config).filter(|site| adapter.spec().trains(*site)) {
        let module = site.module(config);
        values.push((site, archive.pair(prefix, &module, site.shape(config), rank)?));
    }
    let mut pairs = PairSet::zeros(b, adapter)?;
    for (site, (first, second)) in values {
        let pair = pairs.site_mut(site).expect("in the shapes of the adapter");
        b.write_pair(pair, &first, &second);
    }
    Ok(pairs)
}

fn file<'a>(files: &'a Files, name: &str) -> Result<&'a [u8]> {
    files.get(name).map(Vec::as_slice).ok_or_else(|| {
        let mut problem = format!("{name} is missing");
        if name == WEIGHTS && files.contains_key("adapter_model.bin") {
            problem.push_str("; adapter_model.bin is not read: save it as safetensors");
        }
        Error::Adapter(problem)
    })
}

#[cfg(test)]
mod tests;
