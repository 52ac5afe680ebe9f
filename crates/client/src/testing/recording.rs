//! Conversations on disk: one JSON document, or JSON lines with an exchange each.

use std::{collections::BTreeMap, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a client and a server said to each other, in the order in which the requests came.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Recording {
    /// Requests with their answers.
    pub exchanges: Vec<Exchange>,
}

/// A request with its answer.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Exchange {
    /// What was asked.
    pub request: RecordedRequest,
    /// What was answered.
    pub response: RecordedResponse,
}

/// A request on disk.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct RecordedRequest {
    /// Such as `POST`.
    pub method: String,
    /// Without the server and the query.
    pub path: String,
    /// Decoded.
    #[serde(default)]
    pub query: BTreeMap<String, String>,
    /// Their names in small letters, keys and tokens replaced.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// None where there is none.
    #[serde(default)]
    pub body: Option<RecordedBody>,
}

/// An answer on disk.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct RecordedResponse {
    /// None: the connection was closed instead.
    #[serde(default)]
    pub status: Option<u16>,
    /// Their names in small letters.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// None where there is none.
    #[serde(default)]
    pub body: Option<RecordedBody>,
}

/// A body on disk.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct RecordedBody {
    /// `json`, `protobuf`, `protobuf+zstd`, `text` or `bytes`.
    pub encoding: String,
    /// What a JSON body says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// What a protobuf body says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoded: Option<Value>,
    /// A text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What travelled, where it was neither JSON nor text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_base64: Option<String>,
}

impl Recording {
    /// Reads a file of either form.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is no recording; the message has the line.
    pub fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)?;
        if let Ok(whole) = serde_json::from_str::<Value>(&text)
            && whole.get("exchanges").is_some()
        {
            let read = Self::deserialize(whole);
            return read.map_err(|error| unreadable(path, 1, &error));
        }
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let exchanges = lines.map(|(i, line)| {
            serde_json::from_str(line).map_err(|error| unreadable(path, i + 1, &error))
        });
        Ok(Self { exchanges: exchanges.collect::<io::Result<_>>()? })
    }

    /// Writes JSON lines.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut text = String::new();
        for exchange in &self.exchanges {
            text.push_str(&serde_json::to_string(exchange)?);
            text.push('\n');
        }
        std::fs::write(path, text)
    }
}

impl RecordedRequest {
    /// The path behind `/api/v1/`.
    pub fn endpoint(&self) -> &str {
        self.path.strip_prefix("/api/v1/").unwrap_or(&self.path)
    }

    /// What the body says, whatever its encoding; null where there is none.
    pub fn says(&self) -> &Value {
        self.body.as_ref().map_or(&Value::Null, RecordedBody::says)
    }
}

impl RecordedBody {
    /// What it says, whatever its encoding; null where that is not JSON.
    pub fn says(&self) -> &Value {
        self.json.as_ref().or(self.decoded.as_ref()).unwrap_or(&Value::Null)
    }

    /// What travels.
    ///
    /// # Errors
    ///
    /// The base64 is broken.
    pub fn bytes(&self) -> io::Result<Bytes> {
        if let Some(raw) = &self.raw_base64 {
            return BASE64.decode(raw).map(Bytes::from).map_err(io::Error::other);
        }
        let text = self.text.clone();
        Ok(self.json.as_ref().map(Value::to_string).or(text).unwrap_or_default().into())
    }

    /// A body as it travelled. `decoded` is what it says, where that is not JSON.
    pub(super) fn new(content_type: &str, raw: &Bytes, decoded: Option<Value>) -> Option<Self> {
        if raw.is_empty() {
            return None;
        }
        let encoding = |encoding: &str| Self { encoding: encoding.to_owned(), ..Self::default() };
        if content_type.contains("x-protobuf") {
            let raw_base64 = Some(BASE64.encode(raw));
            return Some(Self { decoded, raw_base64, ..encoding("protobuf") });
        }
        if let Ok(json) = serde_json::from_slice(raw) {
            return Some(Self { json: Some(json), ..encoding("json") });
        }
        Some(match std::str::from_utf8(raw) {
            Ok(text) => Self { text: Some(text.to_owned()), ..encoding("text") },
            Err(_) => Self { raw_base64: Some(BASE64.encode(raw)), ..encoding("bytes") },
        })
    }
}

fn unreadable(path: &Path, line: usize, error: &serde_json::Error) -> io::Error {
    io::Error::other(format!("read {}, line {line}: {error}", path.display()))
}
