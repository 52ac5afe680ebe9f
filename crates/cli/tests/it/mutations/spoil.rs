//! Ways to spoil a request.

use prost::Message as _;
use serde_json::{Map, Value};
use tinsmith_types::proto::{
    Chunk, EncodedTextChunk, ForwardBackwardRequest, SparseCsr, chunk,
    pack::{pack_f32, pack_i32, pack_i64},
    tensor,
};

use crate::{random::Random, recording::Request};

/// What stands in the place of a value, as JSON text: some of it is none.
fn stand_ins() -> Vec<String> {
    let words = [
        "null",
        "true",
        "\"\"",
        "\"x\"",
        "\"\\u0000\"",
        "\"tinker://\"",
        "\"../..\"",
        "0",
        "-1",
        "1.5",
        "2147483647",
        "2147483648",
        "-9223372036854775808",
        "18446744073709551615",
        "1e308",
        "1e999",
        "NaN",
        "[]",
        "{}",
        "[[]]",
        "[null]",
        "{\"type\":\"x\"}",
        "[1,\"x\",null]",
    ];
    let mut all: Vec<String> = words.map(str::to_owned).to_vec();
    all.push("9".repeat(400));
    all.push(format!("\"{}\"", "long ".repeat(20_000)));
    for depth in [100, 200, 50_000] {
        all.push(format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
    }
    all.push(format!("{}1{}", "{\"a\":".repeat(127), "}".repeat(127)));
    all
}

/// A spoilt body, with what was done to it.
pub(super) struct Spoilt {
    pub(super) how: String,
    pub(super) body: Vec<u8>,
    /// Headers in place of those that there were.
    pub(super) headers: Vec<(&'static str, &'static str)>,
}

impl Spoilt {
    fn body(how: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { how: how.into(), body: body.into(), headers: Vec::new() }
    }

    fn headers(how: &str, body: &[u8], headers: &[(&'static str, &'static str)]) -> Self {
        Self { headers: headers.to_vec(), ..Self::body(how, body) }
    }

    /// Whether the server can read which run and number it is for.
    pub(super) fn has_place(&self, request: &Request, run: Option<&(String, i64)>) -> bool {
        let Some((model, order)) = run else { return false };
        if !self.headers.is_empty() {
            return false;
        }
        match request.body["encoding"].as_str() {
            Some("json") => serde_json::from_slice::<Value>(&self.body)
                .is_ok_and(|body| body["model_id"] == **model && body["seq_id"] == *order),
            Some("protobuf") => {
                let place = place(model, *order);
                self.body.starts_with(&place)
            }
            _ => false,
        }
    }
}

/// A JSON body with one value left out, or another in its place; `may_touch` says in which fields of the
/// whole.
pub(super) fn json(
    body: &Value,
    may_touch: impl Fn(&str) -> bool,
    random: &mut Random,
) -> Option<Spoilt> {
    // Texts that are no JSON cannot stand in a `Value`.
    const MARK: &str = "<the place>";
    let mut places = Vec::new();
    collect("", body, &mut places);
    places.retain(|place| may_touch(place.split('/').nth(1).unwrap_or_default()));
    let place = places.get(random.below(places.len()))?;
    let mut changed = body.clone();
    if random.below(6) == 0 {
        remove(&mut changed, place);
        return Some(Spoilt::body(format!("without {place}"), changed.to_string()));
    }
    *changed.pointer_mut(place).unwrap() = MARK.into();
    let stand_ins = stand_ins();
    let stand_in = &stand_ins[random.below(stand_ins.len())];
    let text = changed.to_string().replace(&format!("\"{MARK}\""), stand_in);
    let shown: String = stand_in.chars().take(30).collect();
    Some(Spoilt::body(format!("{place} is {shown}"), text))
}

/// Pointers to all values; of lists to the first two.
fn collect(at: &str, json: &Value, places: &mut Vec<String>) {
    let mut each = |name: &str, value: &Value| {
        let place = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        collect(&place, value, places);
        places.push(place);
    };
    match json {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| each(name, value)),
        Value::Array(values) => {
            values.iter().take(2).enumerate().for_each(|(i, value)| each(&i.to_string(), value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn remove(json: &mut Value, place: &str) {
    let (parent, name) = place.rsplit_once('/').unwrap();
    match json.pointer_mut(parent).unwrap() {
        Value::Object(fields) => drop(fields.remove(&name.replace("~1", "/").replace("~0", "~"))),
        Value::Array(values) => drop(values.remove(name.parse().unwrap())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// How many [`whole`] gives.
pub(super) const WHOLE: usize = 18;

/// A JSON body as a whole: cut off, of another kind, packed wrongly.
pub(super) fn whole(body: &Value) -> Vec<Spoilt> {
    let text = body.to_string();
    let bytes = text.as_bytes();
    let cut = |at: usize| Spoilt::body(format!("cut at {at}"), &bytes[..at]);
    let mut doubled = text.trim_end_matches('}').to_owned();
    let fields = body.as_object().map_or(0, Map::len);
    doubled.push_str(if fields == 0 { "\"a\":1,\"a\":2}" } else { ",\"a\":1,\"a\":2}" });
    let wrapped = format!("[{text}]");
    let unpacked = [("content-encoding", "zstd")];
    vec![
        cut(0),
        cut(1),
        cut(bytes.len() / 3),
        cut(bytes.len() / 2),
        cut(bytes.len() - 1),
        Spoilt::body("doubled field", doubled),
        Spoilt::body("in a list", wrapped),
        Spoilt::body("followed by more", format!("{text}{text}")),
        Spoilt::body("not UTF-8", [bytes, &[0xff, 0xfe]].concat()),
        Spoilt::body("a text", "\"body\""),
        Spoilt::body("null", "null"),
        Spoilt::headers("as protobuf", bytes, &[("content-type", "application/x-protobuf")]),
        Spoilt::headers("as a form", bytes, &[("content-type", "multipart/form-data; boundary=x")]),
        Spoilt::headers("not packed", bytes, &unpacked),
        Spoilt::headers("gzip", bytes, &[("content-encoding", "gzip")]),
        Spoilt::headers("half a zstd frame", &half_frame(bytes), &unpacked),
        Spoilt::headers("odd accept", bytes, &[("accept", "application/x-protobuf;;;,,*")]),
        Spoilt::headers("odd preference", bytes, &[("prefer", "respond-async, wait=-1")]),
    ]
}

fn half_frame(bytes: &[u8]) -> Vec<u8> {
    let mut frame = zstd::encode_all(bytes, 3).unwrap();
    frame.truncate(frame.len() / 2);
    frame
}

/// The beginning of a batch: for which run it is, and its number.
fn place(model: &str, order: i64) -> Vec<u8> {
    let seq_id = i32::try_from(order).unwrap();
    ForwardBackwardRequest { model_id: model.to_owned(), seq_id, ..Default::default() }
        .encode_to_vec()
}

/// Ways to spoil a batch before random ones.
pub(super) const BINARY: usize = 7;

/// A protobuf body: cut off, with bits turned over and bytes replaced, packed wrongly, or with other arrays in
/// it. What it begins with stays, unless it is packed.
pub(super) fn batch(
    mut batch: ForwardBackwardRequest,
    is_packed: bool,
    round: usize,
    random: &mut Random,
) -> Spoilt {
    if round >= BINARY && random.below(2) == 0 {
        let how = other_arrays(&mut batch, random);
        let bytes = batch.encode_to_vec();
        return Spoilt::body(
            how,
            if is_packed { zstd::encode_all(&bytes[..], 3).unwrap() } else { bytes },
        );
    }
    let kept = place(&batch.model_id, batch.seq_id.into()).len();
    let bytes = batch.encode_to_vec();
    let (kept, body) =
        if is_packed { (0, zstd::encode_all(&bytes[..], 3).unwrap()) } else { (kept, bytes) };
    let zstd = [("content-encoding", "zstd")];
    let followed = |how, tail: &[u8]| Spoilt::body(how, [&body, tail].concat());
    match round {
        0 => Spoilt::headers("as JSON", &body, &[("content-type", "application/json")]),
        1 => Spoilt::headers("not packed", &body, if is_packed { &[] } else { &zstd }),
        2 => Spoilt::headers("half a zstd frame", &half_frame(&body), &zstd),
        3 => {
            let bomb = zstd::encode_all(&vec![0; 80 << 20][..], 1).unwrap();
            Spoilt::headers("much in a zstd frame", &bomb, &zstd)
        }
        4 => followed("followed by zeros", &[0; 64]),
        5 => followed("followed by an endless length", &[0x1a, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        6 => followed("followed by empty datums", &[0x1a, 0].repeat(300_000)),
        _ => other_bytes(body, kept, random),
    }
}

fn other_bytes(mut bytes: Vec<u8>, kept: usize, random: &mut Random) -> Spoilt {
    let at = kept + random.below(bytes.len() - kept);
    let end = bytes.len().min(at + 1 + random.below(16));
    let how = match random.below(4) {
        0 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        1 => {
            bytes[at] ^= 1 << random.below(8);
            format!("a bit turned at {at}")
        }
        2 => {
            bytes[at..end].fill(0xff);
            format!("ones from {at} to {end}")
        }
        _ => {
            bytes.drain(at..end);
            format!("without {at} to {end}")
        }
    };
    Spoilt::body(how, bytes)
}

/// Puts what no SDK sends in one place of a batch.
fn other_arrays(batch: &mut ForwardBackwardRequest, random: &mut Random) -> String {
    let (count, at) = (batch.data.len(), random.below(batch.data.len()));
    let number = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300][random.below(5)];
    match random.below(6) {
        0 => {
            ["", "x", "custom", "gspo"][random.below(4)].clone_into(&mut batch.loss_fn);
            return format!("loss {:?}", batch.loss_fn);
        }
        1 => {
            let names = ["clip_low_threshold", "beta", "kl_coeff", "loss_id", "x"];
            let name = names[random.below(names.len())];
            batch.loss_fn_config.insert(name.to_owned(), number);
            batch.loss_fn_config_v2.clear();
            return format!("{name} {number}");
        }
        2 => {
            batch.data[at].model_input.clear();
            return format!("no input in {at} of {count}");
        }
        3 => {
            let tokens = [i32::MIN, -1, 0, i32::MAX][random.below(4)];
            let text = EncodedTextChunk { tokens: pack_i32(&[tokens; 3]) };
            let text = Chunk { chunk: Some(chunk::Chunk::EncodedText(text)) };
            batch.data[at].model_input.insert(0, text);
            return format!("tokens {tokens}");
        }
        _ => {}
    }
    let inputs = &mut batch.data[at].loss_fn_inputs;
    let names: Vec<String> = inputs.keys().cloned().collect();
    let Some(name) = names.get(random.below(names.len())) else { return "nothing".to_owned() };
    let tensor = inputs.get_mut(name).unwrap();
    match random.below(6) {
        0 => tensor.shape.push([0, -1, 1, i64::MAX, 1 << 40][random.below(5)]),
        1 => tensor.shape = vec![[0, -1, i64::MAX, i64::MIN][random.below(4)]; random.below(3)],
        2 => tensor.dtype = [0, 2, 99, -1][random.below(4)],
        3 => tensor.encoding = None,
        4 => {
            let cells = tensor.stored().len() / 4;
            #[expect(clippy::cast_possible_truncation, reason = "infinite is one of those meant")]
            let values = vec![number as f32; cells];
            tensor.encoding = Some(tensor::Encoding::Dense(pack_f32(&values)));
        }
        _ => {
            let odd = [i64::MIN, -1, i64::MAX, 5][random.below(4)];
            tensor.encoding = Some(tensor::Encoding::SparseCsr(SparseCsr {
                values: pack_f32(&[1.0]),
                crow_indices: pack_i64(&[0, odd]),
                col_indices: pack_i64(&[odd]),
            }));
        }
    }
    format!("{name} is {tensor:?}").chars().take(200).collect()
}

/// A path and query with one part replaced.
pub(super) fn paths(path: &str) -> Vec<String> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let long = "a".repeat(8000);
    let stand_ins = ["", "x", "%00", "%2e%2e", "%2F", "%ff", "-1", "a:b", "a%20b", &long];
    let segments: Vec<&str> = path.split('/').collect();
    let mut paths = Vec::new();
    for (i, stand_in) in (3..segments.len()).flat_map(|i| stand_ins.map(|word| (i, word))) {
        let mut segments = segments.clone();
        segments[i] = stand_in;
        paths.push(format!("{}?{query}", segments.join("/")));
    }
    for parameter in [
        "limit",
        "offset",
        "access_scope",
        "project_id",
        "day",
        "event_type",
        "starting_on",
        "cursor",
    ] {
        for value in ["", "-1", "0", "x", "1e9", "18446744073709551616", "%00", "2026-13-45", "%ff"]
        {
            paths.push(format!("{path}?{query}&{parameter}={value}"));
        }
    }
    paths.push(format!("{path}?{}", "a=1&".repeat(1000)));
    paths.push(format!("{path}/"));
    paths
}
