//! A model directory in the format of Hugging Face: its configuration, and its weights memory-mapped.
//!
//! Everything is checked before it is used: file sizes, headers, names, shapes and dtypes.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use memmap2::Mmap;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde_json::Value;
use tinsmith_backend::RawMatrix;

use crate::{
    Error, Result,
    config::{ConfigJson, DecoderConfig},
    families,
    tensors::{all_finite, float_dtype, read_header},
};

/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// Which shard holds which tensor.
const INDEX: &str = "model.safetensors.index.json";

/// An opened and checked model directory. Dropping it releases the mappings.
#[derive(Debug)]
pub struct ModelDir {
    path: PathBuf,
    config: DecoderConfig,
    end_tokens: Vec<u32>,
    shards: Vec<Mmap>,
    shard_paths: Vec<PathBuf>,
    /// Every tensor that the decoder uses, by name.
    tensors: BTreeMap<String, Tensor>,
    digest: OnceLock<String>,
}

#[derive(Debug)]
struct Tensor {
    shard: usize,
    bytes: std::ops::Range<usize>,
    dtype: tinsmith_backend::Dtype,
    rows: usize,
    cols: usize,
}

impl ModelDir {
    /// Opens the directory, maps its weights and checks that they are what its `config.json` says.
    ///
    /// # Errors
    /// Names the file at fault, what is wrong and what would be right: a missing or truncated file, a family
    /// or a switch that is not supported, a missing tensor, a wrong shape or dtype.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            let problem =
                "there is no such directory; name a model directory in the format of Hugging Face";
            return Err(Error::model(path, problem));
        }
        let json = ConfigJson::open(path.join("config.json"))?;
        Self::open_as(path, families::config(&json)?)
    }

    /// As [`ModelDir::open`], with these switches.
    pub(crate) fn open_as(path: &Path, config: DecoderConfig) -> Result<Self> {
        let end_tokens = end_tokens(path)?;
        let mut files = WeightFiles::open(path)?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in expected_tensors(&config) {
            tensors.insert(name.clone(), files.tensor(&name, shape)?);
        }
        Ok(Self {
            path: path.to_owned(),
            config,
            end_tokens,
            shards: files.maps,
            shard_paths: files.paths,
            tensors,
            digest: OnceLock::new(),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The decoder's switches.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The tokens that end a text: `eos_token_id` of `generation_config.json`, else of `config.json`.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Numbers in the weights; a tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.rows as u64 * tensor.cols as u64).sum()
    }

    /// What the matrices are stored in: the widest, where files mix.
    pub fn stored_dtype(&self) -> tinsmith_backend::Dtype {
        use tinsmith_backend::Dtype;
        let has = |dtype| self.tensors.values().any(|t| t.rows > 1 && t.dtype == dtype);
        if has(Dtype::F32) {
            Dtype::F32
        } else if has(Dtype::F16) {
            Dtype::F16
        } else {
            Dtype::Bf16
        }
    }

    /// BLAKE3 over what makes the model what it is: every weight's name, dtype, shape and bytes, and the
    /// decoder's switches. Hexadecimal; computed at the first call.
    pub fn digest(&self) -> String {
        self.digest.get_or_init(|| self.compute_digest()).clone()
    }

    /// Checks that every number of every weight is finite. Reads them all.
    ///
    /// # Errors
    /// Names the file and the tensor that holds another.
    pub fn check_finite(&self) -> Result<()> {
        let broken = self.tensors.iter().find(|(_, tensor)| {
            !all_finite(&self.shards[tensor.shard][tensor.bytes.clone()], tensor.dtype)
        });
        let Some((name, tensor)) = broken else { return Ok(()) };
        let problem = format!(
            "tensor `{name}` holds NaN or infinite numbers; download the file again, or save the model again"
        );
        Err(Error::model(&self.shard_paths[tensor.shard], problem))
    }

    /// A weight as it lies in the file; a vector has one row.
    pub(crate) fn raw(&self, name: &str) -> RawMatrix<'_> {
        let tensor = &self.tensors[name];
        RawMatrix {
            bytes: &self.shards[tensor.shard][tensor.bytes.clone()],
            dtype: tensor.dtype,
            rows: tensor.rows,
            cols: tensor.cols,
        }
    }

    fn compute_digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut section = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        section(self.config.fingerprint().as_bytes());
        for (name, tensor) in &self.tensors {
            section(name.as_bytes());
            section(format!("{:?} {} {}", tensor.dtype, tensor.rows, tensor.cols).as_bytes());
            section(self.raw(name).bytes);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// The mapped files, and where each tensor stands.
struct WeightFiles {
    paths: Vec<PathBuf>,
    maps: Vec<Mmap>,
    /// Shard, begin of its data, header entry.
    entries: HashMap<String, (usize, usize, TensorInfo)>,
    /// What to name when a tensor is missing.
    catalogue: PathBuf,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    fn open(dir: &Path) -> Result<Self> {
        let (catalogue, names) = shard_names(dir)?;
        let mut files =
            Self { paths: Vec::new(), maps: Vec::new(), entries: HashMap::new(), catalogue };
        for name in names {
            files.add(dir.join(name))?;
        }
        Ok(files)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        if !path.exists() {
            let problem = format!("there is no such file, but {INDEX} names it; download it");
            return Err(Error::model(&path, problem));
        }
        let io = |source| Error::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        #[expect(unsafe_code, reason = "the only way to map a file")]
        // SAFETY: the map is read only. As with every map, another process that cuts the file while
        // we read would end us; model files are written once.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (begin, metadata) =
            read_header(&map).map_err(|problem| Error::model(&path, problem))?;
        for name in metadata.offset_keys() {
            let info = metadata.info(&name).expect("the header just listed it").clone();
            self.entries.insert(name, (self.maps.len(), begin, info));
        }
        self.maps.push(map);
        self.paths.push(path);
        Ok(())
    }

    /// Finds a tensor and checks that it is a float tensor of `shape`.
    fn tensor(&mut self, name: &str, shape: Shape) -> Result<Tensor> {
        let Some((shard, begin, info)) = self.entries.remove(name) else {
            let problem = format!(
                "tensor `{name}` is missing; the files may be another model's or incomplete"
            );
            return Err(Error::model(&self.catalogue, problem));
        };
        let refuse = |problem: String| Err(Error::model(&self.paths[shard], problem));
        let (expected, rows, cols) = match shape {
            Shape::Vector(cols) => (vec![cols], 1, cols),
            Shape::Matrix(rows, cols) => (vec![rows, cols], rows, cols),
        };
        if info.shape != expected {
            return refuse(format!(
                "tensor `{name}` has shape {:?}, but config.json asks for {expected:?}",
                info.shape
            ));
        }
        let Some(dtype) = float_dtype(info.dtype) else {
            return refuse(format!(
                "tensor `{name}` has dtype {:?}; F32, F16 and BF16 can be served",
                info.dtype
            ));
        };
        let (from, to) = info.data_offsets;
        Ok(Tensor { shard, bytes: begin + from..begin + to, dtype, rows, cols })
    }
}

/// The file that says what there is, and the names of the files with weights.
fn shard_names(dir: &Path) -> Result<(PathBuf, Vec<String>)> {
    let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
    if single.exists() {
        return Ok((single, vec![SINGLE.to_owned()]));
    }
    if !index.exists() {
        let problem = format!(
            "there is neither {SINGLE} nor {INDEX}; weights in other formats (.bin, .gguf) are not read"
        );
        return Err(Error::model(dir, problem));
    }
    let bytes =
        std::fs::read(&index).map_err(|source| Error::Io { path: index.clone(), source })?;
    let parsed: ShardIndex = serde_json::from_slice(&bytes)
        .map_err(|error| Error::model(&index, format!("is not an index of shards ({error})")))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    // A name with a path in it could point anywhere on the machine.
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref()))
    {
        return Err(Error::model(
            &index,
            format!("names `{name}`, which is not a plain file name"),
        ));
    }
    Ok((index, names))
}

/// Of a tensor: features, or outputs and inputs.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    Vector(usize),
    Matrix(usize, usize),
}

/// Every tensor that a decoder of this configuration reads. A tied model may ship an unembedding too: it is
/// the embedding once more, and is not read.
pub(crate) fn expected_tensors(config: &DecoderConfig) -> Vec<(String, Shape)> {
    let names = config.names;
    let weight = |name: &str| format!("{name}.weight");
    let mut tensors = vec![
        (weight(names.embed), Shape::Matrix(config.vocab_size, config.hidden)),
        (weight(names.final_norm), Shape::Vector(config.hidden)),
    ];
    if !config.tie_embeddings {
        tensors.push((weight(names.unembed), Shape::Matrix(config.vocab_size, config.hidden)));
    }
    for layer in 0..config.layers {
        let mut vector = |name: &str, len: usize| {
            tensors.push((format!("{}.{layer}.{name}", names.layers), Shape::Vector(len)));
        };
        vector(&weight(names.attention_norm), config.hidden);
        vector(&weight(names.mlp_norm), config.hidden);
        if config.post_norms {
            names.post_norms.iter().for_each(|norm| vector(&weight(norm), config.hidden));
        }
        if config.qk_norm {
            vector(&weight(names.q_norm), config.head_dim);
            vector(&weight(names.k_norm), config.head_dim);
        }
        for projection in crate::lora::Projection::ALL {
            let (outputs, inputs) = projection.shape(config);
            let name = projection.file_name(config, layer);
            if projection.has_bias(config) {
                tensors.push((format!("{name}.bias"), Shape::Vector(outputs)));
            }
            tensors.push((weight(&name), Shape::Matrix(outputs, inputs)));
        }
    }
    tensors
}

fn end_tokens(dir: &Path) -> Result<Vec<u32>> {
    let mut found = None;
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        if found.is_none() && path.exists() {
            found = Some(ConfigJson::open(path)?).filter(|json| json.get("eos_token_id").is_some());
        }
    }
    let Some(json) = found else { return Ok(Vec::new()) };
    let value = json.get("eos_token_id").unwrap_or(&Value::Null);
    let ids = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    let ids: Option<Vec<u32>> =
        ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
    ids.ok_or_else(|| json.unsupported("eos_token_id", "it must be a token id or a list of them"))
}

#[cfg(test)]
mod tests;
