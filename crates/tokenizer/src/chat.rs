//! Chat templates: Jinja as transformers runs it.
//!
//! Where Jinja in Rust and in Python differ and a template could tell, `chat/python.rs` has Python's way.

use std::{collections::BTreeMap, fmt, path::Path};

use jiff::civil::DateTime;
use minijinja::{Value, value::ValueKind};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub(crate) mod files;
mod python;
pub(crate) mod said;

use files::{Environments, describe};

/// Names under which messages carry reasoning; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Put behind the message that is to be continued, and cut off with all that follows it.
const CONTINUE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// One turn of a chat, in plain words.
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

/// Where a rendered chat ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatEnd {
    /// Behind the last message.
    #[default]
    Whole,
    /// Where the assistant begins to speak.
    Prompt,
    /// Within the last message, where its content ends.
    Continue,
}

/// A chat with everything that a template may ask for. Read from JSON, it keeps the order of keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// Objects with `role`, `content`, `tool_calls` and so on.
    pub messages: Vec<Value>,
    /// JSON schemas of functions.
    #[serde(default)]
    pub tools: Option<Vec<Value>>,
    /// Objects with `title` and `text`.
    #[serde(default)]
    pub documents: Option<Vec<Value>>,
    /// What else the template knows, like `enable_thinking`; a special token of that name gives way.
    #[serde(default)]
    pub variables: BTreeMap<String, Value>,
    /// Where the text ends.
    #[serde(default)]
    pub end: ChatEnd,
    /// What `strftime_now` tells; without it, templates see no such function and write a date of their own.
    #[serde(default)]
    pub now: Option<DateTime>,
}

impl Chat {
    /// A chat without tools; with `generate`, it ends where the assistant begins to speak.
    pub fn new(messages: &[Message], generate: bool) -> Self {
        let messages = messages.iter().map(Message::value).collect();
        let end = if generate { ChatEnd::Prompt } else { ChatEnd::Whole };
        Self { messages, end, ..Self::default() }
    }
}

/// A model's chat templates, compiled.
pub struct ChatTemplate {
    templates: Environments,
    /// Text by name, like `bos_token`.
    special_tokens: BTreeMap<String, String>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Reads the templates of a model directory, `None` if it has none.
    pub(crate) fn open(dir: &Path) -> Result<Option<Self>> {
        let Some((templates, special_tokens)) = files::open(dir)? else { return Ok(None) };
        Ok(Some(Self { templates, special_tokens }))
    }

    pub(crate) fn render(&self, chat: &Chat) -> Result<String> {
        let mut messages: Vec<Value> = chat
            .messages
            .iter()
            .map(|message| prepared(message).map_err(|error| Error::Template(describe(&error))))
            .collect::<Result<_>>()?;
        let continued = match chat.end {
            ChatEnd::Continue => Some(mark(&mut messages)?),
            ChatEnd::Whole | ChatEnd::Prompt => None,
        };
        let list = |values: &Option<Vec<Value>>| {
            values.clone().map_or_else(|| Value::from(()), Value::from)
        };
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, text) in &self.special_tokens {
            variables.insert(name, text.into());
        }
        for (name, value) in &chat.variables {
            variables.insert(name, value.clone());
        }
        if let Some(now) = chat.now {
            variables.insert("strftime_now", python::strftime(now));
        }
        variables.insert("messages", messages.into());
        variables.insert("tools", list(&chat.tools));
        variables.insert("documents", list(&chat.documents));
        variables.insert("add_generation_prompt", (chat.end == ChatEnd::Prompt).into());
        let template = self.templates.get(chat.tools.is_some())?;
        let text = template.render(Value::from_pairs(variables));
        let text = text.map_err(|error| Error::Template(describe(&error)))?;
        match continued {
            Some(content) => cut(&text, &content),
            None => Ok(text),
        }
    }
}

/// A message as templates get it: what is null is left out, and reasoning has all of its names.
fn prepared(message: &Value) -> Result<Value, minijinja::Error> {
    if message.kind() != ValueKind::Map {
        return Ok(message.clone());
    }
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    for key in message.try_iter()? {
        let value = message.get_item(&key)?;
        if !value.is_none() {
            pairs.push((key, value));
        }
    }
    let find = |name: &str| {
        pairs.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value.clone())
    };
    if let Some(reasoning) = REASONING.iter().find_map(|name| find(name)) {
        if find("thinking").is_none() {
            pairs.insert(0, ("thinking".into(), reasoning.clone()));
        }
        set(&mut pairs, "reasoning_content", reasoning);
    }
    Ok(Value::from_pairs(pairs))
}

/// Puts [`CONTINUE`] behind the last message's content; returns the content.
fn mark(messages: &mut [Value]) -> Result<String> {
    let refuse = |problem: &str| Error::Template(format!("the last message {problem}"));
    let last = messages.last_mut().ok_or_else(|| refuse("is not there"))?;
    let faulty = |error: minijinja::Error| Error::Template(describe(&error));
    let content = last.get_item(&"content".into()).map_err(faulty)?;
    let (text, marked) = if let Some(text) = content.as_str() {
        (text.to_owned(), format!("{text}{CONTINUE}").into())
    } else {
        let mut blocks: Vec<Value> = content.try_iter().map_err(faulty)?.collect();
        let found = blocks.iter_mut().rev().find_map(|block| {
            let text = block.get_item(&"text".into()).ok()?.as_str()?.to_owned();
            Some((block, text))
        });
        let (block, text) = found.ok_or_else(|| refuse("has no text to continue"))?;
        *block = with(block, "text", format!("{text}{CONTINUE}").into()).map_err(faulty)?;
        (text, blocks.into())
    };
    *last = with(last, "content", marked).map_err(faulty)?;
    Ok(text)
}

/// What stands before [`CONTINUE`].
fn cut(text: &str, content: &str) -> Result<String> {
    let at = text.rfind(CONTINUE.trim_end()).filter(|_| text.contains(content.trim()));
    let Some(at) = at else {
        let problem =
            "the template does not write the last message as it is: it cannot be continued";
        return Err(Error::Template(problem.to_owned()));
    };
    let before = &text[..at];
    // Where the template trims the message, its own blanks at the end go too.
    let whole = text[at..].starts_with(CONTINUE);
    Ok(if whole { before } else { before.trim_end() }.to_owned())
}

/// The map with one value changed.
fn with(map: &Value, key: &str, value: Value) -> Result<Value, minijinja::Error> {
    let mut pairs = Vec::new();
    for key in map.try_iter()? {
        let value = map.get_item(&key)?;
        pairs.push((key, value));
    }
    set(&mut pairs, key, value);
    Ok(Value::from_pairs(pairs))
}

fn set(pairs: &mut Vec<(Value, Value)>, name: &str, value: Value) {
    match pairs.iter_mut().find(|(key, _)| key.as_str() == Some(name)) {
        Some(pair) => pair.1 = value,
        None => pairs.push((name.into(), value)),
    }
}
