//! Protobuf bodies: our message says what the recording's `decoded` says, and survives encoding.

use std::fmt::Debug;

use bytes::Bytes;
use prost::Message;
use serde_json::Value;
use tinsmith_types::proto::{self, describe};
use tinsmith_types::queued::QueuedRequest;
use tinsmith_types::{sampling, training};

use super::{Result, same};

pub(super) fn check(decoded: &Value, bytes: Vec<u8>) -> Result {
    let mut decoded = decoded.clone();
    let fields = decoded.as_object_mut().ok_or("is no object")?;
    let name = fields.remove("message").unwrap_or_default();
    match name.as_str() {
        Some("ForwardBackwardRequest") => {
            let message = survives::<proto::ForwardBackwardRequest>(bytes.into())?;
            same(&decoded, &describe::request(&message)?)?;
            stored(message)
        }
        Some("ForwardBackwardOutput") => {
            let message = survives::<proto::ForwardBackwardOutput>(bytes.into())?;
            same(&decoded, &describe::output(&message)?)?;
            training::ForwardBackwardOutput::try_from(&message)?;
            Ok(())
        }
        Some("SampleResponse") => {
            let message = survives::<proto::SampleResponse>(bytes.into())?;
            same(&decoded, &describe::sample(&message)?)?;
            sampling::SampleResponse::try_from(&message)?;
            Ok(())
        }
        other => Err(format!("unknown message {other:?}").into()),
    }
}

/// The recorded bytes themselves are not written again: maps have no order there, and a zero in a map
/// is spelled out. What we write is canonical.
fn survives<T: Debug + Default + Message + PartialEq>(bytes: Bytes) -> Result<T> {
    let message = T::decode(bytes)?;
    let encoded = Bytes::from(message.encode_to_vec());
    // Compared as bytes, since NaN differs from itself.
    if T::decode(encoded.clone())?.encode_to_vec() != encoded {
        return Err("does not survive decode, encode, decode".into());
    }
    Ok(message)
}

fn stored(message: proto::ForwardBackwardRequest) -> Result {
    let queued = QueuedRequest::from_proto(message);
    if QueuedRequest::decode(queued.kind_name(), &queued.encode())? != queued {
        return Err("does not survive being stored".into());
    }
    Ok(())
}
