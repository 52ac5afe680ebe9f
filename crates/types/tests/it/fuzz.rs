//! Every decoder, given recorded bodies with some bytes changed: it answers, and what it accepts it writes so
//! that it reads the same again. `PROPTEST_CASES=100000` looks longer.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngSeed, TestCaseError};
use prost::Message;
use serde::Serialize;
use serde_json::Value;
use tinsmith_types::json::{self, Request};
use tinsmith_types::path::CheckpointPath;
use tinsmith_types::queued::QueuedRequest;
use tinsmith_types::tensor::TensorData;
use tinsmith_types::{
    auth, checkpoints, futures, proto, sampling, search, service, session, telemetry, training,
    weights,
};

use crate::golden::{self, list};

type Checked = Result<(), TestCaseError>;

/// More cells than this are not spread out in memory.
const CELLS_MAX: usize = 1 << 16;

/// Recorded bodies: JSON, and protobuf.
static BODIES: LazyLock<(Vec<String>, Vec<Vec<u8>>)> = LazyLock::new(|| {
    let (mut texts, mut binaries) = (BTreeSet::new(), BTreeSet::new());
    for file in golden::files().expect("the recordings") {
        let text = fs::read_to_string(file).expect("a recording");
        let recording: Value = serde_json::from_str(&text).expect("a recording");
        let exchanges = list(&recording["exchanges"]).iter();
        for side in exchanges.flat_map(|exchange| [&exchange["request"], &exchange["response"]]) {
            let body = &side["body"];
            if body["json"].is_object() {
                texts.insert(body["json"].to_string());
            }
            if let Some(raw) = body["raw_base64"].as_str() {
                let raw = BASE64.decode(raw).expect("base64");
                binaries.insert(zstd::decode_all(&raw[..]).unwrap_or(raw));
            }
        }
    }
    (texts.into_iter().collect(), binaries.into_iter().collect())
});

/// A change at some place of a body.
#[derive(Clone, Debug)]
enum Edit {
    Byte(Index, u8),
    Bit(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let words = [
        "null",
        "-1",
        "1e999",
        "[[",
        "{\"a\":",
        "\"",
        "\\",
        "18446744073709551616",
        "{}",
        "[]",
        "NaN",
    ];
    let insert = prop_oneof![
        proptest::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 1..12),
        (0x08_u8..0x80)
            .prop_map(|key| vec![key, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
    ];
    let edit = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        (any::<Index>(), 0_u8..8).prop_map(|(at, bit)| Edit::Bit(at, bit)),
        any::<Index>().prop_map(Edit::Cut),
        (any::<Index>(), 1_usize..20).prop_map(|(at, count)| Edit::Remove(at, count)),
        (any::<Index>(), insert).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
    ];
    proptest::collection::vec(edit, 0..4)
}

fn edited(body: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    for edit in edits {
        let len = bytes.len();
        if len == 0 {
            break;
        }
        match edit {
            Edit::Byte(at, byte) => bytes[at.index(len)] = *byte,
            Edit::Bit(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Edit::Cut(at) => bytes.truncate(at.index(len)),
            Edit::Remove(at, count) => {
                let at = at.index(len);
                bytes.drain(at..len.min(at + count));
            }
            Edit::Insert(at, new) => {
                let at = at.index(len);
                bytes.splice(at..at, new.iter().copied());
            }
        }
    }
    bytes
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.saturating_mul(8),
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn json_bodies(body in any::<Index>(), edits in edits()) {
        let texts = &BODIES.0;
        let body = edited(texts[body.index(texts.len())].as_bytes(), &edits);
        requests(&body)?;
        results(&body);
        if let Ok(read) = json::read::<training::ForwardBackwardRequest>(&body)
            && let Ok(request) = proto::ForwardBackwardRequest::try_from(read.request)
        {
            batch(&request);
        }
        for kind in ["create_model", "load_weights", "optim_step", "save_weights", "sample"] {
            queued(kind, &body)?;
        }
    }

    #[test]
    fn protobuf_bodies(body in any::<Index>(), edits in edits()) {
        let binaries = &BODIES.1;
        let body = Bytes::from(edited(&binaries[body.index(binaries.len())], &edits));
        for kind in ["forward", "forward_backward"] {
            queued(kind, &body)?;
        }
        if let Ok(request) = proto::ForwardBackwardRequest::decode(body.clone()) {
            batch(&request);
        }
        if let Ok(output) = proto::ForwardBackwardOutput::decode(body.clone()) {
            drop(training::ForwardBackwardOutput::try_from(&output));
        }
        if let Ok(response) = proto::SampleResponse::decode(body) {
            drop(sampling::SampleResponse::try_from(&response));
        }
    }

    #[test]
    fn tensors(
        shape in proptest::collection::vec(
            prop_oneof![0_i64..4, any::<i64>(), Just(i64::MAX), Just(i64::MIN)], 0..4),
        dtype in -1_i32..6,
        data in proptest::collection::vec(any::<u8>(), 0..64),
        csr in proptest::option::of((
            proptest::collection::vec(prop_oneof![0_i64..5, any::<i64>()], 0..5),
            proptest::collection::vec(prop_oneof![0_i64..5, any::<i64>()], 0..5))),
    ) {
        let data = Bytes::from(data);
        let encoding = match csr {
            None => proto::tensor::Encoding::Dense(data),
            Some((crow, col)) => proto::tensor::Encoding::SparseCsr(proto::SparseCsr {
                values: data,
                crow_indices: proto::pack::pack_i64(&crow),
                col_indices: proto::pack::pack_i64(&col),
            }),
        };
        tensor(&proto::Tensor { encoding: Some(encoding), dtype, shape });
    }

    #[test]
    fn checkpoint_paths(path in "(tinker:/{0,3})?([a-z0-9:._%\\\\/\u{0}é-]|weights/|sampler_){0,30}") {
        if let Ok(parsed) = path.parse::<CheckpointPath>() {
            prop_assert_eq!(parsed.to_string(), path);
        }
    }
}

/// Every request that is JSON.
fn requests(body: &[u8]) -> Checked {
    read::<auth::AuthTokenRequest>(body)?;
    read::<checkpoints::SetTtlRequest>(body)?;
    read::<futures::CancelFutureRequest>(body)?;
    read::<futures::RetrieveFutureRequest>(body)?;
    read::<futures::RetrieveFuturesRequest>(body)?;
    read::<sampling::CreateSamplingSessionRequest>(body)?;
    read::<sampling::JoinSamplingSessionRequest>(body)?;
    read::<sampling::SampleRequest>(body)?;
    read::<search::AssignProjectRequest>(body)?;
    read::<search::SearchSessionsRequest>(body)?;
    read::<service::ClientConfigRequest>(body)?;
    read::<session::CreateSessionRequest>(body)?;
    read::<session::FinishSessionRequest>(body)?;
    read::<session::HeartbeatRequest>(body)?;
    read::<telemetry::TelemetryRequest>(body)?;
    read::<training::CreateModelRequest>(body)?;
    read::<training::ForwardBackwardRequest>(body)?;
    read::<training::ForwardRequest>(body)?;
    read::<training::GetInfoRequest>(body)?;
    read::<training::OptimStepRequest>(body)?;
    read::<training::UnloadModelRequest>(body)?;
    read::<weights::CopyWeightsRequest>(body)?;
    read::<weights::LoadWeightsRequest>(body)?;
    read::<weights::SaveWeightsExternalRequest>(body)?;
    read::<weights::SaveWeightsForSamplerRequest>(body)?;
    read::<weights::SaveWeightsRequest>(body)?;
    read::<weights::WeightsInfoRequest>(body)
}

/// What is accepted is written, and then read and written the same again.
fn read<T: Debug + Request + Serialize>(body: &[u8]) -> Checked {
    let Ok(read) = json::read::<T>(body) else { return Ok(()) };
    let written = serde_json::to_vec(&read.request).expect("wire types can be written");
    let again = json::read::<T>(&written).map_err(|error| {
        let written = String::from_utf8_lossy(&written);
        TestCaseError::fail(format!("writes {written} and does not read it: {error}"))
    })?;
    prop_assert_eq!(serde_json::to_vec(&again.request).expect("as before"), written);
    Ok(())
}

/// What clients read.
fn results(body: &[u8]) {
    drop(serde_json::from_slice::<sampling::SampleResponse>(body));
    drop(serde_json::from_slice::<training::ForwardBackwardOutput>(body));
    drop(serde_json::from_slice::<futures::UntypedFuture>(body));
}

/// A stored request reads as it was written.
fn queued(kind: &str, body: &[u8]) -> Checked {
    let Ok(request) = QueuedRequest::decode(kind, &Bytes::copy_from_slice(body)) else {
        return Ok(());
    };
    let stored = request.encode();
    let again = QueuedRequest::decode(request.kind_name(), &stored)
        .map_err(|error| TestCaseError::fail(format!("{kind} does not read again: {error}")))?;
    prop_assert_eq!(again.encode(), stored);
    prop_assert_eq!(again.digest_input(), request.digest_input());
    Ok(())
}

fn batch(request: &proto::ForwardBackwardRequest) {
    drop((request.loss_config(), request.order()));
    request.data.iter().flat_map(|datum| datum.loss_fn_inputs.values()).for_each(tensor);
}

fn tensor(tensor: &proto::Tensor) {
    drop(TensorData::try_from(tensor));
    if let Ok(layout) = tensor.layout()
        && layout.cells() <= CELLS_MAX
    {
        layout.expand(vec![1_u8; layout.stored()], 0);
    }
}
