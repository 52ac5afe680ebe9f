//! How an answer differs from the recorded one: status, headers that the SDK reads, fields and their types.

use prost::Message;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tinsmith_types::{proto, sampling, training};

use crate::{recording::Exchange, server::Reply};

/// Headers of answers that the SDK reads, and of which it only matters that they are there.
const READ: [&str; 4] = ["location", "expires", "retry-after", "www-authenticate"];

/// Objects whose keys are data.
const FREE: [&str; 4] = ["user_metadata", "event_data", "event_details", "loss_fn_config"];

/// Of an unexpected answer.
const TEXT_CHARS: usize = 300;

pub(super) fn differences(exchange: &Exchange, reply: &Reply, is_faulty: bool) -> Vec<String> {
    let recorded = &exchange.response;
    let mut lines = Vec::new();
    if reply.status >= 400 && reply.header("content-length").parse().unwrap_or(0) == 0 {
        lines.push(format!("{} without a length", reply.status));
    }
    if is_faulty {
        // What the honest answer looks like is in the recordings without faults.
        if reply.status != 200 || reply.json().get("error").is_some() {
            lines.push(said(reply));
        }
        return lines;
    }
    let failed =
        recorded.body["json"].get("error").is_none() && reply.json().get("error").is_some();
    if recorded.status != Some(reply.status) || failed {
        lines.push(said(reply));
        return lines;
    }
    for name in READ {
        if recorded.headers.contains_key(name) && reply.header(name).is_empty() {
            lines.push(format!("{} without the header {name}", reply.status));
        }
    }
    let essence = |kind: &str| kind.split(';').next().unwrap_or_default().trim().to_owned();
    let theirs = essence(recorded.headers.get("content-type").map_or("", String::as_str));
    let ours = essence(reply.header("content-type"));
    // An empty answer has no type, and that of a download does not matter.
    let is_read = matches!(recorded.body["encoding"].as_str(), Some("json" | "protobuf"));
    if theirs != ours && is_read {
        lines.push(format!("{} of type {ours:?} instead of {theirs:?}", reply.status));
    } else if theirs.ends_with("protobuf") {
        compare("", &recorded_message(exchange), &our_message(exchange, reply), &mut lines);
    } else {
        compare("", &recorded.body["json"], &reply.json(), &mut lines);
    }
    lines
}

fn said(reply: &Reply) -> String {
    let text = String::from_utf8_lossy(&reply.body);
    format!("{} {}", reply.status, text.chars().take(TEXT_CHARS).collect::<String>())
}

fn our_message(exchange: &Exchange, reply: &Reply) -> Value {
    message(&exchange.response.body["decoded"]["message"], &reply.body)
}

fn recorded_message(exchange: &Exchange) -> Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    let body = &exchange.response.body;
    let bytes = BASE64.decode(body["raw_base64"].as_str().unwrap()).unwrap();
    message(&body["decoded"]["message"], &bytes)
}

/// A protobuf result as it is in JSON, where every array has its shape.
fn message(name: &Value, bytes: &[u8]) -> Value {
    fn json<M: Default + Message, T: Serialize + for<'a> TryFrom<&'a M>>(bytes: &[u8]) -> Value {
        let message = M::decode(bytes).ok();
        let typed = message.and_then(|message| T::try_from(&message).ok());
        typed.map_or_else(|| json!("cannot be read"), |typed| serde_json::to_value(typed).unwrap())
    }
    match name.as_str().unwrap_or_default() {
        "ForwardBackwardOutput" => {
            json::<proto::ForwardBackwardOutput, training::ForwardBackwardOutput>(bytes)
        }
        "SampleResponse" => json::<proto::SampleResponse, sampling::SampleResponse>(bytes),
        other => panic!("no recording has {other}"),
    }
}

fn compare(place: &str, recorded: &Value, ours: &Value, lines: &mut Vec<String>) {
    match (recorded, ours) {
        (Value::Null, _) => {}
        (_, Value::Null) => lines.push(format!("without {place}")),
        (Value::Object(recorded), Value::Object(ours)) => {
            compare_fields(place, recorded, ours, lines);
        }
        (Value::Array(recorded), Value::Array(ours)) => compare_lists(place, recorded, ours, lines),
        (Value::Bool(_), Value::Bool(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_)) => {}
        _ => lines.push(format!("{place} is {}", short(ours))),
    }
}

fn compare_fields(
    place: &str,
    recorded: &Map<String, Value>,
    ours: &Map<String, Value>,
    lines: &mut Vec<String>,
) {
    if FREE.iter().any(|name| place.ends_with(name)) {
        return;
    }
    for (name, value) in recorded {
        // A stub makes metrics up; this one is promised.
        if place.ends_with("metrics") && name != "loss:sum" {
            continue;
        }
        let field = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
        compare(&field, value, ours.get(name).unwrap_or(&Value::Null), lines);
    }
    // Old SDKs read arrays strictly, and their shape is what the request says.
    if recorded.contains_key("dtype") {
        let extra = ours.keys().filter(|name| !recorded.contains_key(*name));
        lines.extend(extra.map(|name| format!("{place} with {name}")));
        for exact in ["dtype", "shape"] {
            if recorded.get(exact) != ours.get(exact) {
                let (theirs, ours) = (json!(recorded.get(exact)), json!(ours.get(exact)));
                lines.push(format!("{place}.{exact} is {ours} instead of {theirs}"));
            }
        }
    }
}

fn compare_lists(place: &str, recorded: &[Value], ours: &[Value], lines: &mut Vec<String>) {
    if recorded.is_empty() {
        return;
    }
    let exact = ["sequences", "loss_fn_outputs", "sample_sequence_ids"];
    if exact.iter().any(|name| place.ends_with(name)) && recorded.len() != ours.len() {
        lines.push(format!("{} {place} instead of {}", ours.len(), recorded.len()));
    }
    // Entries need not have all that may be left out; together they do.
    let known = |values: &[Value]| {
        values.iter().filter(|value| !value.is_null()).cloned().reduce(merged).unwrap_or_default()
    };
    compare(&format!("{place}[]"), &known(recorded), &known(ours), lines);
}

fn merged(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Object(mut one), Value::Object(other)) => {
            for (name, value) in other {
                let known = one.entry(name).or_insert(Value::Null);
                if known.is_null() {
                    *known = value;
                }
            }
            Value::Object(one)
        }
        (one, _) => one,
    }
}

fn short(json: &Value) -> String {
    json.to_string().chars().take(80).collect()
}
