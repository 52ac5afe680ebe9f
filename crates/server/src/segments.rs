//! Ids and names in a URL.

use axum::{
    extract::{FromRequestParts, Path as AxumPath},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use crate::{
    error::{Error, Result},
    state::Shared,
};

/// The variable segments of the path, percent-decoded; what cannot be decoded is refused as all else is.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Shared> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self> {
        match AxumPath::<T>::from_request_parts(parts, app).await {
            Ok(AxumPath(segments)) => Ok(Self(segments)),
            Err(rejection) => Err(Error::invalid("invalid_path", rejection.body_text())),
        }
    }
}
