//! Settings: flag > environment > file > default, read once. A setting is one line in [`SETTINGS`].

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tinsmith_backend_cpu::{DtypeChoice, KernelChoice};
use tinsmith_server::{Priced, Prices};

use crate::{device, hub};

mod limits;

pub(crate) use limits::{REQUESTS_BYTES, Shares, engine, server, store, worker};

/// A setting: its key in `tinsmith.toml` (and, in capitals after `TINSMITH_`, in the environment), its
/// default, and what it is for. Lists are separated by commas.
pub(crate) const SETTINGS: &[(&str, &str, &str)] = &[
    (
        "models",
        "",
        "directories in Hugging Face format, DIR or NAME=DIR, or hub ids, ORG/NAME; none: the model that ships",
    ),
    ("host", "127.0.0.1", "address to listen on"),
    ("port", "8000", "port to listen on; 0 takes a free one"),
    ("data_dir", "", "where everything durable lives; empty: $XDG_DATA_HOME/tinsmith"),
    (
        "dtype",
        "auto",
        "what weights are kept in: f32, bf16, or auto: bf16 where a model's files are, else f32",
    ),
    (
        "kernels",
        "auto",
        "auto, or a kernel set, NAME or NAME:PATH: f32, w16-avx2, bf16-avx512, bf16-amx, f32:portable, …",
    ),
    ("threads", "0", "threads that compute; 0: one for each physical core"),
    (
        "tokenizer",
        "",
        "NAME=DIR-or-hub-name: what clients load for a model instead of its directory",
    ),
    (
        "behind_proxy",
        "false",
        "a proxy stands in front: its X-Forwarded-Proto says whether links begin with https",
    ),
    ("insecure_no_auth", "false", "listen on other addresses than localhost without keys"),
    (
        "context_max",
        "0",
        "longest sequence in tokens, beyond the model's own too; 0: the model's own. Samples go as far as the cache does",
    ),
    (
        "memory",
        "auto",
        "memory to use at most, as bytes or like 12GiB; auto: 7/8 of the machine's, or of its container's",
    ),
    (
        "kv_cache_mb",
        "0",
        "memory for keys and values of sampled sequences, each base model; 0: a share of what is left",
    ),
    (
        "kv_spill_mb",
        "1024",
        "disk for keys and values of sequences that wait for memory, each base model; 0: none",
    ),
    (
        "activation_mb",
        "0",
        "memory for one training step, each base model; 0: a share of what is left",
    ),
    ("sequences_max", "64", "sequences that decode together, each base model"),
    (
        "speculative_rows",
        "16",
        "rows of a sampling step up to which tokens that stood before are tried ahead; 0: never",
    ),
    ("runs_max", "64", "training runs in memory; others rest on disk"),
    ("samplers_max", "256", "samplers in memory; others rest on disk"),
    ("lora_rank_max", "512", "highest LoRA rank"),
    ("session_timeout_s", "86400", "seconds without a heartbeat after which a session ends"),
    ("gap_timeout_s", "600", "seconds that requests wait for one that was sent before them"),
    (
        "jwt_auth",
        "false",
        "the SDK exchanges its key for a token that expires within an hour, and knows by it who it is",
    ),
    (
        "prices",
        "",
        "what billing reports: KIND=DOLLARS or NAME:KIND=DOLLARS, a million tokens (training, prefill, prefill_cached, sample) or a gigabyte and month (storage)",
    ),
    ("result_retention_s", "86400", "seconds that results can be fetched"),
    ("allow_network_fs", "false", "keep the data directory on a network file system all the same"),
    (
        "log",
        "info",
        "what is logged: error, warn, info, debug, or by part, like info,tinsmith_store=debug",
    ),
    ("log_format", "text", "text or json"),
];

/// Where a value came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Flag,
    Environment,
    File,
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Default => "default",
        })
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Every setting's value, as text, with its source.
#[derive(Clone, Debug)]
pub(crate) struct Values(BTreeMap<&'static str, (String, Source)>);

/// Flags that stand for settings, by key.
pub(crate) type Flags = Vec<(&'static str, Option<String>)>;

impl Values {
    /// Reads the environment, and the file named by `file`, by `TINSMITH_CONFIG`, or `./tinsmith.toml`.
    ///
    /// # Errors
    ///
    /// An unknown key in the file or the environment, or a file that cannot be read.
    pub(crate) fn load(flags: &Flags, file: Option<&Path>) -> Result<Self> {
        Self::resolve(flags, file, &env::vars().collect())
    }

    fn resolve(
        flags: &Flags,
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let named = file
            .map(Path::to_owned)
            .or_else(|| environment.get("TINSMITH_CONFIG").map(PathBuf::from));
        let from_file = match named {
            Some(path) => read_file(&path)?,
            None if Path::new("tinsmith.toml").exists() => read_file(Path::new("tinsmith.toml"))?,
            None => BTreeMap::new(),
        };
        for name in environment.keys() {
            // `TINSMITH` alone and `TINSMITH_CONFIG` are no settings.
            if let Some(key) = name.strip_prefix("TINSMITH_")
                && key != "CONFIG"
            {
                check_key(&key.to_lowercase(), &format!("the variable {name}"))?;
            }
        }
        let mut values = BTreeMap::new();
        for (key, default, _) in SETTINGS {
            let flag =
                flags.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.clone());
            let variable = environment.get(&format!("TINSMITH_{}", key.to_uppercase()));
            let value = flag
                .map(|value| (value, Source::Flag))
                .or_else(|| variable.map(|value| (value.clone(), Source::Environment)))
                .or_else(|| from_file.get(*key).map(|value| (value.clone(), Source::File)))
                .unwrap_or_else(|| ((*default).to_owned(), Source::Default));
            values.insert(*key, value);
        }
        Ok(Self(values))
    }

    /// Every key with its value and source, in the order of [`SETTINGS`].
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &str, Source)> {
        SETTINGS.iter().map(|(key, _, _)| {
            let (value, source) = &self.0[key];
            (*key, value.as_str(), *source)
        })
    }

    fn text(&self, key: &str) -> &str {
        &self.0[key].0
    }

    fn list(&self, key: &str) -> Vec<String> {
        let items = self.text(key).split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(str::to_owned).collect()
    }

    fn parse<T: std::str::FromStr>(&self, key: &str, what: &str) -> Result<T> {
        let (value, source) = &self.0[key];
        let parsed = value.trim().parse();
        parsed
            .ok()
            .with_context(|| format!("read {key} = {value:?} (from the {source}): give {what}"))
    }

    fn number(&self, key: &str) -> Result<usize> {
        self.parse(key, "a whole number")
    }

    /// A number that must be in a range: outside of it nothing would run, or nothing else.
    fn number_in(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        let number = self.number(key)?;
        let (_, source) = &self.0[key];
        let (first, last) = (range.start(), range.end());
        ensure!(
            range.contains(&number),
            "read {key} = {number} (from the {source}): give a whole number from {first} to {last}"
        );
        Ok(number)
    }

    fn seconds(&self, key: &str) -> Result<Duration> {
        Ok(Duration::from_secs(self.parse(key, "a whole number of seconds")?))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.parse(key, "true or false")
    }
}

/// The settings, checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) models: Vec<String>,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) data_dir: PathBuf,
    pub(crate) dtype: DtypeChoice,
    pub(crate) kernels: KernelChoice,
    pub(crate) threads: usize,
    pub(crate) tokenizers: BTreeMap<String, String>,
    pub(crate) behind_proxy: bool,
    pub(crate) insecure_no_auth: bool,
    pub(crate) context_max: usize,
    /// `None`: to be taken from the machine.
    pub(crate) memory: Option<usize>,
    /// 0: a share of the memory.
    pub(crate) kv_cache_bytes: usize,
    pub(crate) kv_spill_bytes: usize,
    /// 0: a share of the memory.
    pub(crate) activation_bytes: usize,
    pub(crate) sequences_max: usize,
    pub(crate) speculative_rows: usize,
    pub(crate) runs_max: usize,
    pub(crate) samplers_max: usize,
    pub(crate) lora_rank_max: u32,
    pub(crate) session_timeout: Duration,
    pub(crate) gap_timeout: Duration,
    pub(crate) result_retention: Duration,
    pub(crate) jwt_auth: bool,
    pub(crate) prices: Prices,
    pub(crate) allow_network_fs: bool,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
    pub(crate) hub: hub::Access,
}

/// More threads than any machine has cores.
const THREADS_MAX: usize = 1024;
/// Large enough for all that is counted.
const COUNT_MAX: usize = 1 << 30;
const MEBIBYTE: usize = 1 << 20;

impl Settings {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// Names the key, the value, where it came from, and what would do.
    pub(crate) fn new(values: &Values) -> Result<Self> {
        let log_format = match values.text("log_format") {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => bail!("read log_format = {other:?}: give text or json"),
        };
        Ok(Self {
            models: values.list("models"),
            host: values.text("host").to_owned(),
            port: values.parse("port", "a number from 0 to 65535")?,
            data_dir: data_dir(values.text("data_dir"))?,
            dtype: device::read_dtype(values.text("dtype"))?,
            kernels: device::read_kernels(values.text("kernels"))?,
            threads: values.number_in("threads", 0..=THREADS_MAX)?,
            tokenizers: pairs(&values.list("tokenizer"))?,
            behind_proxy: values.flag("behind_proxy")?,
            insecure_no_auth: values.flag("insecure_no_auth")?,
            context_max: values.number_in("context_max", 0..=COUNT_MAX)?,
            memory: memory(values.text("memory"))?,
            kv_cache_bytes: values.number("kv_cache_mb")?.saturating_mul(MEBIBYTE),
            kv_spill_bytes: values
                .number_in("kv_spill_mb", 0..=COUNT_MAX)?
                .saturating_mul(MEBIBYTE),
            activation_bytes: values.number("activation_mb")?.saturating_mul(MEBIBYTE),
            sequences_max: values.number_in("sequences_max", 1..=COUNT_MAX)?,
            speculative_rows: values.number_in("speculative_rows", 0..=COUNT_MAX)?,
            runs_max: values.number_in("runs_max", 1..=COUNT_MAX)?,
            samplers_max: values.number_in("samplers_max", 1..=COUNT_MAX)?,
            lora_rank_max: values.parse("lora_rank_max", "a whole number")?,
            session_timeout: values.seconds("session_timeout_s")?,
            gap_timeout: values.seconds("gap_timeout_s")?,
            result_retention: values.seconds("result_retention_s")?,
            jwt_auth: values.flag("jwt_auth")?,
            prices: prices(&values.list("prices"))?,
            allow_network_fs: values.flag("allow_network_fs")?,
            log: values.text("log").to_owned(),
            log_format,
            hub: hub_access(),
        })
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("read {}", path.display()))?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        check_key(&key, &path.display().to_string())?;
        values.insert(key, plain(&value).with_context(|| format!("read {}", path.display()))?);
    }
    Ok(values)
}

fn plain(value: &toml::Value) -> Result<String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        toml::Value::Array(items) => {
            let items: Result<Vec<_>> = items.iter().map(plain).collect();
            Ok(items?.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => {
            bail!("use {value}: settings are texts, whole numbers, true or false, or lists of them")
        }
    }
}

fn check_key(key: &str, place: &str) -> Result<()> {
    if SETTINGS.iter().any(|(known, _, _)| *known == key) {
        return Ok(());
    }
    let nearest =
        SETTINGS.iter().map(|(known, _, _)| *known).min_by_key(|known| distance(known, key));
    let hint = nearest.filter(|known| distance(known, key) <= 3);
    let hint = hint.map_or_else(
        || "`tinsmith config show` lists them".to_owned(),
        |known| format!("did you mean `{known}`?"),
    );
    bail!("use the setting `{key}` of {place}: there is none of that name; {hint}")
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn pairs(items: &[String]) -> Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for item in items {
        let (name, value) = item
            .split_once('=')
            .with_context(|| format!("read tokenizer = {item:?}: give NAME=DIR"))?;
        pairs.insert(name.to_owned(), value.to_owned());
    }
    Ok(pairs)
}

/// `KIND=DOLLARS` or, for one base model, `NAME:KIND=DOLLARS`.
fn prices(items: &[String]) -> Result<Prices> {
    let mut prices = Prices { general: BTreeMap::new(), of_model: BTreeMap::new() };
    for item in items {
        let read = || -> Option<(Option<&str>, Priced, f64)> {
            let (what, price) = item.rsplit_once('=')?;
            let (model, kind) = what.rsplit_once(':').map_or((None, what), |(m, k)| (Some(m), k));
            let kind = Priced::ALL.iter().find(|(name, _)| *name == kind.trim())?.1;
            let price: f64 = price.trim().parse().ok()?;
            let is_sound = price.is_finite() && price >= 0.0;
            (is_sound && (model.is_none() || kind != Priced::Storage))
                .then_some((model, kind, price))
        };
        let (model, kind, price) = read().with_context(|| {
            format!(
                "read prices = {item:?}: give KIND=DOLLARS or NAME:KIND=DOLLARS, where KIND is training, \
                 prefill, prefill_cached or sample, or storage=DOLLARS"
            )
        })?;
        let of = match model {
            Some(model) => prices.of_model.entry(model.to_owned()).or_default(),
            None => &mut prices.general,
        };
        of.insert(kind, price);
    }
    Ok(prices)
}

/// Bytes, from a number with or without a unit.
fn memory(text: &str) -> Result<Option<usize>> {
    let text = text.trim();
    if text == "auto" {
        return Ok(None);
    }
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit: Option<usize> = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "mb" => Some(1_000_000),
        "mib" => Some(MEBIBYTE),
        "gb" => Some(1_000_000_000),
        "gib" => Some(1 << 30),
        _ => None,
    };
    let bytes = number.parse().ok().zip(unit).and_then(|(number, unit)| unit.checked_mul(number));
    let bytes = bytes.filter(|&bytes| bytes > 0);
    bytes.map(Some).with_context(|| {
        format!(
            "read memory = {text:?}: give auto, bytes, or a whole number with its unit, like 12GiB"
        )
    })
}

#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
fn data_dir(given: &str) -> Result<PathBuf> {
    if !given.is_empty() {
        return Ok(PathBuf::from(given));
    }
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("tinsmith"))
        .context("find a home for the data: set HOME or give --data-dir")
}

/// What Hugging Face's own tools go by, so that their downloads and logins are found.
#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
fn hub_access() -> hub::Access {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let cache = || {
        set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
    };
    hub::Access {
        home: set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| cache().map(|cache| cache.join("huggingface"))),
        token: set("HF_TOKEN").map(|token| token.trim().to_owned()),
        endpoint: set("HF_ENDPOINT")
            .unwrap_or_else(|| hub::ENDPOINT.to_owned())
            .trim_end_matches('/')
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &Flags, file: Option<&str>, variables: &[(&str, &str)]) -> Result<Values> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tinsmith.toml");
        fs::write(&path, file.unwrap_or_default()).unwrap();
        let environment = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Values::resolve(flags, Some(&path), &environment)
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let file = Some("port = 3\nhost = \"h\"\nmodels = [\"a\", \"b=c\"]\n");
        let flags = vec![("port", Some("1".to_owned())), ("threads", None)];
        let values =
            resolve(&flags, file, &[("TINSMITH_PORT", "2"), ("TINSMITH_LOG", "debug")]).unwrap();
        let found = |key| values.0[key].clone();
        assert_eq!(found("port"), ("1".to_owned(), Source::Flag));
        assert_eq!(found("log"), ("debug".to_owned(), Source::Environment));
        assert_eq!(found("host"), ("h".to_owned(), Source::File));
        assert_eq!(found("dtype"), ("auto".to_owned(), Source::Default));
        assert_eq!(values.list("models"), ["a", "b=c"]);
    }

    #[test]
    fn unknown_keys_are_errors() {
        let message = |file, variables| resolve(&vec![], file, variables).unwrap_err().to_string();
        assert!(message(Some("prot = 3"), &[]).contains("did you mean `port`?"));
        assert!(message(None, &[("TINSMITH_THREAD", "2")]).contains("did you mean `threads`?"));
        assert!(message(Some("zzzzzzzz = 1"), &[]).contains("config show"));
    }

    #[test]
    fn prices_are_of_all_models_or_of_one() {
        let read =
            |items: &[&str]| prices(&items.iter().map(|&s| s.to_owned()).collect::<Vec<_>>());
        let found = read(&["training=1.5", "a/b:sample=2", "storage=0.02"]).unwrap();
        assert_eq!(found.general[&Priced::Training], 1.5);
        assert_eq!(found.of_model["a/b"][&Priced::Sample], 2.0);
        for bad in ["training", "x=1", "training=-1", "training=x", "a:storage=1", "training=inf"] {
            assert!(read(&[bad]).unwrap_err().to_string().contains("give KIND"), "{bad}");
        }
    }

    #[test]
    fn memory_has_units() {
        let read = |text| memory(text).unwrap();
        assert_eq!(read("auto"), None);
        assert_eq!(read("4096"), Some(4096));
        assert_eq!(read("12GiB"), Some(12 << 30));
        assert_eq!(read("500 mb"), Some(500_000_000));
        for bad in ["", "0", "GiB", "1.5GiB", "12 lines", "99999999999GiB"] {
            assert!(memory(bad).unwrap_err().to_string().contains("give auto"), "{bad}");
        }
    }

    #[test]
    fn every_default_is_valid() {
        let values = resolve(&vec![], None, &[]).unwrap();
        let settings = Settings::new(&values).unwrap();
        assert_eq!(settings.port, 8000);
        let bad = resolve(&vec![], Some("port = 99999"), &[]).unwrap();
        let message = Settings::new(&bad).unwrap_err().to_string();
        assert!(message.contains("port = \"99999\" (from the file)"), "{message}");
    }
}
