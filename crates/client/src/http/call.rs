//! What is sent.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;

use super::{JSON, Pool};
use crate::{Error, Result};

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Behind `/api/v1/`.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Body,
    pub(crate) pool: Pool,
    pub(crate) accept: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) timeout: Option<Duration>,
    /// Repeat within an attempt.
    pub(crate) inner_retries: bool,
    /// Repeat whole attempts.
    pub(crate) outer_retries: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    None,
    Json(Bytes),
    Protobuf { bytes: Bytes, is_zstd: bool },
}

impl Call {
    pub(super) fn new(method: Method, path: &str, body: Body) -> Self {
        Self {
            method,
            path: path.to_owned(),
            query: Vec::new(),
            body,
            pool: Pool::Rest,
            accept: JSON,
            headers: Vec::new(),
            timeout: None,
            inner_retries: true,
            outer_retries: true,
        }
    }

    /// `GET`.
    pub(crate) fn get(path: &str) -> Self {
        Self::new(Method::GET, path, Body::None)
    }

    /// `POST` of nothing.
    pub(crate) fn post_empty(path: &str) -> Self {
        Self::new(Method::POST, path, Body::None)
    }

    /// `POST` of JSON.
    pub(crate) fn post(path: &str, body: &impl Serialize) -> Result<Self> {
        Ok(Self::new(Method::POST, path, Body::Json(encode(body)?)))
    }

    /// `POST` of protobuf.
    pub(crate) fn post_protobuf(path: &str, bytes: Bytes, is_zstd: bool) -> Self {
        Self::new(Method::POST, path, Body::Protobuf { bytes, is_zstd })
    }

    pub(crate) fn pool(self, pool: Pool) -> Self {
        Self { pool, ..self }
    }

    pub(crate) fn retries(self, inner_retries: bool, outer_retries: bool) -> Self {
        Self { inner_retries, outer_retries, ..self }
    }

    pub(crate) fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    pub(crate) fn accept(self, accept: &'static str) -> Self {
        Self { accept, ..self }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// JSON.
pub(super) fn encode(body: &impl Serialize) -> Result<Bytes> {
    let bytes = serde_json::to_vec(body);
    Ok(bytes.map_err(|error| Error::validation(error.to_string()))?.into())
}
