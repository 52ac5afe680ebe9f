//! Requests with a place in a run's order, and what becomes of the place when one is refused.
//!
//! A client that is told 400 goes on with the next number and never repeats the refused one. The number
//! is therefore written down as used: what follows would wait for it in vain.

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts},
    http,
};
use bytes::Bytes;
use serde::Deserialize;
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
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Place {
    pub(crate) model_id: ModelId,
    pub(crate) seq_id: Option<SeqId>,
}

impl Place {
    /// The place of a request whose other fields may be anything.
    pub(crate) fn in_json(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// The place of a `ForwardBackwardRequest`, which may be broken behind it.
    pub(crate) fn in_protobuf(body: &Bytes) -> Option<Self> {
        let (model_id, seq_id) = parts::place(body)?;
        Some(Self { model_id: ModelId(model_id), seq_id: Some(SeqId(seq_id)) })
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
