//! Where a model directory keeps its chat templates and special tokens, and how they are compiled.

use std::{collections::BTreeMap, fs, io, path::Path, path::PathBuf};

use minijinja::{Environment, ErrorKind, Template, UndefinedBehavior, syntax::SyntaxConfig};
use serde::Deserialize;
use serde_json::Value;

use super::python;
use crate::{Error, Result};

/// The template for a chat without tools, and for all where there is no other.
const DEFAULT: &str = "default";
/// The template for a chat with tools, where it has one of its own.
const TOOL_USE: &str = "tool_use";
/// Special tokens that templates know by these names.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The templates of a directory by name, each with the file it comes from.
type Sources = BTreeMap<String, (PathBuf, String)>;

/// Compiled templates by name.
pub(super) struct Environments(Environment<'static>);

impl Environments {
    /// The template for a chat with or without tools.
    pub(super) fn get(&self, tools: bool) -> Result<Template<'_, '_>> {
        let own = self.0.get_template(TOOL_USE).ok().filter(|_| tools);
        let found = own.map_or_else(|| self.0.get_template(DEFAULT), Ok);
        found.map_err(|_| {
            Error::Template(format!("there are several by name, and none is called `{DEFAULT}`"))
        })
    }
}

/// The templates and the special tokens; `None` where there is no template.
pub(super) fn open(dir: &Path) -> Result<Option<(Environments, BTreeMap<String, String>)>> {
    let path = dir.join("tokenizer_config.json");
    let config: Config = match read(&path)? {
        Some(text) => parse(&path, &text)?,
        None => Config::default(),
    };
    let mut sources = Sources::new();
    if let Some(template) = &config.chat_template {
        sources = named(&path, template);
    }
    let path = dir.join("chat_template.json");
    if sources.is_empty()
        && let Some(text) = read(&path)?
    {
        let file: Config = parse(&path, &text)?;
        sources = file.chat_template.map(|value| named(&path, &value)).unwrap_or_default();
    }
    let path = dir.join("chat_template.jinja");
    if let Some(source) = read(&path)? {
        // As in transformers, the files replace what the configuration holds.
        sources = Sources::from([(DEFAULT.to_owned(), (path, source))]);
    }
    sources.extend(additional(&dir.join("additional_chat_templates"))?);
    if sources.is_empty() {
        return Ok(None);
    }
    let mut environment = environment().map_err(|error| Error::Template(describe(&error)))?;
    for (name, (path, source)) in sources {
        environment
            .add_template_owned(name, python::without_generation(&source))
            .map_err(|error| Error::Parse { path, detail: describe(&error) })?;
    }
    Ok(Some((Environments(environment), config.special_tokens())))
}

/// The text that ends what the model writes, if the tokenizer's configuration names one.
pub(crate) fn end_token(dir: &Path) -> Result<Option<String>> {
    let path = dir.join("tokenizer_config.json");
    let Some(text) = read(&path)? else { return Ok(None) };
    Ok(parse(&path, &text)?.special_tokens().remove("eos_token"))
}

/// What went wrong, with the template's line.
pub(super) fn describe(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

/// The fields of `tokenizer_config.json` that a template needs.
#[derive(Default, Deserialize)]
struct Config {
    chat_template: Option<Value>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl Config {
    /// Special tokens are written as text, or as an object with the text as `content`.
    fn special_tokens(&self) -> BTreeMap<String, String> {
        let text = |name: &str| {
            let token = self.others.get(name)?;
            token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
        };
        TOKENS.into_iter().filter_map(|name| Some((name.to_owned(), text(name)?))).collect()
    }
}

/// One template, or a list of them by name.
fn named(path: &Path, template: &Value) -> Sources {
    let source = |text: &str| (path.to_owned(), text.to_owned());
    if let Some(text) = template.as_str() {
        return Sources::from([(DEFAULT.to_owned(), source(text))]);
    }
    let entries = template.as_array().into_iter().flatten();
    let entry = |entry: &Value| {
        Some((entry["name"].as_str()?.to_owned(), source(entry["template"].as_str()?)))
    };
    entries.filter_map(entry).collect()
}

/// Templates in files, named as these.
fn additional(dir: &Path) -> Result<Sources> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Sources::new()),
        Err(source) => return Err(Error::Read { path: dir.to_owned(), source }),
    };
    let mut sources = Sources::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Read { path: dir.to_owned(), source })?;
        let path = entry.path();
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        if path.extension().is_some_and(|extension| extension == "jinja")
            && let (Some(name), Some(source)) = (name, read(&path)?)
        {
            sources.insert(name, (path, source));
        }
    }
    Ok(sources)
}

fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.add_function("raise_exception", |message: String| -> Result<(), _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.set_formatter(python::write);
    environment.add_test("iterable", python::is_iterable);
    environment.add_filter("count", python::length);
    environment.add_filter("length", python::length);
    environment.add_filter("string", python::string);
    environment.add_filter("tojson", python::tojson);
    Ok(environment)
}

fn parse(path: &Path, text: &str) -> Result<Config> {
    serde_json::from_str(text)
        .map_err(|error| Error::Parse { path: path.to_owned(), detail: error.to_string() })
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}
