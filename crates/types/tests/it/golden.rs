//! Recorded conversations of the official SDKs, `recordings/<sdk version>/<operation>.json`: every
//! body is read as its type and written again. What has no type, or does not pass, is listed with
//! its reason; a list that says too much fails too.

mod decoded;
mod endpoints;
mod left_out;

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::{fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::left_out::{LEFT_OUT, LeftOut, NO_TYPE};

pub(crate) type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

#[test]
fn recordings_decode_and_encode() -> Result {
    let mut report = Report::default();
    let (mut recordings, mut raw_bodies) = (0, 0);
    for file in files()? {
        let text = fs::read_to_string(&file)?;
        let version = file.parent().and_then(Path::file_name).unwrap_or_default();
        let operation = file.file_stem().unwrap_or_default();
        let name = format!("{}/{}", version.display(), operation.display());
        recordings += 1;
        raw_bodies += text.matches("\"raw_base64\"").count();
        let recording: Value = serde_json::from_str(&text)?;
        for (i, exchange) in list(&recording["exchanges"]).iter().enumerate() {
            for side in ["request", "response"] {
                report.add((&name, i, side), check(exchange, side));
            }
        }
    }
    report.finish();
    assert!(report.problems.is_empty(), "{}", report.problems.join("\n"));
    assert_eq!(report.protobuf, raw_bodies);
    // So that a change of the layout cannot make the test pass by looking at nothing.
    assert_eq!(recordings, 592);
    assert!(report.json > 1700 && raw_bodies > 150, "{} {raw_bodies}", report.json);
    Ok(())
}

/// All recordings, in order.
pub(crate) fn files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings");
    for version in fs::read_dir(root)? {
        let version = version?.path();
        if version.is_dir() {
            let entries = fs::read_dir(version)?;
            files.extend(entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?);
        }
    }
    files.sort();
    Ok(files)
}

/// What a body turned out to be.
enum Outcome {
    Json,
    Protobuf,
    /// Nothing in it, or text where the status is all that counts.
    Empty,
    /// No type for bodies of this endpoint.
    NoType(String),
}

#[derive(Default)]
struct Report {
    json: usize,
    protobuf: usize,
    no_type: BTreeSet<String>,
    listed: BTreeSet<usize>,
    problems: Vec<String>,
}

impl Report {
    fn add(&mut self, place: (&str, usize, &str), outcome: Result<Outcome>) {
        let listed = LEFT_OUT.iter().position(|out: &LeftOut| out.place() == place);
        self.listed.extend(listed);
        let (file, exchange, side) = place;
        match (outcome, listed) {
            (Ok(Outcome::Json), None) => self.json += 1,
            (Ok(Outcome::Protobuf), None) => self.protobuf += 1,
            (Ok(Outcome::Empty), None) => {}
            (Ok(Outcome::NoType(endpoint)), None) => {
                self.no_type.insert(endpoint);
            }
            (Err(_), Some(_)) => {}
            (Err(error), None) => {
                self.problems.push(format!("{file} exchange {exchange} {side}: {error}"));
            }
            (Ok(_), Some(_)) => {
                let problem = "passes and is listed as left out";
                self.problems.push(format!("{file} exchange {exchange} {side}: {problem}"));
            }
        }
    }

    fn finish(&mut self) {
        for (i, out) in LEFT_OUT.iter().enumerate() {
            if !self.listed.contains(&i) {
                self.problems.push(format!("{out:?} is listed as left out and does not exist"));
            }
        }
        let listed: BTreeSet<_> = NO_TYPE.iter().map(|(endpoint, _)| (*endpoint).into()).collect();
        for endpoint in self.no_type.symmetric_difference(&listed) {
            let problem = "is either recorded without a type or listed so, not both";
            self.problems.push(format!("{endpoint}: {problem}"));
        }
    }
}

fn check(exchange: &Value, side: &str) -> Result<Outcome> {
    let body = &exchange[side]["body"];
    match body["encoding"].as_str() {
        Some("json") => check_json(exchange, side, body),
        Some("protobuf") => {
            decoded::check(&body["decoded"], raw(body)?).map(|()| Outcome::Protobuf)
        }
        Some("protobuf+zstd") => {
            let bytes = zstd::decode_all(&raw(body)?[..])?;
            decoded::check(&body["decoded"], bytes).map(|()| Outcome::Protobuf)
        }
        None | Some("text" | "bytes") => Ok(Outcome::Empty),
        Some(other) => Err(format!("unknown encoding {other}").into()),
    }
}

fn raw(body: &Value) -> Result<Vec<u8>> {
    Ok(BASE64.decode(body["raw_base64"].as_str().ok_or("has no raw bytes")?)?)
}

fn check_json(exchange: &Value, side: &str, body: &Value) -> Result<Outcome> {
    let json = body.get("json").ok_or("is cut off in the recording")?;
    let endpoint = endpoints::name(&exchange["request"]);
    let check = match side {
        _ if json.is_null() => return Ok(Outcome::Empty),
        "request" => endpoints::request(&endpoint),
        _ => endpoints::response(&endpoint, exchange),
    };
    let Some(check) = check else { return Ok(Outcome::NoType(format!("{endpoint} {side}"))) };
    check(json).map(|()| Outcome::Json)
}

/// Reads a recorded answer as a `T`, and finds the same in what it writes, but for nulls, and a `type`
/// that may be left out.
fn round_trip<T: Debug + DeserializeOwned + Serialize>(recorded: &Value) -> Result {
    let typed: T = serde_json::from_value(recorded.clone())?;
    let mut written = serde_json::to_value(&typed)?;
    if let (None, Some(fields)) = (recorded.get("type"), written.as_object_mut()) {
        fields.remove("type");
    }
    same(recorded, &written)
}

fn same(recorded: &Value, written: &Value) -> Result {
    let (recorded, written) = (without_nulls(recorded), without_nulls(written));
    if recorded == written || in_single_precision(&recorded) == written {
        return Ok(());
    }
    Err(format!("recorded {recorded}, written {written}").into())
}

/// Logprobs are `f32` here, and were written down by hand.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what this is for")]
fn in_single_precision(json: &Value) -> Value {
    match json {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), in_single_precision(value))).collect()
        }
        Value::Array(values) => values.iter().map(in_single_precision).collect(),
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or(Value::Null, |number| f64::from(number as f32).into())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => json.clone(),
    }
}

/// Every field of what was recorded, but for nulls, is written alike.
fn has_all_of(recorded: &Value, written: &Value) -> Result {
    match (recorded, written) {
        (Value::Object(recorded), Value::Object(written)) => {
            for (name, value) in recorded.iter().filter(|(_, value)| !value.is_null()) {
                let written = written.get(name).ok_or_else(|| format!("{name} is not written"))?;
                has_all_of(value, written).map_err(|error| format!("{name}: {error}"))?;
            }
            Ok(())
        }
        (Value::Array(recorded), Value::Array(written)) if recorded.len() == written.len() => {
            recorded.iter().zip(written).try_for_each(|(one, other)| has_all_of(one, other))
        }
        _ => same(recorded, written),
    }
}

fn without_nulls(json: &Value) -> Value {
    match json {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields.map(|(name, value)| (name.clone(), without_nulls(value))).collect()
        }
        Value::Array(values) => values.iter().map(without_nulls).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => json.clone(),
    }
}

pub(crate) fn list(json: &Value) -> &[Value] {
    json.as_array().map_or(&[], Vec::as_slice)
}
