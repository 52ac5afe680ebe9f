//! Requests with a place in a run's order, and what becomes of the place when one is refused.
//!
//! A client that is told 400 goes on with the next number and never repeats the refused one. The number
//! is therefore written down as used: what follows would wait for it in vain.

use std::{borrow::Cow, fmt};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts},
    http,
};
use bytes::Bytes;
use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use tinsmith_store::{self as store, Category, Failure, NewRequest, RequestKind, RunRecord};
use tinsmith_types::{
    ids::{ModelId, SeqId, TenantId},
    json::Request,
    training::{ForwardBackwardRequest, ForwardRequest, OptimStepRequest},
    weights::{
        LoadWeightsRequest, SaveWeightsExternalRequest, SaveWeightsForSamplerRequest,
        SaveWeightsRequest,
    },
};

use crate::{
    body::{self, Hold, Plain},
    catalog::ModelEntry,
    error::{Error, Result, short},
    parts,
    state::{Shared, Tenant},
    submit::live_run,
};

/// Numbers are 32 bits wide on the wire.
pub(crate) const SEQ_ID_MAX: i64 = i32::MAX as i64;

/// A JSON request to a run.
pub(crate) trait Ordered: Request {
    const KIND: RequestKind;
}

impl Ordered for ForwardRequest {
    const KIND: RequestKind = RequestKind::Forward;
}

impl Ordered for ForwardBackwardRequest {
    const KIND: RequestKind = RequestKind::ForwardBackward;
}

impl Ordered for OptimStepRequest {
    const KIND: RequestKind = RequestKind::OptimStep;
}

impl Ordered for SaveWeightsRequest {
    const KIND: RequestKind = RequestKind::SaveWeights;
}

impl Ordered for SaveWeightsForSamplerRequest {
    const KIND: RequestKind = RequestKind::SaveWeightsForSampler;
}

impl Ordered for SaveWeightsExternalRequest {
    const KIND: RequestKind = RequestKind::SaveWeightsExternal;
}

impl Ordered for LoadWeightsRequest {
    const KIND: RequestKind = RequestKind::LoadWeights;
}

/// A decoded JSON body of a request to a run.
#[derive(Debug)]
pub(crate) struct Json<T> {
    pub(crate) value: T,
    _hold: Hold,
}

impl<T: Ordered + Send + 'static> FromRequest<Shared> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: http::Request<Body>, app: &Shared) -> Result<Self> {
        let path = body::matched_path(&request);
        let (mut parts, body) = request.into_parts();
        let Tenant(tenant) = Tenant::from_request_parts(&mut parts, app).await?;
        let plain = Plain::from_request(http::Request::from_parts(parts, body), app).await?;
        let bytes = plain.bytes.clone();
        match plain.json(app, &path).await {
            Ok((value, hold)) => Ok(Self { value, _hold: hold }),
            Err(error) => Err(refuse(app, &tenant, T::KIND, Place::in_json(&bytes), error).await),
        }
    }
}

/// The run of a request, and the request's number in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) model_id: ModelId,
    pub(crate) seq_id: Option<SeqId>,
}

impl Place {
    /// The place of a request whose other fields may be anything, and which may end in the middle.
    pub(crate) fn in_json(body: &[u8]) -> Option<Self> {
        let mut found = Found::default();
        // What stands before the fault counts, whatever it is.
        drop((&mut found).deserialize(&mut serde_json::Deserializer::from_slice(body)));
        Some(Self { model_id: found.model_id?, seq_id: found.seq_id })
    }

    /// The place of a `ForwardBackwardRequest`, which may be broken behind it.
    pub(crate) fn in_protobuf(body: &Bytes) -> Option<Self> {
        let (model_id, seq_id) = parts::place(body)?;
        Some(Self { model_id: ModelId(model_id), seq_id: Some(SeqId(seq_id)) })
    }
}

/// What of a place has been read so far.
#[derive(Default)]
struct Found {
    model_id: Option<ModelId>,
    seq_id: Option<SeqId>,
}

impl<'de> DeserializeSeed<'de> for &mut Found {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Found {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request to a run")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match &*key {
                "model_id" => self.model_id = map.next_value()?,
                "seq_id" => self.seq_id = map.next_value()?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// [`live_run`] for a request whose number is used up if it is refused.
pub(crate) async fn live_run_at<'a>(
    app: &'a Shared,
    tenant: &TenantId,
    kind: RequestKind,
    place: Place,
) -> Result<(RunRecord, &'a ModelEntry)> {
    match live_run(app, tenant, &place.model_id).await {
        Ok(found) => Ok(found),
        Err(error) => Err(refuse(app, tenant, kind, Some(place), error).await),
    }
}

/// Marks the number of a refused request as used, if it is known and the refusal is final. Returns what to
/// answer: `error`, unless the mark could not be made now.
pub(crate) async fn refuse(
    app: &Shared,
    tenant: &TenantId,
    kind: RequestKind,
    place: Option<Place>,
    error: Error,
) -> Error {
    let is_final = matches!(
        error,
        Error::Malformed { .. } | Error::Invalid { .. } | Error::BodyTooLarge { .. }
    );
    let Some(Place { model_id, seq_id: Some(seq_id) }) = place else { return error };
    if !is_final || !(1..=SEQ_ID_MAX).contains(&seq_id.0) {
        return error;
    }
    let failure =
        Failure { category: Category::User, message: short(&error.to_string()).into_owned() };
    let new = NewRequest {
        model_id,
        seq_id: Some(seq_id),
        kind,
        body: Bytes::new(),
        // Every refusal of the number is the same request; a good one under it is another.
        digest: blake3::hash(b"refused").into(),
        creates: None,
        refused: Some(failure),
    };
    match app.store.submit(tenant, new).await {
        Ok(_) | Err(store::Error::NotFound { .. } | store::Error::Conflict { .. }) => error,
        Err(unmarked) => unmarked.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_before_the_fault() {
        let place =
            |seq_id: Option<i64>| Some(Place { model_id: "m".into(), seq_id: seq_id.map(SeqId) });
        let cases = [
            (r#"{"model_id":"m","seq_id":3,"path":"a"}"#, place(Some(3))),
            (
                r#"{"model_id":"m","seq_id":3,"forward_backward_input":{"data":[{"mod"#,
                place(Some(3)),
            ),
            (r#"{"type":"x","seq_id":3,"model_id":"m"#, None),
            (r#"{"seq_id":3,"model_id":"m","path":"a"#, place(Some(3))),
            (r#"{"model_id":"m","seq_id":null}"#, place(None)),
            (r#"{"model_id":"m","seq_id":"x"}"#, place(None)),
            (r#"{"data":{"model_id":"other"},"model_id":"m""#, place(None)),
            (r#"{"model_id":7,"seq_id":3}"#, None),
            ("[]", None),
            ("", None),
        ];
        for (body, expected) in cases {
            assert_eq!(Place::in_json(body.as_bytes()), expected, "{body}");
        }
    }
}
