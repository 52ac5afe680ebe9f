//! What templates expect of Python: its JSON, its string methods, its clock, and a tag of transformers.

use std::fmt::Write as _;

use jiff::civil::DateTime;
use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind},
};

/// Methods of Python's strings, lists and dictionaries.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let (Some(text), "title", []) = (value.as_str(), name, arguments) {
        return Ok(title(text).into());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// `str.title`: a word begins behind anything that is no letter, an apostrophe too.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        inside = character.is_alphabetic();
    }
    out
}

/// What `{{ value }}` writes.
pub(super) fn write(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    if !is_structured(value) {
        return minijinja::escape_formatter(out, state, value);
    }
    let mut text = String::new();
    repr(value, &mut text)?;
    out.write_str(&text).map_err(Error::from)
}

/// The filter `string`.
pub(super) fn string(value: &Value) -> Result<Value, Error> {
    let mut text = String::new();
    if is_structured(value) {
        repr(value, &mut text)?;
    } else {
        text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    }
    Ok(text.into())
}

/// The test `iterable`: what is undefined is, and none is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    let kinds = [
        ValueKind::Undefined,
        ValueKind::String,
        ValueKind::Seq,
        ValueKind::Map,
        ValueKind::Iterable,
    ];
    kinds.contains(&value.kind())
}

/// The filter `length`: what is undefined has none of it.
pub(super) fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        let problem = format!("cannot calculate length of value of type {}", value.kind());
        Error::new(ErrorKind::InvalidOperation, problem)
    })
}

/// Whether it is a number or may hold some, which Python writes in its own way.
fn is_structured(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Seq | ValueKind::Map)
}

/// Python's `repr`.
fn repr(value: &Value, out: &mut String) -> Result<(), Error> {
    let kind = value.kind();
    if kind == ValueKind::String {
        quote(value.as_str().unwrap_or_default(), out);
    } else if kind == ValueKind::Number && !value.is_integer() {
        let number = f64::try_from(value.clone())?;
        // JSON has other names for what is no number.
        let text = if number.is_finite() { float(number) } else { number.to_string() };
        out.push_str(&text.to_lowercase());
    } else if kind == ValueKind::Seq && !value.is_tuple() {
        out.push('[');
        for (index, item) in value.try_iter()?.enumerate() {
            out.push_str(if index > 0 { ", " } else { "" });
            repr(&item, out)?;
        }
        out.push(']');
    } else if kind == ValueKind::Map {
        out.push('{');
        for (index, key) in value.try_iter()?.enumerate() {
            out.push_str(if index > 0 { ", " } else { "" });
            repr(&key, out)?;
            out.push_str(": ");
            repr(&value.get_item(&key)?, out)?;
        }
        out.push('}');
    } else {
        out.push_str(&value.to_string());
    }
    Ok(())
}

/// Python's `repr` of a text.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            marked if marked == mark => out.extend(['\\', marked]),
            control if control < ' ' || ('\u{7f}'..='\u{a0}').contains(&control) => {
                write!(out, "\\x{:02x}", u32::from(control)).expect("a String takes all text");
            }
            plain => out.push(plain),
        }
    }
    out.push(mark);
}

/// The function `strftime_now`, at a time that stands still.
pub(super) fn strftime(now: DateTime) -> Value {
    Value::from_function(move |format: String| {
        let text = jiff::fmt::strtime::format(&format, now);
        text.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    })
}

/// Writes `{% generation %}` blocks, which mark what the assistant said for those who train on it, as blocks
/// that do nothing but keep their variables to themselves.
pub(super) fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let sign = tag.len() - tag.trim_start_matches(['-', '+']).len();
        let (sign, tag) = tag.split_at(sign.min(1));
        out.push_str(sign);
        let name = tag.trim_start();
        rest = tag;
        for (known, plain) in [("generation", " with"), ("endgeneration", " endwith")] {
            let end = name.strip_prefix(known).map(str::trim_start);
            if let Some(end) = end
                && end.trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(plain);
                out.push(' ');
                rest = end;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The filter `tojson` of transformers: Python's `json.dumps`, with characters beyond ASCII as they are.
#[expect(clippy::needless_pass_by_value, reason = "the form that minijinja calls filters in")]
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii);
    let indent = options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
    let indent = match indent {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?),
        }),
        None => None,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            let problem = "`separators` must be two texts";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let ascii = ensure_ascii.unwrap_or(false);
    let mut json = Json { text: String::new(), indent, item, key, sort_keys, ascii };
    json.value(value, 0)?;
    Ok(json.text.into())
}

/// Writes JSON as Python does.
struct Json {
    text: String,
    /// One step of indentation; `None`: all in one line.
    indent: Option<String>,
    /// Between items.
    item: String,
    /// Between a key and its value.
    key: String,
    sort_keys: bool,
    ascii: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let kind = value.kind();
        if kind == ValueKind::None {
            self.text.push_str("null");
        } else if kind == ValueKind::Bool {
            self.text.push_str(if value.is_true() { "true" } else { "false" });
        } else if kind == ValueKind::Number {
            self.number(value)?;
        } else if let Some(text) = value.as_str() {
            self.string(text);
        } else if kind == ValueKind::Seq || kind == ValueKind::Iterable {
            let items: Vec<Value> = value.try_iter()?.collect();
            self.block(('[', ']'), &items, depth, |json, item| json.value(item, depth + 1))?;
        } else if kind == ValueKind::Map {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if self.sort_keys {
                keys.sort();
            }
            self.block(('{', '}'), &keys, depth, |json, key| {
                json.key(key)?;
                json.text.push_str(&json.key.clone());
                json.value(&value.get_item(key)?, depth + 1)
            })?;
        } else {
            let problem = format!("{kind} cannot be written as JSON");
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        Ok(())
    }

    fn block(
        &mut self,
        (open, close): (char, char),
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                let separator = self.item.clone();
                self.text.push_str(&separator);
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }

    /// Keys are strings, whatever they were.
    fn key(&mut self, key: &Value) -> Result<(), Error> {
        if let Some(text) = key.as_str() {
            self.string(text);
            return Ok(());
        }
        self.text.push('"');
        self.value(key, 0)?;
        self.text.push('"');
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.text.push_str(&value.to_string());
            return Ok(());
        }
        self.text.push_str(&float(f64::try_from(value.clone())?));
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                plain if plain >= ' ' && (!self.ascii || plain < '\u{7f}') => self.text.push(plain),
                other => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        write!(self.text, "\\u{unit:04x}").expect("a String takes all text");
                    }
                }
            }
        }
        self.text.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits that read back as the same number.
fn float(value: f64) -> String {
    if !value.is_finite() {
        return match (value.is_nan(), value > 0.0) {
            (true, _) => "NaN",
            (false, true) => "Infinity",
            (false, false) => "-Infinity",
        }
        .to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
