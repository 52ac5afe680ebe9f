//! Lines of JSON, one row each.

use std::io::{BufRead, Read as _};

use serde::Deserialize;
use tinsmith_tokenizer::Value;

use crate::{Error, Result, Row, chat::Conversation, dataset::Example};

/// Longest line.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Most rows of one file.
const ROWS_MAX: usize = 50_000_000;

/// The rows of `lines`. Ends after the first that fails.
pub(super) fn rows(mut lines: impl BufRead, name: &str) -> impl Iterator<Item = Result<Row>> {
    let (mut number, mut count, mut has_failed) = (0_usize, 0_usize, false);
    std::iter::from_fn(move || {
        while !has_failed {
            number += 1;
            let row = match next(&mut lines) {
                Ok(None) => return None,
                Ok(Some(line)) if line.trim_ascii().is_empty() => continue,
                Ok(Some(_)) if count == ROWS_MAX => Err(format!("there are more than {ROWS_MAX}")),
                Ok(Some(line)) => parse(&line),
                Err(message) => Err(message),
            };
            count += 1;
            has_failed = row.is_err();
            return Some(
                row.map_err(|message| {
                    Error::validation(format!("{name} line {number}: {message}"))
                }),
            );
        }
        None
    })
}

fn next(lines: &mut impl BufRead) -> Result<Option<Vec<u8>>, String> {
    let mut line = Vec::new();
    let read = lines.take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
    if read.map_err(|error| error.to_string())? as u64 > LINE_BYTES_MAX {
        return Err(format!("the line has more than {LINE_BYTES_MAX} bytes"));
    }
    Ok((!line.is_empty()).then_some(line))
}

/// All that rows of any kind have.
#[derive(Deserialize)]
struct Line {
    messages: Option<Vec<Value>>,
    tools: Option<Vec<Value>>,
    prompt: Option<Said>,
    completion: Option<Said>,
    chosen: Option<Said>,
    rejected: Option<Said>,
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of messages")]
enum Said {
    Text(String),
    Messages(Vec<Value>),
}

fn parse(line: &[u8]) -> Result<Row, String> {
    // A byte order mark is what some editors begin a file with.
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    let parsed: Line = serde_json::from_slice(line).map_err(|error| {
        // The place within the file stands before it.
        let message = error.to_string();
        let end = message.rfind(" at line ").unwrap_or(message.len());
        format!("column {}: {}", error.column(), &message[..end])
    })?;
    match parsed {
        Line { messages: Some(messages), tools, prompt: None, completion: None, .. } => {
            conversation(messages, tools).map(|chat| Row::Example(Example::Conversation(chat)))
        }
        Line { prompt: Some(prompt), completion: Some(completion), tools, .. } => {
            example(prompt, completion, tools).map(Row::Example)
        }
        Line { prompt, chosen: Some(chosen), rejected: Some(rejected), tools, .. } => {
            preference(prompt, chosen, rejected, tools)
        }
        Line { text: Some(text), .. } => Ok(Row::Example(Example::Text(text))),
        Line { prompt: Some(_), .. } => {
            Err("has a `prompt`, and neither a `completion` nor `chosen` and `rejected`".to_owned())
        }
        Line { completion: Some(_), .. } => Err("has a `completion` without a `prompt`".to_owned()),
        Line { .. } => {
            Err("has none of `messages`, `prompt` with `completion`, `prompt` with `chosen` and \
             `rejected`, and `text`"
                .to_owned())
        }
    }
}

fn conversation(messages: Vec<Value>, tools: Option<Vec<Value>>) -> Result<Conversation, String> {
    let made = Conversation::from_values(messages).map_err(|error| {
        let Error::Validation { message } = error else { return error.to_string() };
        message
    })?;
    Ok(match tools {
        Some(tools) => made.with_tools(tools),
        None => made,
    })
}

fn example(prompt: Said, answer: Said, tools: Option<Vec<Value>>) -> Result<Example, String> {
    match (prompt, answer) {
        (Said::Text(prompt), Said::Text(completion)) => {
            Ok(Example::Completion { prompt, completion })
        }
        (Said::Messages(prompt), Said::Text(answer)) => {
            Ok(Example::Answer(conversation(prompt, tools)?.assistant(answer)))
        }
        (Said::Messages(mut prompt), Said::Messages(answer)) => {
            prompt.extend(answer);
            Ok(Example::Answer(conversation(prompt, tools)?))
        }
        (Said::Text(_), Said::Messages(_)) => {
            Err("has a `prompt` that is a text, and an answer that is messages".to_owned())
        }
    }
}

fn preference(
    prompt: Option<Said>,
    chosen: Said,
    rejected: Said,
    tools: Option<Vec<Value>>,
) -> Result<Row, String> {
    let (chosen, rejected) = match (prompt, chosen, rejected) {
        // Whole conversations that differ in their last message; some files repeat the prompt beside them.
        (None | Some(Said::Text(_)), Said::Messages(chosen), Said::Messages(rejected)) => {
            let answer = |messages| conversation(messages, tools.clone()).map(Example::Answer);
            (answer(chosen)?, answer(rejected)?)
        }
        (Some(Said::Text(prompt)), chosen, rejected) => (
            example(Said::Text(prompt.clone()), chosen, tools.clone())?,
            example(Said::Text(prompt), rejected, tools)?,
        ),
        (Some(Said::Messages(prompt)), chosen, rejected) => (
            example(Said::Messages(prompt.clone()), chosen, tools.clone())?,
            example(Said::Messages(prompt), rejected, tools)?,
        ),
        (None, _, _) => return Err("has `chosen` and `rejected` without a `prompt`".to_owned()),
    };
    Ok(Row::Preference { chosen, rejected })
}
