//! Chat templates: Jinja as transformers runs it.

use std::{collections::BTreeMap, fmt, io, path::Path};

use minijinja::{
    Environment, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig, value::Kwargs,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const TEMPLATE: &str = "chat_template";

/// One turn of a chat.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    fn value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

/// A model's chat template, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Reads the template of a model directory, `None` if it has none.
    pub(crate) fn open(dir: &Path) -> Result<Option<Self>> {
        let config_path = dir.join("tokenizer_config.json");
        let config = match read(&config_path)? {
            Some(text) => serde_json::from_str::<Config>(&text).map_err(|error| Error::Parse {
                path: config_path.clone(),
                detail: error.to_string(),
            })?,
            None => Config::default(),
        };
        let jinja_path = dir.join("chat_template.jinja");
        let special_tokens = config.special_tokens();
        let (path, source) = match (read(&jinja_path)?, config.template()) {
            (Some(source), _) => (jinja_path, source),
            (None, Some(source)) => (config_path, source),
            (None, None) => return Ok(None),
        };
        let compiled = Self::compile(source, special_tokens);
        compiled.map(Some).map_err(|error| Error::Parse { path, detail: describe(&error) })
    }

    fn compile(
        source: String,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, minijinja::Error> {
        let mut environment = Environment::new();
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<(), _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(TEMPLATE, source)?;
        Ok(Self { environment, special_tokens })
    }

    pub(crate) fn render(&self, messages: &[Message], generate: bool) -> Result<String> {
        let template = self.environment.get_template(TEMPLATE);
        let rendered = template.and_then(|template| {
            let mut variables: BTreeMap<&str, Value> = self
                .special_tokens
                .iter()
                .map(|(name, text)| (name.as_str(), text.into()))
                .collect();
            let messages: Vec<Value> = messages.iter().map(Message::value).collect();
            variables.insert("messages", messages.into());
            variables.insert("add_generation_prompt", generate.into());
            template.render(Value::from_pairs(variables))
        });
        rendered.map_err(|error| Error::Template(describe(&error)))
    }
}

/// The fields of `tokenizer_config.json` that a template needs.
#[derive(Default, Deserialize)]
struct Config {
    chat_template: Option<serde_json::Value>,
    bos_token: Option<serde_json::Value>,
    eos_token: Option<serde_json::Value>,
    unk_token: Option<serde_json::Value>,
    pad_token: Option<serde_json::Value>,
}

impl Config {
    /// The template; where there are several by name, the one called `default`.
    fn template(&self) -> Option<String> {
        let template = self.chat_template.as_ref()?;
        if let Some(text) = template.as_str() {
            return Some(text.to_owned());
        }
        let default = template.as_array()?.iter().find(|entry| entry["name"] == "default")?;
        default["template"].as_str().map(str::to_owned)
    }

    /// Special tokens are written as text, or as an object with the text as `content`.
    fn special_tokens(&self) -> BTreeMap<String, String> {
        let tokens = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
        ];
        let text = |token: &serde_json::Value| {
            token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
        };
        tokens
            .into_iter()
            .filter_map(|(name, token)| Some((name.to_owned(), text(token.as_ref()?)?)))
            .collect()
    }
}

/// JSON as Python writes it: spaces after separators and no escapes for HTML.
#[expect(clippy::needless_pass_by_value, reason = "the form that minijinja calls filters in")]
fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent = options.get::<Option<Value>>("indent")?;
    // transformers always writes characters beyond ASCII as they are.
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let escaped =
        minijinja::filters::tojson(value, indent, Kwargs::from_iter::<[(&str, Value); 0]>([]))?;
    Ok(Value::from(unescape_html(escaped.as_str().unwrap_or_default())))
}

/// Undoes `\u003c`, `\u003e`, `\u0026` and `\u0027` in JSON text, and no other escape.
fn unescape_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let plain = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')]
            .into_iter()
            .find(|(escape, _)| rest.starts_with(escape));
        let taken = match plain {
            Some((escape, character)) => {
                out.push(character);
                escape.len()
            }
            None => {
                out.push_str(&rest[..2]);
                2
            }
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn describe(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}
